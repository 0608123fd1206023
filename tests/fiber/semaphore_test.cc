// SPDX-License-Identifier: Apache-2.0
#include "fiber/semaphore.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

// In simulation: long enough that whoever can run has run until it parks.
void LetOthersPark() { (void)Sleep(absl::Microseconds(1)); }

// Takes back all permits there are.
int Drain(Semaphore& semaphore) {
  int count = 0;
  while (semaphore.TryAcquire()) ++count;
  return count;
}

FIBER_SIM_TEST(SemaphoreTest, NeverMoreAreInsideThanThereArePermits) {
  Semaphore slots(2);
  int inside = 0, most = 0, done = 0;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 5; ++i) {
    fibers.push_back(Spawn([&] {
      for (int round = 0; round < 2; ++round) {
        EXPECT_TRUE(slots.Acquire().ok());
        most = std::max(most, ++inside);
        Yield();
        --inside;
        ++done;
        slots.Release();
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_LE(most, 2);
  EXPECT_EQ(done, 10);
  EXPECT_EQ(Drain(slots), 2);
}

FIBER_SIM_TEST(SemaphoreTest, PermitsAreHandedOverInTheOrderOfComing) {
  Semaphore slots(0);
  std::vector<int> order;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 5; ++i) {
    fibers.push_back(Spawn([&, i] {
      EXPECT_TRUE(slots.Acquire().ok());
      order.push_back(i);
    }));
    LetOthersPark();
  }
  for (int i = 0; i < 5; ++i) {
    slots.Release();
    LetOthersPark();
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

FIBER_SIM_TEST(SemaphoreTest, NobodyPassesByWhoWaits) {
  Semaphore slots(1);
  auto big = Spawn([&] { return slots.Acquire(2); });
  LetOthersPark();
  EXPECT_FALSE(slots.TryAcquire());
  EXPECT_TRUE(absl::IsDeadlineExceeded(slots.Acquire(1, absl::Milliseconds(1))));
  EXPECT_TRUE(slots.TryAcquire(0));
  EXPECT_TRUE(slots.Acquire(0).ok());
  slots.Release();
  // The big one owns both from that moment, though it need not have run.
  EXPECT_FALSE(slots.TryAcquire());
  EXPECT_TRUE(big.Join().ok());
  EXPECT_FALSE(slots.TryAcquire());
}

FIBER_SIM_TEST(SemaphoreTest, OneThatGivesUpInFrontLetsSmallerOnesGo) {
  Semaphore slots(2);
  auto big = Spawn([&] { return slots.Acquire(3, absl::Milliseconds(1)); });
  LetOthersPark();
  auto small = Spawn([&] { return slots.Acquire(1); });
  auto other = Spawn([&] { return slots.Acquire(1); });
  LetOthersPark();
  EXPECT_FALSE(small.is_done());
  EXPECT_TRUE(absl::IsDeadlineExceeded(big.Join()));
  EXPECT_TRUE(small.Join().ok());
  EXPECT_TRUE(other.Join().ok());
  EXPECT_EQ(Drain(slots), 0);
}

FIBER_SIM_TEST(SemaphoreTest, OneReleaseServesAsManyAsItCan) {
  Semaphore slots(0);
  auto two = Spawn([&] { return slots.Acquire(2); });
  LetOthersPark();
  auto one = Spawn([&] { return slots.Acquire(1); });
  LetOthersPark();
  auto three = Spawn([&] { return slots.Acquire(3); });
  LetOthersPark();
  slots.Release(4);
  LetOthersPark();
  EXPECT_TRUE(two.is_done());
  EXPECT_TRUE(one.is_done());
  EXPECT_FALSE(three.is_done());
  slots.Release(2);
  EXPECT_TRUE(three.Join().ok());
  EXPECT_EQ(Drain(slots), 0);
}

TEST(SemaphoreTest, TimeoutRacingReleaseNeverLosesAPermit) {
  int schedules = 0, served = 0, expired = 0;
  sim::SimulateInTest({.schedules = 3000, .late_probability = 0.1}, [&] {
    Semaphore slots(0);
    int held = 0;
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 3; ++i) {
      fibers.push_back(Spawn([&] {
        if (slots.Acquire(1, absl::Milliseconds(1)).ok()) {
          ++held;
          ++served;
        } else {
          ++expired;
        }
      }));
    }
    (void)Sleep(absl::Milliseconds(1));
    slots.Release(2);
    for (auto& each : fibers) each.Join();
    EXPECT_EQ(held + Drain(slots), 2);
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(served, 0);
    EXPECT_GT(expired, schedules);  // more than the one in each that must
  }
}

TEST(SemaphoreTest, CancelRacingReleaseNeverLosesAPermit) {
  int schedules = 0, served = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = 3000}, [&] {
    Semaphore slots(0);
    auto waiter = Spawn([&] { return slots.Acquire(2); });
    auto second = Spawn([&] { return slots.Acquire(1); });
    auto releaser = Spawn([&] {
      slots.Release();
      slots.Release(2);
    });
    Yield();
    waiter.Cancel();
    const absl::Status status = waiter.Join();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    EXPECT_TRUE(second.Join().ok());
    releaser.Join();
    EXPECT_EQ(Drain(slots), status.ok() ? 0 : 2);
    ++schedules;
    ++(status.ok() ? served : cancelled);
  });
  if (schedules > 1) {
    EXPECT_GT(served, 0);
    EXPECT_GT(cancelled, 0);
  }
}

FIBER_SIM_TEST(SemaphoreTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Semaphore slots(1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(slots.Acquire(1, absl::ZeroDuration())));
  EXPECT_TRUE(absl::IsDeadlineExceeded(slots.Acquire(0, absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return slots.Acquire(1, absl::ZeroDuration());
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
  EXPECT_EQ(Drain(slots), 1);
}

FIBER_SIM_TEST(SemaphoreTest, MayBeDestroyedAsSoonAsAcquireReturns) {
  auto slots = std::make_unique<Semaphore>(0);
  auto releaser = Spawn([&slots = *slots] { slots.Release(2); });
  EXPECT_TRUE(slots->Acquire(2).ok());
  slots.reset();
}

TEST(SemaphoreTest, MayBeDestroyedUnderAReleaseOnAnotherThread) {
  std::atomic<Semaphore*> shared{nullptr};
  std::atomic<bool> is_over{false};
  std::thread releaser([&] {
    while (!is_over.load(std::memory_order_acquire)) {
      Semaphore* slots = shared.exchange(nullptr, std::memory_order_acq_rel);
      if (slots != nullptr) {
        slots->Release(3);
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 20'000; ++i) {
    auto slots = std::make_unique<Semaphore>(0);
    shared.store(slots.get(), std::memory_order_release);
    switch (i % 3) {
      case 0:
        while (!slots->TryAcquire(3)) std::this_thread::yield();
        break;
      case 1:
        EXPECT_TRUE(slots->Acquire(3).ok());
        break;
      case 2:
        while (!slots->Acquire(3, absl::Microseconds(10 + i % 50)).ok()) {
        }
        break;
    }
  }
  is_over.store(true, std::memory_order_release);
  releaser.join();
}

TEST(SemaphoreTest, PermitsAreConservedUnderLoad) {
  for (const Crew& crew : kCrews) {
    SCOPED_TRACE(testing::Message() << crew.workers << " workers");
    constexpr int kPermits = 3;
    Semaphore slots(kPermits);
    std::atomic<int> inside{0};
    RunCrew(crew, [&](int me) {
      for (int round = 0; round < 1000; ++round) {
        const int n = (me + round) % 3 + 1;
        const Deadline deadline =
            round % 4 == 0 ? Deadline(absl::Microseconds(round % 60)) : Deadline::Never();
        if (round % 7 == 0 ? !slots.TryAcquire(n) : !slots.Acquire(n, deadline).ok()) continue;
        const int now_inside = inside.fetch_add(n, std::memory_order_relaxed) + n;
        EXPECT_LE(now_inside, kPermits);
        if (round % 3 == 0) Yield();
        inside.fetch_sub(n, std::memory_order_relaxed);
        slots.Release(n);
      }
    });
    EXPECT_EQ(Drain(slots), kPermits);
  }
}

FIBER_SIM_TEST(PermitTest, ReturnsWhatItHoldsWhenItEnds) {
  Semaphore slots(3);
  {
    absl::StatusOr<Permit> two = Permit::Acquire(slots, 2);
    ASSERT_TRUE(two.ok());
    EXPECT_EQ(two->count(), 2);
    EXPECT_TRUE(slots.TryAcquire());
    const Permit third(slots, 1, std::adopt_lock);
    EXPECT_FALSE(slots.TryAcquire());
    EXPECT_TRUE(
        absl::IsDeadlineExceeded(Permit::Acquire(slots, 1, absl::Milliseconds(1)).status()));
  }
  EXPECT_EQ(Drain(slots), 3);
}

FIBER_SIM_TEST(PermitTest, GoesWithTheWork) {
  Semaphore slots(1);
  Permit slot = *Permit::Acquire(slots);
  auto work = Spawn([&slots, slot = std::move(slot)]() mutable {
    EXPECT_FALSE(slots.TryAcquire());
    slot.Release();
    slot.Release();  // holds nothing by now
    EXPECT_EQ(slot.count(), 0);
  });
  EXPECT_EQ(slot.count(), 0);  // NOLINT: holds nothing once it has been moved from
  EXPECT_TRUE(slots.Acquire().ok());
  work.Join();
  slot = Permit(slots, 1, std::adopt_lock);
  EXPECT_EQ(slot.count(), 1);
  slot = Permit();
  EXPECT_EQ(Drain(slots), 1);
}

TEST(SemaphoreDeathTest, CountsOutOfRangeEndTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Semaphore(-1), "fiber::Semaphore 0x[0-9a-f]+: Semaphore\\(-1\\)");
  Semaphore slots(1);
  EXPECT_DEATH((void)slots.Acquire(-1), "fiber::Semaphore 0x[0-9a-f]+: Acquire\\(-1\\)");
  EXPECT_DEATH((void)slots.TryAcquire(-2), "fiber::Semaphore 0x[0-9a-f]+: TryAcquire\\(-2\\)");
  EXPECT_DEATH(slots.Release(-3), "fiber::Semaphore 0x[0-9a-f]+: Release\\(-3\\)");
  EXPECT_DEATH(slots.Release(INT_MAX),
               "fiber::Semaphore 0x[0-9a-f]+: Release\\(2147483647\\) with 1 permits");
  EXPECT_EQ(Drain(slots), 1);
}

TEST(SemaphoreDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               auto slots = std::make_unique<Semaphore>(0);
                               Go([&slots = *slots] { (void)slots.Acquire(); });
                               (void)Sleep(absl::Seconds(1));
                               slots.reset();
                             }),
               "fiber::Semaphore 0x[0-9a-f]+ was destroyed while 1 waited for it");
}

}  // namespace
}  // namespace fiber
