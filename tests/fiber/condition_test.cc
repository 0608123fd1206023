// SPDX-License-Identifier: Apache-2.0
#include "fiber/condition.h"

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
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

bool IsFree(Mutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!mutex.try_lock()) return false;
  mutex.unlock();
  return true;
}

// Waits for one signal, and tells when it came.
absl::Status WaitOnce(Condition& condition, Mutex& mutex, Deadline deadline = {}) {
  MutexLock hold(mutex);
  absl::Status status = condition.Wait(mutex, deadline);
  EXPECT_FALSE(Spawn([&] { return IsFree(mutex); }).Join());  // it is ours, however that ended
  return status;
}

// A queue of two places, with a condition for each side.
class Inbox {
 public:
  void Put(int letter) {
    MutexLock hold(mutex_);
    const auto has_room = [this]()
                              ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return letters_.size() < 2; };
    EXPECT_TRUE(taken_.Wait(mutex_, has_room).ok());
    letters_.push_back(letter);
    put_.Signal();
  }
  absl::Status Take(int* letter, Deadline deadline = {}) {
    MutexLock hold(mutex_);
    const auto has_letters = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !letters_.empty();
    };
    if (absl::Status status = put_.Wait(mutex_, has_letters, deadline); !status.ok()) return status;
    *letter = letters_.front();
    letters_.pop_front();
    taken_.Signal();
    return absl::OkStatus();
  }

 private:
  Mutex mutex_;
  Condition put_, taken_;
  std::deque<int> letters_ ABSL_GUARDED_BY(mutex_);
};

FIBER_SIM_TEST(ConditionTest, AQueueWithTwoConditionsLosesNothing) {
  Inbox inbox;
  std::vector<JoinHandle<void>> fibers;
  int sum = 0;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] {
      for (int letter = 1; letter <= 4; ++letter) inbox.Put(letter);
    }));
    fibers.push_back(Spawn([&] {
      for (int k = 0; k < 4; ++k) {
        int letter = 0;
        EXPECT_TRUE(inbox.Take(&letter).ok());
        sum += letter;
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(sum, 30);
}

FIBER_SIM_TEST(ConditionTest, SignalsReachThoseWhoWaitInTheOrderOfComing) {
  Mutex mutex;
  Condition condition;
  std::vector<int> order;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&, i] {
      EXPECT_TRUE(WaitOnce(condition, mutex).ok());
      order.push_back(i);
    }));
    LetOthersPark();
  }
  for (int i = 0; i < 2; ++i) {
    condition.Signal();
    LetOthersPark();
    EXPECT_EQ(order.size(), static_cast<size_t>(i + 1));
  }
  condition.SignalAll();
  for (auto& each : fibers) each.Join();
  EXPECT_TRUE((order == std::vector<int>{0, 1, 2, 3}) || (order == std::vector<int>{0, 1, 3, 2}));
}

FIBER_SIM_TEST(ConditionTest, ASignalWhenNobodyWaitsHasNoEffect) {
  Mutex mutex;
  Condition condition;
  condition.Signal();
  condition.SignalAll();
  EXPECT_TRUE(absl::IsDeadlineExceeded(WaitOnce(condition, mutex, absl::Milliseconds(1))));
}

FIBER_SIM_TEST(ConditionTest, OneThatComesAfterASignalCannotTakeItAway) {
  Mutex mutex;
  Condition condition;
  auto first = Spawn([&] { return WaitOnce(condition, mutex); });
  LetOthersPark();
  condition.Signal();
  // The first need not have run by now.
  EXPECT_TRUE(absl::IsDeadlineExceeded(WaitOnce(condition, mutex, absl::Milliseconds(1))));
  EXPECT_TRUE(first.Join().ok());
}

FIBER_SIM_TEST(ConditionTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Mutex mutex;
  Condition condition;
  EXPECT_TRUE(absl::IsDeadlineExceeded(WaitOnce(condition, mutex, absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    EXPECT_TRUE(absl::IsCancelled(WaitOnce(condition, mutex, absl::ZeroDuration())));
    MutexLock hold(mutex);
    bool is_asked = false;
    const absl::Status status = condition.Wait(mutex, [&] { return is_asked = true; });
    EXPECT_FALSE(is_asked);
    return status;
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
  MutexLock hold(mutex);
  EXPECT_TRUE(absl::IsDeadlineExceeded(condition.Wait(
      mutex, [] { return true; }, absl::ZeroDuration())));
  EXPECT_TRUE(condition
                  .Wait(
                      mutex, [] { return true; }, absl::Milliseconds(1))
                  .ok());
}

FIBER_SIM_TEST(ConditionTest, ThePredicateIsAskedAgainAfterEachSignal) {
  Mutex mutex;
  Condition condition;
  int value = 0;
  auto waiter = Spawn([&] {
    MutexLock hold(mutex);
    return condition.Wait(mutex, [&] { return value == 2; });
  });
  auto late = Spawn([&] {
    MutexLock hold(mutex);
    return condition.Wait(
        mutex, [&] { return value == 9; }, absl::Milliseconds(1));
  });
  for (int i = 0; i < 2; ++i) {
    LetOthersPark();
    EXPECT_FALSE(waiter.is_done());
    MutexLock hold(mutex);
    ++value;
    condition.SignalAll();
  }
  EXPECT_TRUE(waiter.Join().ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.Join()));
}

FIBER_SIM_TEST(ConditionTest, TheMutexIsWaitedForHoweverLateTheDeadlineHasPassed) {
  Mutex mutex;
  Condition condition;
  auto waiter = Spawn([&] {
    const absl::Status status = WaitOnce(condition, mutex, absl::Milliseconds(1));
    return std::pair(status, Now());
  });
  const absl::Duration before = Now();
  LetOthersPark();
  {
    MutexLock hold(mutex);
    (void)Sleep(absl::Seconds(1));
  }
  const auto [status, end] = waiter.Join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_GE(end - before, absl::Seconds(1));
}

// Each signal ends one wait, whatever the deadlines of those who wait.
TEST(ConditionTest, ASignalIsNotLostToOneWhoseDeadlineComesAtThatMoment) {
  int schedules = 0, signalled = 0, expired = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    Mutex mutex;
    Condition condition;
    int waiting = 0, taken = 0;
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 4; ++i) {
      fibers.push_back(Spawn([&, i] {
        MutexLock hold(mutex);
        ++waiting;
        const Deadline deadline = i < 2 ? Deadline(absl::Milliseconds(1)) : Deadline::Never();
        const bool is_signalled = condition.Wait(mutex, deadline).ok();
        EXPECT_TRUE(is_signalled || i < 2);
        taken += is_signalled;
        if (i < 2) ++(is_signalled ? signalled : expired);
      }));
    }
    while (waiting < 4) LetOthersPark();
    { MutexLock hold(mutex); }  // from then on, all have been in the queue
    (void)Sleep(absl::Milliseconds(1));
    condition.Signal();
    condition.Signal();
    while (taken < 2) LetOthersPark();  // forever, if one was lost
    LetOthersPark();
    EXPECT_EQ(taken, 2);
    condition.SignalAll();
    for (auto& each : fibers) each.Join();
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(signalled, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(ConditionTest, ASignalIsNotLostToOneThatIsCancelledAtThatMoment) {
  int schedules = 0, signalled = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000)}, [&] {
    Mutex mutex;
    Condition condition;
    auto hasty = Spawn([&] { return WaitOnce(condition, mutex); });
    LetOthersPark();
    auto patient = Spawn([&] { return WaitOnce(condition, mutex); });
    LetOthersPark();
    auto signaller = Spawn([&] { condition.Signal(); });
    hasty.Cancel();
    const absl::Status status = hasty.Join();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    signaller.Join();
    if (status.ok()) {
      LetOthersPark();
      EXPECT_FALSE(patient.is_done());
      condition.Signal();
    }
    EXPECT_TRUE(patient.Join().ok());
    EXPECT_TRUE(IsFree(mutex));
    ++schedules;
    ++(status.ok() ? signalled : cancelled);
  });
  if (schedules > 1) {
    EXPECT_GT(signalled, 0);
    EXPECT_GT(cancelled, 0);
  }
}

FIBER_EXPLORE_TEST(ConditionTest, WhatIsChangedUnderTheMutexIsNeverMissedOnAnySchedule) {
  Mutex mutex;
  Condition condition;
  int stage = 0;
  const auto pass = [&](int from) {
    MutexLock hold(mutex);
    EXPECT_TRUE(condition.Wait(mutex, [&] { return stage == from; }).ok());
    ++stage;
    condition.Signal();
  };
  auto other = Spawn([&] {
    pass(1);
    pass(3);
  });
  pass(0);
  pass(2);
  other.Join();
  EXPECT_EQ(stage, 4);
}

TEST(ConditionTest, ASignalReachesOneOfTwoOnAnySchedule) {
  int expired = 0, signalled = 0;
  sim::ExploreInTest({.max_late_timers = 1}, [&] {
    Mutex mutex;
    Condition condition;
    bool is_ready = false;
    int taken = 0;
    const auto take = [&](Deadline deadline) {
      MutexLock hold(mutex);
      const bool is_ok = condition
                             .Wait(
                                 mutex, [&] { return is_ready; }, deadline)
                             .ok();
      if (is_ok) is_ready = false;
      taken += is_ok;
      return is_ok;
    };
    auto hasty = Spawn([&] { ++(take(absl::Milliseconds(1)) ? signalled : expired); });
    auto giver = Spawn([&] {
      MutexLock hold(mutex);
      is_ready = true;
      condition.Signal();
    });
    hasty.Join();
    giver.Join();
    EXPECT_TRUE(taken == 1 || take({}));
  });
  EXPECT_GT(signalled, 0);
  EXPECT_GT(expired, 0);
}

FIBER_SIM_TEST(ConditionTest, MayBeDestroyedAsSoonAsNobodyWaits) {
  Mutex mutex;
  auto condition = std::make_unique<Condition>();
  bool is_ready = false;
  auto signaller = Spawn([&, &condition = *condition] {
    MutexLock hold(mutex);
    is_ready = true;
    condition.Signal();
  });
  {
    MutexLock hold(mutex);
    EXPECT_TRUE(condition->Wait(mutex, [&] { return is_ready; }).ok());
  }
  condition.reset();
}

TEST(ConditionTest, MayBeDestroyedUnderASignalOnAnotherThread) {
  struct Shared {
    Mutex mutex;
    Condition condition;
    bool is_waiting ABSL_GUARDED_BY(mutex) = false;
  };
  std::atomic<Shared*> slot{nullptr};
  const int rounds = tests::Scaled(20'000);
  std::thread other([&] {
    for (int i = 0; i < rounds; ++i) {
      Shared* shared;
      while ((shared = slot.exchange(nullptr, std::memory_order_acq_rel)) == nullptr) {
        std::this_thread::yield();
      }
      for (bool is_waiting = false; !is_waiting;) {
        MutexLock hold(shared->mutex);
        is_waiting = shared->is_waiting;
      }
      i % 2 == 0 ? shared->condition.Signal() : shared->condition.SignalAll();
    }
  });
  for (int i = 0; i < rounds; ++i) {
    auto shared = std::make_unique<Shared>();
    slot.store(shared.get(), std::memory_order_release);
    MutexLock hold(shared->mutex);
    shared->is_waiting = true;
    EXPECT_TRUE(shared->condition.Wait(shared->mutex).ok());
  }
  other.join();
}

FIBER_TEST_ON(ConditionTest, NoLetterIsLostUnderLoad, 1, 2, 8) {
  const int rounds = tests::Scaled(1000);
  Inbox inbox;
  std::atomic<int64_t> sum{0};
  RunTogether(8, 2, [&](int me) {
    for (int round = 0; round < rounds; ++round) {
      if (me % 2 == 0) {
        inbox.Put(round);
        continue;
      }
      int letter = 0;
      while (!inbox.Take(&letter, absl::Microseconds(1 + round % 40)).ok()) {
      }
      sum.fetch_add(letter);
    }
  });
  EXPECT_EQ(sum.load(), int64_t{5} * rounds * (rounds - 1) / 2);
}

TEST(ConditionDeathTest, WaitingWithoutTheMutexEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto wait = []() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Mutex mutex;
    Condition condition;
    (void)condition.Wait(mutex);
  };
  EXPECT_DEATH(wait(), "fiber::Mutex 0x[0-9a-f]+: unlock\\(\\) of one that nobody holds");
}

TEST(ConditionDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               Mutex mutex;
                               auto condition = std::make_unique<Condition>();
                               for (int i = 0; i < 2; ++i) {
                                 Go([&, &condition = *condition] {
                                   MutexLock hold(mutex);
                                   (void)condition.Wait(mutex);
                                 });
                               }
                               (void)Sleep(absl::Seconds(1));
                               condition.reset();
                             }),
               "fiber::Condition 0x[0-9a-f]+ was destroyed while 2 waited for it");
}

}  // namespace
}  // namespace fiber
