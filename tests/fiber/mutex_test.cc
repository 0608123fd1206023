// SPDX-License-Identifier: Apache-2.0
#include "fiber/mutex.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
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

// In simulation: long enough that whoever can run has run until it parks.
void LetOthersPark() { (void)Sleep(absl::Microseconds(1)); }

// Locks and unlocks a mutex from the outside of clang's analysis, where a test does both in
// different fibers or by condition.
void Take(Mutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.lock(); }
void Give(Mutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.unlock(); }
bool IsFree(Mutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!mutex.try_lock()) return false;
  mutex.unlock();
  return true;
}

// A counter that notices when two change it at once.
class Account {
 public:
  void Add() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    EXPECT_FALSE(is_open_);
    is_open_ = true;
    const int before = balance_;
    Yield();
    balance_ = before + 1;
    is_open_ = false;
  }
  int balance() {
    MutexLock hold(mutex);
    return balance_;
  }

  Mutex mutex;

 private:
  bool is_open_ ABSL_GUARDED_BY(mutex) = false;
  int balance_ ABSL_GUARDED_BY(mutex) = 0;
};

FIBER_SIM_TEST(MutexTest, OneHoldsItAtATimeAndEverybodyGetsIt) {
  Account account;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&] {
      for (int round = 0; round < 3; ++round) {
        MutexLock hold(account.mutex);
        account.Add();
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(account.balance(), 12);
  EXPECT_TRUE(IsFree(account.mutex));
}

FIBER_SIM_TEST(MutexTest, TryLockTakesItOnlyIfNobodyHoldsIt) {
  Mutex mutex;
  Take(mutex);
  EXPECT_FALSE(IsFree(mutex));
  EXPECT_FALSE(Spawn([&] { return IsFree(mutex); }).Join());
  Give(mutex);
  EXPECT_TRUE(Spawn([&] { return IsFree(mutex); }).Join());
}

FIBER_SIM_TEST(MutexTest, WhoUnlocksNeedNotBeWhoLocked) {
  Mutex mutex;
  Take(mutex);
  auto other = Spawn([&] { Give(mutex); });
  Take(mutex);
  Give(mutex);
}

FIBER_SIM_TEST(MutexTest, StandardGuardsTakeIt) {
  Mutex a, b;
  auto child = Spawn([&] {
    std::scoped_lock both(b, a);
    Yield();
  });
  {
    std::scoped_lock both(a, b);
    Yield();
  }
  std::unique_lock<Mutex> hold(a);
  EXPECT_TRUE(hold.owns_lock());
}

FIBER_SIM_TEST(MutexTest, LockGivesUpAtItsDeadline) {
  Mutex mutex;
  Take(mutex);
  const absl::Duration before = Now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.Lock(absl::Milliseconds(3))));
  EXPECT_EQ(Now() - before, absl::Milliseconds(3));
  Give(mutex);
  EXPECT_TRUE(mutex.Lock(absl::Milliseconds(3)).ok());
  mutex.AssertHeld();
  MutexLock hold(mutex, std::adopt_lock);
  EXPECT_EQ(Now() - before, absl::Milliseconds(3));
}

FIBER_SIM_TEST(MutexTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Mutex mutex;
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.Lock(absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return mutex.Lock(absl::ZeroDuration());
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
  EXPECT_TRUE(IsFree(mutex));
}

FIBER_SIM_TEST(MutexTest, OnlyTheLockThatCanFailIsInterruptedByCancellation) {
  Mutex mutex;
  Take(mutex);
  bool is_inside = false;
  auto stubborn = Spawn([&] {
    MutexLock hold(mutex);
    is_inside = true;
  });
  auto polite = Spawn([&] { return mutex.Lock(Deadline::Never()); });
  LetOthersPark();
  stubborn.Cancel();
  polite.Cancel();
  EXPECT_TRUE(absl::IsCancelled(polite.Join()));
  LetOthersPark();
  EXPECT_FALSE(is_inside);
  Give(mutex);
  stubborn.Join();
  EXPECT_TRUE(is_inside);
}

TEST(MutexTest, ADeadlineRacingUnlockNeitherLosesTheMutexNorGivesItToTwo) {
  int schedules = 0, taken = 0, expired = 0;
  sim::SimulateInTest({.schedules = 3000, .late_probability = 0.1}, [&] {
    Account account;
    Take(account.mutex);
    std::vector<JoinHandle<void>> fibers;
    int locked = 0;
    for (int i = 0; i < 3; ++i) {
      fibers.push_back(Spawn([&] {
        if (!account.mutex.Lock(absl::Milliseconds(1)).ok()) {
          ++expired;
          return;
        }
        ++taken;
        ++locked;
        account.mutex.AssertHeld();
        MutexLock hold(account.mutex, std::adopt_lock);
        account.Add();
      }));
    }
    auto patient = Spawn([&] {
      MutexLock hold(account.mutex);
      account.Add();
    });
    (void)Sleep(absl::Milliseconds(1));
    Give(account.mutex);
    for (auto& each : fibers) each.Join();
    patient.Join();
    EXPECT_EQ(account.balance(), locked + 1);
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(taken, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(MutexTest, ACancellationRacingUnlockNeitherLosesTheMutexNorGivesItToTwo) {
  int schedules = 0, taken = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = 3000}, [&] {
    Account account;
    Take(account.mutex);
    auto waiter = Spawn([&] {
      const absl::Status status = account.mutex.Lock(Deadline::Never());
      if (status.ok()) {
        account.mutex.AssertHeld();
        MutexLock hold(account.mutex, std::adopt_lock);
        account.Add();
      }
      return status;
    });
    auto patient = Spawn([&] {
      MutexLock hold(account.mutex);
      account.Add();
    });
    Yield();
    auto giver = Spawn([&] { Give(account.mutex); });
    waiter.Cancel();
    const absl::Status status = waiter.Join();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    patient.Join();
    giver.Join();
    EXPECT_EQ(account.balance(), status.ok() ? 2 : 1);
    ++schedules;
    ++(status.ok() ? taken : cancelled);
  });
  if (schedules > 1) {
    EXPECT_GT(taken, 0);
    EXPECT_GT(cancelled, 0);
  }
}

// Without preemption, so that who runs next is known: the one that runs, until it parks.
constexpr sim::SimOptions kNoPreemption = {.schedules = 200, .preempt_probability = 0};

TEST(MutexTest, WhoRunsMayTakeItBeforeOneThatWaits) {
  sim::SimulateInTest(kNoPreemption, [] {
    Mutex mutex;
    Take(mutex);
    bool is_inside = false;
    auto waiter = Spawn([&] {
      MutexLock hold(mutex);
      is_inside = true;
    });
    LetOthersPark();
    for (int i = 0; i < 3; ++i) {
      Give(mutex);
      Take(mutex);
      LetOthersPark();  // the waiter tries, and waits again
      EXPECT_FALSE(is_inside);
    }
    Give(mutex);
    waiter.Join();
    EXPECT_TRUE(is_inside);
  });
}

TEST(MutexTest, ItIsHandedOverInOrderOnceSomebodyHasWaitedForAMillisecond) {
  int schedules = 0, yielded = 0;
  sim::SimulateInTest(kNoPreemption, [&] {
    Mutex mutex;
    Take(mutex);
    std::vector<int> order;
    std::vector<JoinHandle<void>> waiters;
    for (int i = 0; i < 3; ++i) {
      waiters.push_back(Spawn([&, i] {
        MutexLock hold(mutex);
        order.push_back(i);
        (void)Sleep(absl::Microseconds(10));
      }));
      LetOthersPark();
    }
    (void)Sleep(absl::Milliseconds(1));
    Give(mutex);
    Take(mutex);      // barges a last time
    LetOthersPark();  // the first of them has waited for long, and has lost
    Give(mutex);
    // It is the first one's by now, whether it has run or not: no newcomer gets in.
    ++schedules;
    yielded += order == std::vector<int>{0};
    EXPECT_FALSE(IsFree(mutex));
    Take(mutex);
    EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
    Give(mutex);
    for (auto& each : waiters) each.Join();
  });
  // Who hands over yields. In simulation a yield may come back at once.
  EXPECT_TRUE(schedules <= 1 || yielded > schedules / 4) << yielded;
}

TEST(MutexTest, WhoRunsMayTakeItFirstAgainWhenThoseWhoWaitHaveNotWaitedForLong) {
  sim::SimulateInTest(kNoPreemption, [] {
    Mutex mutex;
    Take(mutex);
    bool is_handed_over = false;
    auto starved = Spawn([&] {
      Take(mutex);
      Give(mutex);
      is_handed_over = !IsFree(mutex);
    });
    (void)Sleep(absl::Milliseconds(1));
    Give(mutex);
    Take(mutex);
    LetOthersPark();  // it starves
    std::vector<JoinHandle<void>> late;
    std::vector<bool> is_free_after;
    for (int i = 0; i < 2; ++i) {
      late.push_back(Spawn([&] {
        Take(mutex);
        LetOthersPark();
        Give(mutex);
        is_free_after.push_back(IsFree(mutex));
      }));
      LetOthersPark();
    }
    Give(mutex);  // to the starved one, which hands over to the first that came late: enough
    starved.Join();
    for (auto& each : late) each.Join();
    EXPECT_TRUE(is_handed_over);
    EXPECT_EQ(is_free_after, (std::vector<bool>{true, true}));
  });
}

TEST(MutexTest, ThoseWhoWaitKeepTheirOrderHoweverOftenOthersComeFirst) {
  sim::SimulateInTest(kNoPreemption, [] {
    Mutex mutex;
    Take(mutex);
    std::vector<int> order;
    std::vector<JoinHandle<void>> waiters;
    for (int i = 0; i < 3; ++i) {
      waiters.push_back(Spawn([&, i] {
        MutexLock hold(mutex);
        order.push_back(i);
      }));
      LetOthersPark();
    }
    for (int i = 0; i < 4; ++i) {
      for (int again = 0; again < 3; ++again) {
        Give(mutex);
        Take(mutex);
      }
      LetOthersPark();  // the first, woken once, takes its place in front again
    }
    EXPECT_TRUE(order.empty());
    Give(mutex);
    for (auto& each : waiters) each.Join();
    EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
  });
}

TEST(MutexTest, AStarvedWaiterThatGivesUpDoesNotKeepTheMutexHandedOver) {
  sim::SimulateInTest(kNoPreemption, [] {
    Mutex mutex;
    Take(mutex);
    auto starved = Spawn([&] { return mutex.Lock(absl::Milliseconds(2)); });
    (void)Sleep(absl::Milliseconds(1));
    Give(mutex);
    Take(mutex);
    (void)Sleep(absl::Milliseconds(3));
    EXPECT_TRUE(absl::IsDeadlineExceeded(starved.Join()));
    bool is_inside = false;
    auto waiter = Spawn([&] {
      MutexLock hold(mutex);
      is_inside = true;
    });
    LetOthersPark();
    Give(mutex);
    Take(mutex);  // barging is allowed again
    EXPECT_FALSE(is_inside);
    Give(mutex);
    waiter.Join();
    EXPECT_TRUE(IsFree(mutex));
  });
}

// Go's TestMutexFairness, in virtual time: a fiber that holds it nearly always does not starve
// another.
TEST(MutexTest, OneThatHoldsItNearlyAlwaysDoesNotStarveAnother) {
  for (const double preempt_probability : {0.0, 0.25}) {
    sim::SimulateInTest({.schedules = 200, .preempt_probability = preempt_probability}, [] {
      Mutex mutex;
      bool is_over = false;
      auto hog = Spawn([&] {
        while (!is_over) {
          MutexLock hold(mutex);
          (void)Sleep(absl::Microseconds(100));
        }
      });
      const absl::Duration before = Now();
      for (int i = 0; i < 10; ++i) {
        (void)Sleep(absl::Microseconds(100));
        MutexLock hold(mutex);
      }
      is_over = true;
      hog.Join();
      // Each time: 1 ms, the hold that ends after it, one more that it loses to, and its own sleep.
      EXPECT_LE(Now() - before, 10 * absl::Microseconds(1400));
    });
  }
}

FIBER_SIM_TEST(MutexTest, MayBeDestroyedByTheLastWhoHeldIt) {
  struct Shared {
    Mutex mutex;
    int users = 3;
  };
  auto* shared = new Shared;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([shared] {
      Take(shared->mutex);
      const bool is_last = --shared->users == 0;
      Give(shared->mutex);
      if (is_last) delete shared;
    }));
  }
  for (auto& each : fibers) each.Join();
}

TEST(MutexTest, MayBeDestroyedUnderAnUnlockOnAnotherThread) {
  struct Shared {
    Mutex mutex;
    int users = 2;
  };
  const auto use = [](Shared* shared, int round) {
    if (round % 3 == 0) {
      while (!shared->mutex.Lock(absl::Microseconds(10 + round % 40)).ok()) {
      }
    } else {
      Take(shared->mutex);
    }
    if (round % 5 == 0) std::this_thread::yield();
    const bool is_last = --shared->users == 0;
    Give(shared->mutex);
    if (is_last) delete shared;
  };
  std::atomic<Shared*> slot{nullptr};
  constexpr int kRounds = 20'000;
  std::thread other([&] {
    for (int i = 0; i < kRounds; ++i) {
      Shared* shared;
      while ((shared = slot.exchange(nullptr, std::memory_order_acq_rel)) == nullptr) {
        std::this_thread::yield();
      }
      use(shared, i);
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    auto* shared = new Shared;
    while (slot.load(std::memory_order_acquire) != nullptr) std::this_thread::yield();
    slot.store(shared, std::memory_order_release);
    use(shared, i + 1);
  }
  other.join();
}

TEST(MutexTest, NothingIsLostUnderLoad) {
  for (const Crew& crew : kCrews) {
    SCOPED_TRACE(testing::Message() << crew.workers << " workers");
    constexpr int kRounds = 2000;
    Mutex mutex;
    int64_t counter = 0;
    std::atomic<int64_t> expected{0};
    RunCrew(crew, [&](int me) {
      for (int round = 0; round < kRounds; ++round) {
        if (round % 5 == 1) {
          if (!mutex.try_lock()) continue;
          ++counter;
          mutex.unlock();
        } else if (round % 5 == 2) {
          if (!mutex.Lock(absl::Microseconds(round % 30)).ok()) continue;
          mutex.AssertHeld();
          MutexLock hold(mutex, std::adopt_lock);
          ++counter;
        } else {
          MutexLock hold(mutex);
          if ((round + me) % 7 == 0) Yield();
          ++counter;
        }
        expected.fetch_add(1, std::memory_order_relaxed);
      }
    });
    EXPECT_EQ(counter, expected.load(std::memory_order_relaxed));
    EXPECT_TRUE(IsFree(mutex));
  }
}

// Long holds on real clocks, so that there is starvation and hand-over between threads and fibers.
TEST(MutexTest, NobodyStarvesWhileOthersHoldItNearlyAlways) {
  for (const Crew& crew : kCrews) {
    SCOPED_TRACE(testing::Message() << crew.workers << " workers");
    Mutex mutex;
    std::atomic<int> left{crew.fibers + crew.threads};
    int64_t counter = 0;
    RunCrew(crew, [&](int) {
      for (int round = 0; round < 10; ++round) {
        MutexLock hold(mutex);
        const int64_t before = counter;
        const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
        while (std::chrono::steady_clock::now() < end) {
        }
        counter = before + 1;
      }
      left.fetch_sub(1, std::memory_order_relaxed);
    });
    EXPECT_EQ(left.load(std::memory_order_relaxed), 0);
    EXPECT_EQ(counter, 10 * (crew.fibers + crew.threads));
  }
}

TEST(MutexDeathTest, UnlockingOneThatNobodyHoldsEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Mutex mutex;
  EXPECT_DEATH(Give(mutex), "fiber::Mutex 0x[0-9a-f]+: unlock\\(\\) of one that nobody holds");
  EXPECT_DEATH(mutex.AssertHeld(),
               "fiber::Mutex 0x[0-9a-f]+: AssertHeld\\(\\) of one that nobody holds");
  Take(mutex);
  Give(mutex);
  EXPECT_DEATH(Give(mutex), "unlock\\(\\) of one that nobody holds");
}

TEST(MutexDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               auto mutex = std::make_unique<Mutex>();
                               Take(*mutex);
                               for (int i = 0; i < 2; ++i) Go([&mutex = *mutex] { Take(mutex); });
                               (void)Sleep(absl::Seconds(1));
                               mutex.reset();
                             }),
               "fiber::Mutex 0x[0-9a-f]+ was destroyed while 2 waited for it");
}

}  // namespace
}  // namespace fiber
