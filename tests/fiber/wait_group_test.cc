// SPDX-License-Identifier: Apache-2.0
#include "fiber/wait_group.h"

#include <atomic>
#include <climits>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "tests/fiber/crew.h"

namespace fiber {
namespace {

FIBER_SIM_TEST(WaitGroupTest, WaitReturnsWhenTheCountIsZeroAndNoSooner) {
  WaitGroup work;
  EXPECT_TRUE(work.Wait().ok());  // nothing is under way
  int done = 0;
  for (int i = 0; i < 4; ++i) {
    work.Add();
    Go([&] {
      Yield();
      ++done;
      work.Done();
    });
  }
  EXPECT_TRUE(work.Wait().ok());
  EXPECT_EQ(done, 4);
}

FIBER_SIM_TEST(WaitGroupTest, ZeroReleasesEverybodyWhoWaits) {
  // Two groups back to back, used again and again.
  WaitGroup first, second;
  constexpr int kFibers = 4;
  for (int round = 0; round < 3; ++round) {
    first.Add(kFibers);
    second.Add(kFibers);
    std::vector<JoinHandle<void>> fibers;
    int arrived = 0;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(Spawn([&] {
        ++arrived;
        first.Done();
        EXPECT_TRUE(first.Wait().ok());
        EXPECT_EQ(arrived, kFibers);
        second.Done();
      }));
    }
    EXPECT_TRUE(first.Wait().ok());
    EXPECT_TRUE(second.Wait().ok());
    for (auto& each : fibers) each.Join();
  }
}

FIBER_SIM_TEST(WaitGroupTest, ANewRoundMayBeginBeforeThoseReleasedHaveReturned) {
  WaitGroup work;
  work.Add();
  int round = 1;
  auto waiter = Spawn([&] { return work.Wait(); });
  (void)Sleep(absl::Microseconds(1));  // it waits
  work.Done();
  work.Add();  // while it has not run, perhaps
  round = 2;
  EXPECT_TRUE(waiter.Join().ok());  // though the count is 1 again
  EXPECT_EQ(round, 2);
  EXPECT_TRUE(absl::IsDeadlineExceeded(work.Wait(absl::Milliseconds(1))));
  work.Done();
  EXPECT_TRUE(work.Wait().ok());
}

FIBER_SIM_TEST(WaitGroupTest, WorkMayAddMoreWorkWhileItIsUnderWay) {
  WaitGroup work;
  int leaves = 0;
  struct Tree {
    static void Grow(WaitGroup& work, int& leaves, int depth) {
      if (depth == 0) {
        ++leaves;
      } else {
        work.Add(2);
        for (int i = 0; i < 2; ++i) Go([&work, &leaves, depth] { Grow(work, leaves, depth - 1); });
      }
      work.Done();
    }
  };
  work.Add();
  Go([&] { Tree::Grow(work, leaves, 3); });
  EXPECT_TRUE(work.Wait().ok());
  EXPECT_EQ(leaves, 8);
}

FIBER_SIM_TEST(WaitGroupTest, CancellationAndDeadlinesAreLookedAtFirst) {
  WaitGroup work;
  EXPECT_TRUE(absl::IsDeadlineExceeded(work.Wait(absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return work.Wait(absl::ZeroDuration());
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
}

TEST(WaitGroupTest, ADeadlineRacingDoneEndsTheWaitExactlyOnce) {
  int schedules = 0, released = 0, expired = 0;
  sim::SimulateInTest({.schedules = 2000, .late_probability = 0.1}, [&] {
    WaitGroup work;
    work.Add();
    auto other = Spawn([&] { return work.Wait(); });
    auto worker = Spawn([&] {
      (void)Sleep(absl::Milliseconds(1));
      work.Done();
    });
    const absl::Status status = work.Wait(absl::Milliseconds(1));
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    EXPECT_TRUE(other.Join().ok());
    EXPECT_TRUE(work.Wait().ok());
    ++schedules;
    ++(status.ok() ? released : expired);
  });
  if (schedules > 1) {
    EXPECT_GT(released, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(WaitGroupTest, ACancellationRacingDoneEndsTheWaitExactlyOnce) {
  int schedules = 0, released = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = 2000}, [&] {
    WaitGroup work;
    work.Add(2);
    auto waiter = Spawn([&] { return work.Wait(); });
    auto one = Spawn([&] { work.Done(); });
    auto two = Spawn([&] { work.Done(); });
    Yield();
    waiter.Cancel();
    const absl::Status status = waiter.Join();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    one.Join();
    two.Join();
    EXPECT_TRUE(work.Wait().ok());
    ++schedules;
    ++(status.ok() ? released : cancelled);
  });
  if (schedules > 1) {
    EXPECT_GT(released, 0);
    EXPECT_GT(cancelled, 0);
  }
}

FIBER_SIM_TEST(WaitGroupTest, MayBeDestroyedAsSoonAsWaitReturns) {
  auto work = std::make_unique<WaitGroup>();
  work->Add(2);
  auto one = Spawn([&work = *work] { work.Done(); });
  auto two = Spawn([&work = *work] { work.Done(); });
  EXPECT_TRUE(work->Wait().ok());
  work.reset();
}

TEST(WaitGroupTest, MayBeDestroyedUnderADoneOnAnotherThread) {
  std::atomic<WaitGroup*> shared{nullptr};
  std::atomic<bool> is_over{false};
  std::thread worker([&] {
    while (!is_over.load(std::memory_order_acquire)) {
      WaitGroup* work = shared.exchange(nullptr, std::memory_order_acq_rel);
      if (work != nullptr) {
        work->Add();
        work->Add(-2);
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 20'000; ++i) {
    auto work = std::make_unique<WaitGroup>();
    work->Add();
    shared.store(work.get(), std::memory_order_release);
    if (i % 2 == 0) {
      EXPECT_TRUE(work->Wait().ok());
    } else {
      while (!work->Wait(absl::Microseconds(10 + i % 50)).ok()) {
      }
    }
  }
  is_over.store(true, std::memory_order_release);
  worker.join();
}

TEST(WaitGroupTest, EveryRoundIsSeenWholeByThoseWhoWait) {
  for (const Crew& crew : kCrews) {
    SCOPED_TRACE(testing::Message() << crew.workers << " workers");
    const int size = crew.fibers + crew.threads;
    constexpr int kRounds = 200;
    // Barriers made of wait groups; what everybody wrote before is visible behind them.
    std::vector<WaitGroup> barriers(kRounds);
    for (WaitGroup& each : barriers) each.Add(size);
    std::vector<int> values(static_cast<size_t>(size), 0);
    std::vector<WaitGroup> second(kRounds);
    for (WaitGroup& each : second) each.Add(size);
    RunCrew(crew, [&](int me) {
      for (int round = 0; round < kRounds; ++round) {
        WaitGroup& barrier = barriers[static_cast<size_t>(round)];
        values[static_cast<size_t>(me)] = round;
        barrier.Done();
        while (round % 4 == 0 && !barrier.Wait(absl::Microseconds(10 + me)).ok()) {
        }
        EXPECT_TRUE(barrier.Wait().ok());
        for (int value : values) EXPECT_EQ(value, round);
        second[static_cast<size_t>(round)].Done();
        EXPECT_TRUE(second[static_cast<size_t>(round)].Wait().ok());
      }
    });
  }
}

TEST(WaitGroupDeathTest, ACountOutOfRangeEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  WaitGroup work;
  EXPECT_DEATH(work.Done(), "fiber::WaitGroup 0x[0-9a-f]+: Add\\(-1\\) makes the count negative");
  work.Add(INT_MAX);
  EXPECT_DEATH(work.Add(), "fiber::WaitGroup 0x[0-9a-f]+: Add\\(1\\) makes the count overflow");
  work.Add(-INT_MAX);
}

TEST(WaitGroupDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               auto work = std::make_unique<WaitGroup>();
                               work->Add();
                               Go([&work = *work] { (void)work.Wait(); });
                               (void)Sleep(absl::Seconds(1));
                               work.reset();
                             }),
               "fiber::WaitGroup 0x[0-9a-f]+ was destroyed while 1 waited for it");
}

}  // namespace
}  // namespace fiber
