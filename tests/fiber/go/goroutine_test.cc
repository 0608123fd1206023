// SPDX-License-Identifier: Apache-2.0
//
// Go's scheduler: rows 13, 14 and 17 of docs/go_conformance.md. What of it is about queues and
// workers has its tests in tests/sched.
#include <atomic>
#include <thread>
#include <vector>

#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "tests/fiber/go/row.h"

namespace fiber {
namespace {

// Row 13.
GO_ROW(GoGoroutine, WhoYieldsLetsAllOthersGoOn, 1000) {
  constexpr int kFibers = 3;
  std::atomic<int> turn{0};
  std::vector<JoinHandle<void>> fibers;
  // Each waits for the one before it, the last of them spawned first, and the first while all
  // others yield.
  for (int i = kFibers; i > 0; --i) {
    fibers.push_back(Spawn([&turn, i] {
      while (turn.load(std::memory_order_relaxed) != i - 1) Yield();
      turn.store(i, std::memory_order_relaxed);
    }));
  }
  while (turn.load(std::memory_order_relaxed) != kFibers) Yield();
  for (auto& each : fibers) each.Join();
}

// Row 14: as many fibers as workers, none of which gives way, wait for each other in turn.
TEST(GoGoroutineWorkers, AsManyFibersAsWorkersRunAtTheSameTime) {
  for (const int workers : {2, 4}) {
    sched::RunInTest({.runtime = {.workers = workers}}, [workers] {
      for (int round = 0; round < 5; ++round) {
        std::atomic<int> turn{0};
        std::vector<JoinHandle<void>> fibers;
        for (int i = 0; i < workers; ++i) {
          fibers.push_back(Spawn([&turn, workers, i] {
            for (int k = 0; k < 3; ++k) {
              // The thread's time, not the fiber's turn.
              while (turn.load(std::memory_order_relaxed) != k * workers + i)
                std::this_thread::yield();
              turn.fetch_add(1, std::memory_order_relaxed);
            }
          }));
        }
        for (auto& each : fibers) each.Join();
      }
    });
  }
}

// Row 17. Nobody is interrupted in a loop: that takes another worker.
FIBER_TEST_ON(GoGoroutineWorkers, OneThatNeverGivesWayDoesNotStopOthersOfOtherWorkers, 2, 8) {
  std::atomic<bool> is_over{false};
  auto spinner = Spawn([&] {
    while (!is_over.load(std::memory_order_relaxed)) std::this_thread::yield();
  });
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(Spawn([i] {
                Yield();
                return i;
              }).Join(),
              i);
  }
  is_over.store(true, std::memory_order_relaxed);
  spinner.Join();
}

}  // namespace
}  // namespace fiber
