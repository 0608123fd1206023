// SPDX-License-Identifier: Apache-2.0
//
// Spawning where there is no memory for another record. A process of its own: so is the limit, which the sanitizers' own
// memory would not fit into.
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <new>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace {

rlim_t AddressSpaceInUse() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  statm >> pages;
  return pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE));
}

class FewRecordsTest : public testing::Test {
 protected:
  FewRecordsTest() { EXPECT_EQ(getrlimit(RLIMIT_AS, &before_), 0); }
  ~FewRecordsTest() override { EXPECT_EQ(setrlimit(RLIMIT_AS, &before_), 0); }

  void LeaveRoomFor(rlim_t bytes) {
    const rlimit tight{AddressSpaceInUse() + bytes, before_.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  }

 private:
  rlimit before_{};
};

// What a thread finds of a batch is used to the last, and comes back: as many fibers fit in every round.
TEST_F(FewRecordsTest, NoRecordIsLostWhenThereAreNoMore) {
  sched::Runtime runtime({.workers = 1, .max_threads = 1});  // and no spare one either
  runtime.Spawn([] {}).Join();
  std::thread([] {}).join();
  LeaveRoomFor(4 << 20);
  uint64_t first_round = 0;
  for (int round = 0; round < 30; ++round) {
    fiber::Event release;
    std::atomic<bool> is_blocked{false};
    std::atomic<bool> may_go_on{false};
    // The only worker does nothing else meanwhile, so every record stays in use.
    runtime.Go([&] {
      is_blocked = true;
      while (!may_go_on) std::this_thread::yield();
    });
    while (!is_blocked) std::this_thread::yield();
    uint64_t spawned = 0;
    std::atomic<uint64_t> ended{0};
    for (bool is_full = false; !is_full;) {
      // Threads that come and go leave parts of batches behind.
      std::thread([&] {
        for (int i = 0; i < 37 && !is_full; ++i) {
          try {
            runtime.Go([&] { ended.fetch_add(1); });
            ++spawned;
          } catch (const std::bad_alloc&) {
            is_full = true;
          }
        }
      }).join();
    }
    if (round == 0) first_round = spawned;
    EXPECT_GT(spawned, first_round / 10 * 9) << "in round " << round;
    may_go_on = true;
    while (ended.load() != spawned) std::this_thread::yield();
  }
  EXPECT_GT(first_round, 1000u);
}

TEST_F(FewRecordsTest, ThreadsThatSpawnAtTheLimitDoNotDisturbEachOther) {
  sched::Runtime runtime({.workers = 3});
  runtime.Spawn([] {}).Join();
  runtime.Spawn({.stack_bytes = 64 << 10}, [] {}).Join();
  constexpr int kThreads = 6;
  constexpr int kSpawns = 20'000;
  std::atomic<uint64_t> spawned{0};
  std::atomic<uint64_t> ended{0};
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      ready.fetch_add(1);
      while (!go) std::this_thread::yield();
      for (int i = 0; i < kSpawns; ++i) {
        try {
          runtime.Go([&] { ended.fetch_add(1); });
          spawned.fetch_add(1);
        } catch (const std::bad_alloc&) {
        }
      }
    });
  }
  while (ready != kThreads) std::this_thread::yield();
  LeaveRoomFor(8 << 20);
  go = true;
  for (std::thread& thread : threads) thread.join();
  while (ended.load() != spawned.load()) std::this_thread::yield();
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
}

}  // namespace
