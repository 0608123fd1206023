// SPDX-License-Identifier: Apache-2.0
// One workload, one line of result; baselines/ has the same workloads without Weft, and
// tools/bench/run compares them.
//
//   yardstick WORKLOAD WORKERS N
//
// | workload       | what                                                                | operation     |
// |----------------|---------------------------------------------------------------------|---------------|
// | spawn_join     | N times in sequence: spawn an empty fiber, join it                  | spawn + join  |
// | spawn_many     | one parent spawns N empty fibers and waits for all                  | fiber         |
// | yield, yield1k | 2, 1000 fibers yield, N times in all                                | yield         |
// | pingpong       | two fibers pass a token over two unbuffered channels, N times       | round trip    |
// | chan, mpmc     | N ints through one channel of capacity 128, 1 to 1, 4 to 4 fibers   | item          |
// | mutex          | 100 fibers, N times in all: lock, ++counter, unlock                 | lock + unlock |
// | skynet         | fan-out 10, N leaves, sums returned by join                         | leaf          |
// | sleep          | N fibers sleep 1 + (i * 7919 % 1000) ms each                        | fiber         |
// | park           | N fibers parked at once, then all released                          | fiber         |
// | hog            | WORKERS fibers spin 1 s; one, started before, sleeps 1 ms in a loop |               |
// | echo           | N is the port: an echo server, a fiber a connection, until SIGTERM  |               |
//
// The line gives wall time and CPU time of the timed part, which comes after a warm-up of N / 20.
// What each workload does is written as a user would write it. With EAGER_WAKE in the environment the runtime has
// RuntimeOptions::eager_wake.
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
#include "sched/run.h"

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void Die(std::string_view what) {
  std::fprintf(stderr, "yardstick: %.*s\n", static_cast<int>(what.size()), what.data());
  std::exit(1);
}

void DieUnlessOk(const absl::Status& status) {
  if (!status.ok()) Die(status.ToString());
}

double CpuMillis() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto millis = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_usec) / 1e3;
  };
  return millis(usage.ru_utime) + millis(usage.ru_stime);
}

int64_t ResidentPeakKilobytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

int64_t ResidentBytes() {
  int64_t size = 0;
  int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void SpawnJoin(int64_t n) {
  for (int64_t i = 0; i < n; ++i) fiber::Spawn([] {}).Join();
}

void SpawnMany(int64_t n) {
  fiber::WaitGroup fibers;
  fibers.Add(static_cast<int>(n));
  for (int64_t i = 0; i < n; ++i) {
    fiber::Go([&fibers] { fibers.Done(); });
  }
  DieUnlessOk(fibers.Wait());
}

void YieldAll(int fibers, int64_t n) {
  fiber::WaitGroup yielding;
  yielding.Add(fibers);
  for (int i = 0; i < fibers; ++i) {
    fiber::Go([&yielding, yields = n / fibers] {
      for (int64_t j = 0; j < yields; ++j) fiber::Yield();
      yielding.Done();
    });
  }
  DieUnlessOk(yielding.Wait());
}

int64_t ValueOf(const absl::StatusOr<int64_t>& item) {
  if (!item.ok()) Die(item.status().ToString());
  return *item;
}

void PingPong(int64_t n) {
  fiber::Channel<int64_t> there;
  fiber::Channel<int64_t> back;
  auto first = fiber::Spawn([&] {
    for (int64_t i = 0; i < n; ++i) {
      DieUnlessOk(there.Send(i));
      if (ValueOf(back.Receive()) != i) Die("pingpong: the token is another");
    }
  });
  auto other = fiber::Spawn([&] {
    for (int64_t i = 0; i < n; ++i) DieUnlessOk(back.Send(ValueOf(there.Receive())));
  });
  first.Join();
  other.Join();
}

// Numbers through one channel.
void Pipe(int64_t senders, int64_t receivers, int64_t n) {
  fiber::Channel<int64_t> items(128);
  std::vector<fiber::JoinHandle<int64_t>> sums;
  for (int64_t i = 0; i < senders; ++i) {
    sums.push_back(fiber::Spawn([&items, share = n / senders + (i < n % senders ? 1 : 0)] {
      int64_t sum = 0;
      for (int64_t item = 0; item < share; ++item) {
        DieUnlessOk(items.Send(item));
        sum += item;
      }
      return sum;
    }));
  }
  for (int64_t i = 0; i < receivers; ++i) {
    sums.push_back(fiber::Spawn([&items, share = n / receivers + (i < n % receivers ? 1 : 0)] {
      int64_t sum = 0;
      for (int64_t k = 0; k < share; ++k) sum -= ValueOf(items.Receive());
      return sum;
    }));
  }
  int64_t left = 0;  // sent and not received
  for (auto& each : sums) left += each.Join();
  if (left != 0) Die("the sum of what was received is wrong");
}

void LockAll(int64_t n) {
  constexpr int kFibers = 100;
  fiber::Mutex mutex;
  int64_t counter = 0;
  fiber::WaitGroup locking;
  locking.Add(kFibers);
  for (int i = 0; i < kFibers; ++i) {
    fiber::Go([&, locks = n / kFibers] {
      for (int64_t j = 0; j < locks; ++j) {
        std::lock_guard lock(mutex);
        ++counter;
      }
      locking.Done();
    });
  }
  DieUnlessOk(locking.Wait());
  if (counter != n / kFibers * kFibers) Die("mutex: the counter is wrong");
}

int64_t SumOfLeaves(int64_t first, int64_t leaves) {
  if (leaves == 1) return first;
  std::array<fiber::JoinHandle<int64_t>, 10> children;
  const int64_t share = leaves / 10;
  for (auto& child : children) {
    child = fiber::Spawn([first, share] { return SumOfLeaves(first, share); });
    first += share;
  }
  int64_t sum = 0;
  for (auto& child : children) sum += child.Join();
  return sum;
}

void Skynet(int64_t n) {
  if (fiber::Spawn([n] { return SumOfLeaves(0, n); }).Join() != n * (n - 1) / 2) {
    Die("skynet: the sum is wrong (N must be a power of ten)");
  }
}

void SleepAll(int64_t n) {
  fiber::WaitGroup sleeping;
  sleeping.Add(static_cast<int>(n));
  for (int64_t i = 0; i < n; ++i) {
    fiber::Go([&sleeping, i] {
      DieUnlessOk(fiber::Sleep(absl::Milliseconds(1 + i * 7919 % 1000)));
      sleeping.Done();
    });
  }
  DieUnlessOk(sleeping.Wait());
}

// Does not count looking at the memory.
Clock::duration ParkAll(int64_t n, std::string& extra) {
  fiber::Event release;
  fiber::WaitGroup parked;
  std::atomic<int64_t> arrived{0};
  parked.Add(static_cast<int>(n));
  const int64_t before = ResidentBytes();
  Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < n; ++i) {
    fiber::Go([&] {
      arrived.fetch_add(1, std::memory_order_relaxed);
      DieUnlessOk(release.Wait());
      parked.Done();
    });
  }
  while (arrived.load(std::memory_order_relaxed) != n) {
    DieUnlessOk(fiber::Sleep(absl::Microseconds(50)));
  }
  const Clock::duration parking = Clock::now() - start;
  DieUnlessOk(fiber::Sleep(absl::Milliseconds(20)));  // the last ones get to the event
  absl::StrAppend(&extra, ",rss_per_fiber_bytes=", (ResidentBytes() - before) / n);
  start = Clock::now();
  release.Set();
  DieUnlessOk(parked.Wait());
  return parking + (Clock::now() - start);
}

std::atomic<uint64_t> spin_sink{0};

void Spin(Clock::duration time, uint64_t x) {
  const Clock::time_point end = Clock::now() + time;
  while (Clock::now() < end) {
    for (int i = 0; i < 2'000'000; ++i) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
    }
  }
  spin_sink.fetch_add(x, std::memory_order_relaxed);  // keeps the loop
}

void Hog(int workers, std::string& extra) {
  constexpr std::chrono::seconds kTime(1);
  std::vector<double> gaps_ms;
  gaps_ms.reserve(4096);
  fiber::Event started;
  fiber::WaitGroup running;
  running.Add(1 + workers);
  fiber::Go([&] {
    started.Set();
    Clock::time_point last = Clock::now();
    for (const Clock::time_point end = last + kTime; last < end;) {
      DieUnlessOk(fiber::Sleep(absl::Milliseconds(1)));
      const Clock::time_point now = Clock::now();
      gaps_ms.push_back(std::chrono::duration<double, std::milli>(now - last).count());
      last = now;
    }
    running.Done();
  });
  DieUnlessOk(started.Wait());
  for (int i = 0; i < workers; ++i) {
    fiber::Go([&running, kTime, i] {
      Spin(kTime, static_cast<uint64_t>(i) + 1);
      running.Done();
    });
  }
  DieUnlessOk(running.Wait());
  std::sort(gaps_ms.begin(), gaps_ms.end());
  absl::StrAppendFormat(&extra, ",max_gap_ms=%.3f,p99_gap_ms=%.3f,wakeups=%d", gaps_ms.back(),
                        gaps_ms[gaps_ms.size() * 99 / 100], gaps_ms.size());
}

void Echo(int port, int stop_signals) {
  auto listener = netpoll::TcpListener::Listen(absl::StrCat("127.0.0.1:", port));
  if (!listener.ok()) Die(listener.status().ToString());
  std::fprintf(stderr, "listening on %s\n", listener->local().ToString().c_str());
  auto stopper = fiber::Spawn([&] {
    if (netpoll::WaitReadable(stop_signals).ok()) listener->Close();
  });
  for (;;) {
    auto accepted = listener->Accept();
    if (!accepted.ok()) return;
    fiber::Go([stream = *std::move(accepted)]() mutable {
      char buffer[4096];
      for (;;) {
        auto n = stream.Read(buffer);
        if (!n.ok()) return;
        if (!stream.Write({buffer, *n}).ok()) return;
      }
    });
  }
}

// REQUIRES: no other threads yet, they would take the signals.
int StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
}

struct Measured {
  Clock::duration wall;
  int64_t operations;
  double cpu_ms;
  std::string extra;
};

// What is timed after a warm-up.
using Loop = void (*)(int64_t n);

Loop LoopOf(std::string_view workload) {
  static constexpr std::pair<std::string_view, Loop> kLoops[] = {
      {"spawn_join", SpawnJoin},
      {"spawn_many", SpawnMany},
      {"yield", [](int64_t n) { YieldAll(2, n); }},
      {"yield1k", [](int64_t n) { YieldAll(1000, n); }},
      {"pingpong", PingPong},
      {"chan", [](int64_t n) { Pipe(1, 1, n); }},
      {"mpmc", [](int64_t n) { Pipe(4, 4, n); }},
      {"mutex", LockAll},
      {"skynet", Skynet},
      {"sleep", SleepAll},
  };
  for (const auto& [name, loop] : kLoops) {
    if (name == workload) return loop;
  }
  return nullptr;
}

int64_t WarmUp(std::string_view workload, int64_t n) {
  if (workload == "sleep") return 0;
  if (workload == "yield1k") return std::max<int64_t>(n / 20, 1000);
  if (workload == "skynet") {
    int64_t power = 1;
    while (power * 10 <= n / 20) power *= 10;
    return power;
  }
  return n / 20;
}

Measured Measure(std::string_view workload, int workers, int64_t n) {
  Measured measured = {.wall = {}, .operations = n, .cpu_ms = 0, .extra = "stack=256KiB"};
  const Loop loop = LoopOf(workload);
  if (loop != nullptr) {
    if (const int64_t warm_up = WarmUp(workload, n); warm_up > 0) loop(warm_up);
  }
  const double cpu_before = CpuMillis();
  const Clock::time_point start = Clock::now();
  if (workload == "park") {
    measured.extra = "stack=64KiB";
    measured.wall = ParkAll(n, measured.extra);
  } else if (workload == "hog") {
    Hog(workers, measured.extra);
    measured.wall = Clock::now() - start;
    measured.operations = 1;
  } else {
    loop(n);
    measured.wall = Clock::now() - start;
    if (workload == "skynet") measured.extra += ",via=join";
  }
  measured.cpu_ms = CpuMillis() - cpu_before;
  return measured;
}

void Report(std::string_view workload, int workers, int64_t n, const Measured& measured) {
  const int64_t wall_ns = std::chrono::nanoseconds(measured.wall).count();
  absl::PrintF("weft %s %d %d wall_ns=%d ns_per_op=%.2f cpu_ms=%.2f rss_peak_kb=%d extra=%s\n",
               std::string(workload), workers, n, wall_ns,
               static_cast<double>(wall_ns) / static_cast<double>(measured.operations),
               measured.cpu_ms, ResidentPeakKilobytes(), measured.extra);
}

int64_t NumberOf(const char* text, int64_t least, int64_t most) {
  const std::string_view argument = text;
  int64_t number = 0;
  const char* const last = argument.data() + argument.size();
  const auto [end, error] = std::from_chars(argument.data(), last, number);
  if (error != std::errc() || end != last || number < least || number > most) {
    std::fprintf(stderr, "yardstick: '%s' is not a number from %ld to %ld\n", text,
                 static_cast<long>(least), static_cast<long>(most));
    std::exit(2);
  }
  return number;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: yardstick WORKLOAD WORKERS N | yardstick echo WORKERS PORT\n");
    return 2;
  }
  const std::string_view workload = argv[1];
  const int workers = static_cast<int>(NumberOf(argv[2], 1, 1024));
  const int64_t n =
      workload == "echo" ? NumberOf(argv[3], 0, 65535) : NumberOf(argv[3], 1, 1'000'000'000);
  sched::RuntimeOptions options = {.workers = workers};
  if (getenv("EAGER_WAKE") != nullptr) options.eager_wake = true;
  options.on_stall = [](const sched::Stall&) {};  // one that spawns a million fibers is one

  if (workload == "echo") {
    const int stop_signals = StopSignals();
    sched::Run(options, [&] { Echo(static_cast<int>(n), stop_signals); });
    return 0;
  }
  if (workload == "park")
    options.default_stack_bytes = 64 << 10;  // what millions of fibers are for
  const bool is_known = LoopOf(workload) != nullptr || workload == "park" || workload == "hog";
  if (!is_known) {
    absl::PrintF("weft %s %d %d unsupported=unknown_workload\n", argv[1], workers, n);
    return 3;
  }
  Report(workload, workers, n, sched::Run(options, [&] { return Measure(workload, workers, n); }));
  return 0;
}
