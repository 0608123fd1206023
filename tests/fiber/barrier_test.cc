// SPDX-License-Identifier: Apache-2.0
#include "fiber/barrier.h"

#include <atomic>
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
#include "sched/gtest.h"
#include "tests/fiber/crew.h"
#include "tests/scale.h"

namespace fiber {
namespace {

// In simulation: long enough that whoever can run has run until it parks.
void LetOthersPark() { (void)Sleep(absl::Microseconds(1)); }

FIBER_SIM_TEST(BarrierTest, NobodyIsAPhaseAhead) {
  constexpr int kParties = 4;
  Barrier barrier(kParties);
  std::vector<int> phases(kParties, 0);
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < kParties; ++i) {
    fibers.push_back(Spawn([&, i] {
      for (int phase = 1; phase <= 4; ++phase) {
        phases[i] = phase;
        EXPECT_TRUE(barrier.ArriveAndWait().ok());
        for (const int each : phases) {
          EXPECT_GE(each, phase);
          EXPECT_LE(each, phase + 1);
        }
      }
    }));
  }
  for (auto& each : fibers) each.Join();
}

FIBER_SIM_TEST(BarrierTest, OnePartyNeverWaits) {
  Barrier barrier(1);
  const absl::Duration before = Now();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(barrier.ArriveAndWait().ok());
  EXPECT_EQ(Now(), before);
}

FIBER_SIM_TEST(BarrierTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Barrier barrier(2);
  EXPECT_TRUE(absl::IsDeadlineExceeded(barrier.ArriveAndWait(absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return barrier.ArriveAndWait(absl::ZeroDuration());
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
  // Neither has arrived.
  EXPECT_TRUE(absl::IsDeadlineExceeded(barrier.ArriveAndWait(absl::Milliseconds(1))));
}

FIBER_SIM_TEST(BarrierTest, OneThatGivesUpHasNotArrived) {
  Barrier barrier(3);
  auto patient = Spawn([&] { return barrier.ArriveAndWait(); });
  auto cancelled = Spawn([&] { return barrier.ArriveAndWait(); });
  LetOthersPark();
  cancelled.Cancel();
  EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(barrier.ArriveAndWait(absl::Milliseconds(1))));
  EXPECT_FALSE(patient.is_done());
  auto second = Spawn([&] { return barrier.ArriveAndWait(); });
  EXPECT_TRUE(barrier.ArriveAndWait().ok());
  EXPECT_TRUE(patient.Join().ok());
  EXPECT_TRUE(second.Join().ok());
}

// Three parties, one of them hasty. Whatever it saw, the others agree with it: a phase is complete
// for all of its parties, or for none.
TEST(BarrierTest, ADeadlineRacingTheLastArrivalIsOneOrTheOtherForAll) {
  int schedules = 0, passed = 0, expired = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    Barrier barrier(3);
    auto hasty = Spawn([&] { return barrier.ArriveAndWait(absl::Milliseconds(1)); });
    auto patient = Spawn([&] { return barrier.ArriveAndWait(); });
    auto late = Spawn([&] {
      (void)Sleep(absl::Milliseconds(1));
      return barrier.ArriveAndWait();
    });
    const absl::Status status = hasty.Join();
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    if (!status.ok()) {
      (void)Sleep(absl::Seconds(1));
      EXPECT_FALSE(patient.is_done());
      EXPECT_FALSE(late.is_done());
      EXPECT_TRUE(barrier.ArriveAndWait().ok());  // in its place
    }
    EXPECT_TRUE(patient.Join().ok());
    EXPECT_TRUE(late.Join().ok());
    EXPECT_TRUE(absl::IsDeadlineExceeded(barrier.ArriveAndWait(absl::Milliseconds(1))));
    ++schedules;
    ++(status.ok() ? passed : expired);
  });
  if (schedules > 1) {
    EXPECT_GT(passed, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(BarrierTest, ACancellationRacingTheLastArrivalIsOneOrTheOtherForAll) {
  int schedules = 0, passed = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000)}, [&] {
    Barrier barrier(2);
    auto hasty = Spawn([&] { return barrier.ArriveAndWait(); });
    auto late = Spawn([&] { return barrier.ArriveAndWait(); });
    Yield();
    hasty.Cancel();
    const absl::Status status = hasty.Join();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    if (!status.ok()) {
      EXPECT_FALSE(late.is_done());
      EXPECT_TRUE(barrier.ArriveAndWait().ok());
    }
    EXPECT_TRUE(late.Join().ok());
    ++schedules;
    ++(status.ok() ? passed : cancelled);
  });
  if (schedules > 1) {
    EXPECT_GT(passed, 0);
    EXPECT_GT(cancelled, 0);
  }
}

FIBER_EXPLORE_TEST(BarrierTest, TwoPhasesOfTwoPassOnAnySchedule) {
  Barrier barrier(2);
  int phase_of_other = 0, phase = 0;
  const auto pass = [&](int& mine, const int& others) {
    for (int i = 1; i <= 2; ++i) {
      mine = i;
      EXPECT_TRUE(barrier.ArriveAndWait().ok());
      EXPECT_TRUE(others == i || others == i + 1);
    }
  };
  auto other = Spawn([&] { pass(phase_of_other, phase); });
  pass(phase, phase_of_other);
  other.Join();
}

TEST(BarrierTest, ATimeoutIsOneOrTheOtherForAllOnAnySchedule) {
  int passed = 0, expired = 0;
  sim::ExploreInTest({.max_late_timers = 1}, [&] {
    Barrier barrier(2);
    auto other = Spawn([&] { return barrier.ArriveAndWait(); });
    const absl::Status status = barrier.ArriveAndWait(absl::Milliseconds(1));
    if (!status.ok()) {
      EXPECT_FALSE(other.is_done());
      EXPECT_TRUE(barrier.ArriveAndWait().ok());
    }
    EXPECT_TRUE(other.Join().ok());
    ++(status.ok() ? passed : expired);
  });
  EXPECT_GT(passed, 0);
  EXPECT_GT(expired, 0);
}

FIBER_SIM_TEST(BarrierTest, MayBeDestroyedByOneThatWaitedForTheLast) {
  auto barrier = std::make_unique<Barrier>(2);
  auto waiter = Spawn([&] {
    EXPECT_TRUE(barrier->ArriveAndWait().ok());
    barrier.reset();
  });
  LetOthersPark();
  EXPECT_TRUE(barrier->ArriveAndWait().ok());
}

TEST(BarrierTest, MayBeDestroyedUnderTheLastArrivalOnAnotherThread) {
  std::atomic<Barrier*> slot{nullptr};
  const int rounds = tests::Scaled(20'000);
  std::thread other([&] {
    for (int i = 0; i < rounds; ++i) {
      Barrier* barrier;
      while ((barrier = slot.exchange(nullptr, std::memory_order_acq_rel)) == nullptr) {
        std::this_thread::yield();
      }
      EXPECT_TRUE(barrier->ArriveAndWait().ok());
    }
  });
  for (int i = 0; i < rounds; ++i) {
    auto barrier = std::make_unique<Barrier>(2);
    slot.store(barrier.get(), std::memory_order_release);
    EXPECT_TRUE(barrier->ArriveAndWait().ok());
  }
  other.join();
}

FIBER_TEST_ON(BarrierTest, EveryPhaseIsSeenWholeByItsParties, 1, 2, 8) {
  constexpr int kParties = 8;
  const int rounds = tests::Scaled(500);
  Barrier barrier(kParties);
  std::vector<int> values(kParties, 0);
  RunTogether(kParties - 2, 2, [&](int me) {
    const auto pass = [&](int round) {
      // Some give up before they pass.
      for (int i = 0; i < 2 && (round + me) % 3 == 0; ++i) {
        if (barrier.ArriveAndWait(absl::Microseconds(1 + (round + me) % 40)).ok()) return;
      }
      EXPECT_TRUE(barrier.ArriveAndWait().ok());
    };
    for (int round = 1; round <= rounds; ++round) {
      values[me] = round;
      pass(round);
      for (const int value : values) EXPECT_EQ(value, round);
      pass(round);
    }
  });
}

TEST(BarrierDeathTest, ABarrierForNobodyEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Barrier(0), "fiber::Barrier 0x[0-9a-f]+: made for 0 parties: there must be one");
  EXPECT_DEATH(Barrier(-1), "made for -1 parties");
}

TEST(BarrierDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               auto barrier = std::make_unique<Barrier>(3);
                               for (int i = 0; i < 2; ++i) {
                                 Go([&barrier = *barrier] { (void)barrier.ArriveAndWait(); });
                               }
                               (void)Sleep(absl::Seconds(1));
                               barrier.reset();
                             }),
               "fiber::Barrier 0x[0-9a-f]+ was destroyed while 2 waited for it");
}

}  // namespace
}  // namespace fiber
