// SPDX-License-Identifier: Apache-2.0
//
// Random rounds of everything at once: all that parks, by fibers of one or two runtimes and by
// plain threads, and connections that open, echo, half-close, time out, are closed, cancelled and
// reset.
//
//   bazel run //tests/soak:stress -- --seconds=60
//   bazel run //tests/soak:stress -- --seed=SEED --rounds=1      # one that failed, again
//
// A round's seed decides what its fibers try, not in which order that happens.
#include <dirent.h>

#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/internal/record.h"
#include "netpoll/internal/descriptor_slab.h"
#include "tests/soak/client.h"
#include "tests/soak/primitives.h"
#include "tests/soak/server.h"
#include "tests/soak/tally.h"
#include "tests/soak/watchdog.h"
#include "tests/soak/world.h"

namespace soak {
namespace {

int OpenDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  int count = -1;  // the directory's own
  while (const dirent* entry = readdir(directory)) count += entry->d_name[0] != '.';
  closedir(directory);
  return count;
}

// What a round consists of.
struct Plan {
  explicit Plan(Random& random)
      : guides(random.Between(1, 40)),
        clients(random.Between(1, 30)),
        threads(random.Between(0, 3)),
        sleepers(random.Between(0, 10)),
        is_cut_short(random.OneIn(2)),
        time(absl::Milliseconds(random.Between(500, 4000))) {
    workers.push_back(random.Between(1, 4));
    if (random.OneIn(3)) workers.push_back(random.Between(1, 4));
  }

  std::vector<int> workers;  // of each runtime
  const int guides;
  const int clients;
  const int threads;
  const int sleepers;       // fibers that only the end of their runtime ends
  const bool is_cut_short;  // Shutdown() before the runtime is destroyed
  const absl::Duration time;
};

// Fibers that never come to an end but by being cancelled with their runtime.
void AddSleepers(World& world, Random& random, int count, fiber::Event& never) {
  for (int i = 0; i < count; ++i) {
    world.AnyRuntime(random).Go([&never, sleeps = random.OneIn(2)] {
      ExpectCode(sleeps ? fiber::Sleep(absl::InfiniteDuration()) : never.Wait(),
                 absl::StatusCode::kCancelled);
    });
  }
}

void BeClients(World& world, std::vector<std::unique_ptr<Server>>& servers,
               const loadgen::Pattern& pattern, uint64_t seed) {
  Random random(seed);
  while (!world.ending()) {
    Client(world, *servers[random.Below(servers.size())], pattern, random.Next()).Run();
  }
}

void RunRound(const Plan& plan, Random& random, const loadgen::Pattern& pattern) {
  fiber::Event never;
  World world;
  for (const int workers : plan.workers) {
    world.runtimes.push_back(std::make_unique<sched::Runtime>(
        sched::RuntimeOptions{.workers = workers,
                              .drain = absl::Seconds(60),
                              .on_stall = [](const sched::Stall&) {}}));  // of which there are many, on purpose
  }
  Primitives primitives(world);
  std::vector<std::unique_ptr<Server>> servers;
  std::vector<fiber::JoinHandle<void>> serving;
  for (auto& runtime : world.runtimes) {
    Server* const server = servers.emplace_back(std::make_unique<Server>()).get();
    serving.push_back(runtime->Spawn([server, seed = random.Next()] { server->Serve(seed); }));
  }
  AddSleepers(world, random, plan.sleepers, never);
  std::vector<fiber::JoinHandle<void>> busy;
  for (int i = 0; i < plan.guides; ++i) {
    busy.push_back(world.AnyRuntime(random).Spawn(
        [&primitives, seed = random.Next()] { primitives.Guide(seed); }));
  }
  for (int i = 0; i < plan.clients; ++i) {
    busy.push_back(world.AnyRuntime(random).Spawn(
        [&, seed = random.Next()] { BeClients(world, servers, pattern, seed); }));
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < plan.threads; ++i) {
    threads.emplace_back([&world, &primitives, seed = random.Next()] {
      Random seeds(seed);
      while (!world.ending()) primitives.Wander(seeds.Next(), 1000, 2);
    });
  }

  absl::SleepFor(plan.time);
  world.is_ending.store(true, std::memory_order_relaxed);
  for (auto& fiber : busy) fiber.Join();
  for (std::thread& thread : threads) thread.join();
  for (auto& server : servers) server->BeLast();
  for (auto& server : serving) server.Join();
  primitives.CheckNothingIsLost();
  for (auto& runtime : world.runtimes) {
    if (plan.is_cut_short) ExpectCode(runtime->Shutdown(absl::Seconds(60)), absl::StatusCode::kOk);
    runtime = nullptr;
  }
}

struct Options {
  uint64_t seed = (uint64_t{std::random_device()()} << 32) | std::random_device()();
  uint64_t rounds = UINT64_MAX;
  uint64_t seconds = 60;
  uint64_t patience = 60;  // seconds without progress
};

bool Parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string_view::npos) return false;
    const std::string_view name = argument.substr(0, equals);
    uint64_t* const field = name == "--seed"       ? &options.seed
                            : name == "--rounds"   ? &options.rounds
                            : name == "--seconds"  ? &options.seconds
                            : name == "--patience" ? &options.patience
                                                   : nullptr;
    if (field == nullptr || !absl::SimpleAtoi(argv[i] + equals + 1, field)) return false;
  }
  return true;
}

void RunRounds(const Options& options, const char* program) {
  const loadgen::Pattern pattern;
  const int descriptors = OpenDescriptors();
  Watchdog watchdog(absl::Seconds(static_cast<int64_t>(options.patience)));
  const absl::Time end = absl::Now() + absl::Seconds(static_cast<int64_t>(options.seconds));
  Random seeds(options.seed);
  uint64_t seed =
      options.seed;  // the first round's is the one that was given, so that it can be run again
  for (uint64_t round = 0; round < options.rounds && absl::Now() < end;
       ++round, seed = seeds.Next()) {
    Random random(seed);
    const Plan plan(random);
    std::string workers = absl::StrCat(plan.workers[0]);
    if (plan.workers.size() == 2) absl::StrAppend(&workers, "+", plan.workers[1]);
    SetReplay(absl::StrCat(program, " --seed=", seed, " --rounds=1"));
    std::puts(
        absl::StrFormat(
            "round %d seed=%d workers=%s guides=%d clients=%d threads=%d time=%s rss_mib=%.1f",
            round + 1, seed, workers, plan.guides, plan.clients, plan.threads,
            absl::FormatDuration(plan.time), ResidentMebibytes())
            .c_str());
    std::fflush(stdout);
    watchdog.BeginRound(absl::Now() + plan.time);
    RunRound(plan, random, pattern);
    Expect(OpenDescriptors() == descriptors, "leaked descriptors");
    Expect(netpoll::internal::DescriptorSlab::CountInUse() == 0, "leaked descriptor records");
    Expect(fiber::internal::CountRecordsInUse() == 0, "leaked fibers");
  }
  std::puts(watchdog.Summary().c_str());
  std::puts("nothing failed");
}

}  // namespace
}  // namespace soak

int main(int argc, char** argv) {
  soak::Options options;
  if (!soak::Parse(argc, argv, options)) {
    std::fputs("usage: stress [--seconds=N] [--rounds=N] [--seed=N] [--patience=SECONDS]\n",
               stderr);
    return 2;
  }
  soak::RunRounds(options, argv[0]);
}
