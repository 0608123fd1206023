// SPDX-License-Identifier: Apache-2.0
#include "fiber/rate_limiter.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace fiber {
namespace {

// In simulation: long enough that whoever can run has run until it parks.
void LetOthersPark() { (void)Sleep(absl::Nanoseconds(1)); }

FIBER_SIM_TEST(RateLimiterTest, ABurstGoesAtOnceAndTheRestAtTheRate) {
  RateLimiter limiter(10, 3);
  const absl::Duration start = Now();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(limiter.Acquire().ok());
  EXPECT_EQ(Now(), start);
  for (int i = 1; i <= 5; ++i) {
    EXPECT_TRUE(limiter.Acquire().ok());
    EXPECT_EQ(Now(), start + i * absl::Milliseconds(100));
  }
}

FIBER_SIM_TEST(RateLimiterTest, RatesThatAreNoWholeNanosecondsDoNotDrift) {
  RateLimiter limiter(3, 1);
  EXPECT_TRUE(limiter.Acquire().ok());
  const absl::Duration start = Now();
  for (int i = 0; i < 30; ++i) EXPECT_TRUE(limiter.Acquire().ok());
  EXPECT_GE(Now() - start, absl::Seconds(10));
  EXPECT_LE(Now() - start, absl::Seconds(10) + absl::Nanoseconds(2));
}

FIBER_SIM_TEST(RateLimiterTest, TheBucketHoldsNoMoreThanTheBurst) {
  RateLimiter limiter(10, 2);
  (void)Sleep(absl::Hours(1));
  EXPECT_TRUE(limiter.TryAcquire(2));
  EXPECT_FALSE(limiter.TryAcquire());
  (void)Sleep(absl::Milliseconds(99));
  EXPECT_FALSE(limiter.TryAcquire());
  (void)Sleep(absl::Milliseconds(1));
  EXPECT_TRUE(limiter.TryAcquire());
  EXPECT_TRUE(limiter.TryAcquire(0));
  EXPECT_TRUE(limiter.Acquire(0).ok());
}

FIBER_SIM_TEST(RateLimiterTest, MoreThanTheBurstIsRefusedAndTakesNothing) {
  RateLimiter limiter(10, 2);
  EXPECT_TRUE(absl::IsInvalidArgument(limiter.Acquire(3)));
  EXPECT_FALSE(limiter.TryAcquire(3));
  EXPECT_TRUE(limiter.TryAcquire(2));
}

FIBER_SIM_TEST(RateLimiterTest, ADeadlineThatCannotBeMetIsSaidAtOnceAndTakesNothing) {
  RateLimiter limiter(1, 1);
  const absl::Duration start = Now();
  EXPECT_TRUE(limiter.Acquire().ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(limiter.Acquire(1, absl::Milliseconds(999))));
  {
    DeadlineScope ambient(absl::Milliseconds(500));
    EXPECT_TRUE(absl::IsDeadlineExceeded(limiter.Acquire()));
  }
  EXPECT_EQ(Now(), start);
  // Those who wait count: the second would come after two seconds.
  auto first = Spawn([&] { return limiter.Acquire(1, absl::Seconds(1)); });
  LetOthersPark();
  EXPECT_TRUE(absl::IsDeadlineExceeded(limiter.Acquire(1, absl::Milliseconds(1900))));
  EXPECT_TRUE(limiter.Acquire(1, absl::Seconds(2)).ok());
  EXPECT_EQ(Now(), start + absl::Seconds(2));
  EXPECT_TRUE(first.Join().ok());
}

FIBER_SIM_TEST(RateLimiterTest, TokensGoInTheOrderOfComing) {
  RateLimiter limiter(10, 3);
  ASSERT_TRUE(limiter.TryAcquire(3));
  const absl::Duration start = Now();
  std::vector<int> order;
  std::vector<absl::Duration> times;
  std::vector<JoinHandle<void>> fibers;
  for (const int n : {3, 1, 2}) {
    fibers.push_back(Spawn([&, n] {
      EXPECT_TRUE(limiter.Acquire(n).ok());
      order.push_back(n);
      times.push_back(absl::Trunc(Now() - start, absl::Milliseconds(1)));
    }));
    LetOthersPark();
  }
  (void)Sleep(absl::Milliseconds(150));
  EXPECT_FALSE(limiter.TryAcquire());  // there is one, and others wait
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(order, (std::vector<int>{3, 1, 2}));
  EXPECT_EQ(times, (std::vector<absl::Duration>{absl::Milliseconds(300), absl::Milliseconds(400),
                                                absl::Milliseconds(600)}));
}

FIBER_SIM_TEST(RateLimiterTest, WhoIsCancelledTakesNothingAndThoseBehindMoveUp) {
  RateLimiter limiter(1, 5);
  ASSERT_TRUE(limiter.TryAcquire(5));
  const absl::Duration start = Now();
  auto big = Spawn([&] { return limiter.Acquire(5); });
  LetOthersPark();
  auto middle = Spawn([&] { return limiter.Acquire(4); });
  LetOthersPark();
  auto small = Spawn([&] { return limiter.Acquire(1); });
  LetOthersPark();
  big.Cancel();
  middle.Cancel();
  EXPECT_TRUE(absl::IsCancelled(big.Join()));
  EXPECT_TRUE(absl::IsCancelled(middle.Join()));
  EXPECT_TRUE(small.Join().ok());
  EXPECT_EQ(Now(), start + absl::Seconds(1));
}

TEST(RateLimiterTest, CancelAndDeadlinesRacingTheTokensLoseNone) {
  int schedules = 0, served = 0, refused = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    RateLimiter limiter(1000, 2);
    int taken = 0;
    const absl::Duration start = Now();
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 4; ++i) {
      fibers.push_back(Spawn([&, i] {
        const int n = i % 2 + 1;
        const absl::Status status =
            limiter.Acquire(n, i == 0 ? Deadline(absl::Milliseconds(2)) : Deadline::Never());
        if (status.ok()) taken += n;
        ++(status.ok() ? served : refused);
        // Never more than burst and rate allow.
        EXPECT_LE(taken, 2 + (Now() - start) / absl::Milliseconds(1));
      }));
    }
    (void)Sleep(absl::Milliseconds(1));
    fibers[1].Cancel();
    for (auto& each : fibers) each.Join();
    // And nobody has left anything behind: it fills up in time.
    (void)Sleep(absl::Milliseconds(2));
    EXPECT_TRUE(limiter.TryAcquire(2));
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(served, 0);
    EXPECT_GT(refused, 0);
  }
}

FIBER_SIM_TEST(RateLimiterTest, CancellationAndDeadlinesAreLookedAtFirst) {
  RateLimiter limiter(1, 1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(limiter.Acquire(1, absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return limiter.Acquire();
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
  EXPECT_TRUE(limiter.TryAcquire());
}

FIBER_SIM_TEST(RateLimiterTest, AnInfiniteRateLimitsNothing) {
  RateLimiter limiter(std::numeric_limits<double>::infinity(), 1);
  const absl::Duration start = Now();
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(limiter.Acquire().ok());
  EXPECT_EQ(Now(), start);
}

FIBER_TEST_ON(RateLimiterTest, NoMoreThanTheRateGetThrough, 1, 2, 8) {
  constexpr double kRate = 100'000;
  constexpr int kBurst = 10;
  RateLimiter limiter(kRate, kBurst);
  std::atomic<int> taken{0};
  const absl::Duration start = Now();
  std::vector<JoinHandle<void>> fibers;
  for (int me = 0; me < 8; ++me) {
    fibers.push_back(Spawn([&, me] {
      for (int round = 0; round < tests::Scaled(300); ++round) {
        const int n = (me + round) % 3 + 1;
        const Deadline deadline =
            round % 4 == 0 ? Deadline(absl::Microseconds(round % 200)) : Deadline::Never();
        if (round % 7 == 0 ? limiter.TryAcquire(n) : limiter.Acquire(n, deadline).ok()) {
          taken.fetch_add(n, std::memory_order_relaxed);
        }
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  const double allowed = kBurst + kRate * absl::ToDoubleSeconds(Now() - start) + 1;
  EXPECT_LE(taken.load(std::memory_order_relaxed), allowed);
}

TEST(RateLimiterTest, WorksOnPlainThreads) {
  RateLimiter limiter(1000, 1);
  const absl::Duration start = Now();
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(limiter.Acquire().ok());
  EXPECT_GE(Now() - start, absl::Milliseconds(3));
}

TEST(RateLimiterDeathTest, CountsAndRatesOutOfRangeEndTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(RateLimiter(0, 1),
               "fiber::RateLimiter 0x[0-9a-f]+: 0 tokens per second, a burst of 1");
  EXPECT_DEATH(RateLimiter(std::nan(""), 1),
               "fiber::RateLimiter 0x[0-9a-f]+: -?nan tokens per second");
  EXPECT_DEATH(RateLimiter(1, 0),
               "fiber::RateLimiter 0x[0-9a-f]+: 1 tokens per second, a burst of 0");
  RateLimiter limiter(1, 1);
  EXPECT_DEATH((void)limiter.Acquire(-1), "fiber::RateLimiter 0x[0-9a-f]+: Acquire\\(-1\\)");
  EXPECT_DEATH((void)limiter.TryAcquire(-2), "fiber::RateLimiter 0x[0-9a-f]+: TryAcquire\\(-2\\)");
}

TEST(RateLimiterTest, WhoseTokensComeTooLateLetsOthersRun) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    RateLimiter limiter(1e-3, 1);
    EXPECT_TRUE(limiter.TryAcquire());
    bool has_run = false;
    auto other = Spawn([&] { has_run = true; });
    for (int i = 0; i < 1000 && !has_run; ++i) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(limiter.Acquire(1, absl::Seconds(1))));
    }
    EXPECT_TRUE(has_run);
    other.Join();
  });
}

}  // namespace
}  // namespace fiber
