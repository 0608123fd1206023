// SPDX-License-Identifier: Apache-2.0
#include "fiber/held_locks/held_locks.h"

#include <pthread.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/child.h"

// With names that a symbol table has, and frames of their own.
#define WEFT_FRAME extern "C" __attribute__((noinline))

WEFT_FRAME void HeldLocksTestAcquire(absl::FunctionRef<void()> acquire) {
  acquire();
  asm volatile("" ::: "memory");
}
WEFT_FRAME void HeldLocksTestLeave(absl::FunctionRef<void()> leave) {
  leave();
  asm volatile("" ::: "memory");
}

namespace fiber {
namespace {

using held_locks::HeldLock;
using held_locks::Kind;

std::mutex found_mutex;
std::vector<HeldLock>& found = *new std::vector<HeldLock>;  // guarded by found_mutex

std::vector<HeldLock> TakeFound() {
  std::lock_guard<std::mutex> hold(found_mutex);
  return std::exchange(found, {});
}

class HeldLocksTest : public testing::Test {
 protected:
  void SetUp() override {
    held_locks::ForgetReported();
    held_locks::SetHandler([](const HeldLock& held) {
      std::lock_guard<std::mutex> hold(found_mutex);
      found.push_back(held);
    });
  }
  void TearDown() override {
    held_locks::SetHandler(nullptr);
    EXPECT_TRUE(TakeFound().empty());
  }
};

void Nap() { EXPECT_TRUE(Sleep(absl::Milliseconds(1)).ok()); }

// A lock that is held across `leave` is reported once, with both places. On one worker, so that what others do comes after.
void ExpectFound(Kind kind, const void* lock, const std::string& leaving, absl::FunctionRef<void()> acquire,
                 absl::FunctionRef<void()> release, absl::FunctionRef<void()> leave = Nap) {
  sched::Run({.workers = 1}, [&] {
    SetCurrentName("holder");
    HeldLocksTestAcquire(acquire);
    HeldLocksTestLeave(leave);
    release();
  });
  const std::vector<HeldLock> all = TakeFound();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].kind, kind);
  EXPECT_EQ(all[0].address, lock);
  EXPECT_EQ(all[0].leaving, leaving);
  EXPECT_TRUE(absl::StrContains(all[0].fiber, "'holder'")) << all[0].fiber;
  const std::string text = all[0].ToString();
  const size_t acquired = text.find("  HeldLocksTestAcquire\n");
  const size_t left = text.find("  HeldLocksTestLeave\n");
  EXPECT_NE(acquired, std::string::npos) << text;
  EXPECT_NE(left, std::string::npos) << text;
  EXPECT_LT(acquired, left) << text;
  held_locks::ForgetReported();
}

timespec Soon(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  now.tv_sec += 10;
  return now;
}

TEST_F(HeldLocksTest, AMutexHeldAcrossASleepIsFoundHoweverItWasAcquired) {
  std::mutex mutex;
  ExpectFound(Kind::kMutex, mutex.native_handle(), "parks (sleep)", [&] { mutex.lock(); }, [&] { mutex.unlock(); });
  ExpectFound(Kind::kMutex, mutex.native_handle(), "parks (sleep)", [&] { EXPECT_TRUE(mutex.try_lock()); },
              [&] { mutex.unlock(); });
  std::timed_mutex timed;
  ExpectFound(Kind::kMutex, timed.native_handle(), "parks (sleep)",
              [&] { EXPECT_TRUE(timed.try_lock_for(std::chrono::seconds(10))); }, [&] { timed.unlock(); });
  ExpectFound(Kind::kMutex, timed.native_handle(), "parks (sleep)",
              [&] {
                const timespec until = Soon(CLOCK_REALTIME);
                EXPECT_EQ(pthread_mutex_timedlock(timed.native_handle(), &until), 0);
              },
              [&] { timed.unlock(); });
}

TEST_F(HeldLocksTest, ASharedMutexIsFoundEitherWay) {
  std::shared_mutex mutex;
  auto* const lock = static_cast<pthread_rwlock_t*>(mutex.native_handle());
  const auto release = [&] { pthread_rwlock_unlock(lock); };
  ExpectFound(Kind::kWriteLock, lock, "parks (sleep)", [&] { mutex.lock(); }, [&] { mutex.unlock(); });
  ExpectFound(Kind::kWriteLock, lock, "parks (sleep)", [&] { EXPECT_TRUE(mutex.try_lock()); }, release);
  ExpectFound(Kind::kReadLock, lock, "parks (sleep)", [&] { mutex.lock_shared(); }, [&] { mutex.unlock_shared(); });
  ExpectFound(Kind::kReadLock, lock, "parks (sleep)", [&] { EXPECT_TRUE(mutex.try_lock_shared()); }, release);
  const timespec real = Soon(CLOCK_REALTIME);
  const timespec steady = Soon(CLOCK_MONOTONIC);
  ExpectFound(Kind::kReadLock, lock, "parks (sleep)", [&] { EXPECT_EQ(pthread_rwlock_timedrdlock(lock, &real), 0); }, release);
  ExpectFound(Kind::kWriteLock, lock, "parks (sleep)", [&] { EXPECT_EQ(pthread_rwlock_timedwrlock(lock, &real), 0); }, release);
  ExpectFound(Kind::kReadLock, lock, "parks (sleep)",
              [&] { EXPECT_EQ(pthread_rwlock_clockrdlock(lock, CLOCK_MONOTONIC, &steady), 0); }, release);
  ExpectFound(Kind::kWriteLock, lock, "parks (sleep)",
              [&] { EXPECT_EQ(pthread_rwlock_clockwrlock(lock, CLOCK_MONOTONIC, &steady), 0); }, release);
}

TEST_F(HeldLocksTest, ASpinLockIsFound) {
  pthread_spinlock_t lock;
  ASSERT_EQ(pthread_spin_init(&lock, PTHREAD_PROCESS_PRIVATE), 0);
  const void* const address = const_cast<const int*>(&lock);
  ExpectFound(Kind::kSpinLock, address, "parks (sleep)", [&] { pthread_spin_lock(&lock); }, [&] { pthread_spin_unlock(&lock); });
  ExpectFound(Kind::kSpinLock, address, "parks (sleep)", [&] { EXPECT_EQ(pthread_spin_trylock(&lock), 0); },
              [&] { pthread_spin_unlock(&lock); });
}

TEST_F(HeldLocksTest, AYieldAndAReceiveAreFoundToo) {
  std::mutex mutex;
  const auto lock = [&] { mutex.lock(); };
  const auto unlock = [&] { mutex.unlock(); };
  ExpectFound(Kind::kMutex, mutex.native_handle(), "yields", lock, unlock, [] { Yield(); });
  ExpectFound(Kind::kMutex, mutex.native_handle(), "parks (receive)", lock, unlock, [] {
    Channel<int> channel;
    Go([&] { EXPECT_TRUE(channel.Send(1).ok()); });
    EXPECT_TRUE(channel.Receive().ok());
  });
}

// Nobody is kept out: another fiber of the same thread is its owner as well.
TEST_F(HeldLocksTest, ARecursiveMutexThatLetsInAnotherFiberIsFound) {
  std::recursive_mutex mutex;
  bool was_let_in = false;
  sched::Run({.workers = 1}, [&] {
    mutex.lock();
    auto other = Spawn([&] {
      was_let_in = mutex.try_lock();
      if (was_let_in) mutex.unlock();
    });
    other.Join();
    mutex.unlock();
  });
  EXPECT_TRUE(was_let_in);
  const std::vector<HeldLock> all = TakeFound();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].address, mutex.native_handle());
  EXPECT_EQ(all[0].leaving, "parks (join)");
}

TEST_F(HeldLocksTest, ARecursiveMutexIsHeldUntilItIsUnlockedAsOften) {
  std::recursive_mutex mutex;
  sched::Run({.workers = 1}, [&] {
    mutex.lock();
    mutex.lock();
    mutex.unlock();
    mutex.unlock();
    Nap();
    EXPECT_TRUE(TakeFound().empty());
    mutex.lock();
    mutex.lock();
    mutex.unlock();
    Nap();
    EXPECT_EQ(TakeFound().size(), 1u);
    mutex.unlock();
  });
}

struct Slow {
  Slow() { HeldLocksTestLeave(Nap); }
};

__attribute__((noinline)) void UseSlow() { static const Slow slow; }

TEST_F(HeldLocksTest, TheInitialisationOfAStaticVariableThatParksIsFound) {
  sched::Run({.workers = 2}, [] {
    UseSlow();
    Nap();
  });
  const std::vector<HeldLock> all = TakeFound();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].kind, Kind::kStaticGuard);
  EXPECT_TRUE(absl::StrContains(all[0].ToString(), "UseSlow")) << all[0].ToString();
}

__attribute__((noinline)) int Refused() {
  static const int value = [] {
    if (true) throw std::runtime_error("refused");
    return 1;
  }();
  return value;
}

TEST_F(HeldLocksTest, AnInitialisationThatThrewIsOver) {
  sched::Run({.workers = 1}, [] {
    EXPECT_THROW(Refused(), std::runtime_error);
    Nap();
  });
}

TEST_F(HeldLocksTest, ACallOnceThatParksIsFoundAndOneThatIsOverIsNot) {
  std::once_flag flag;
  std::once_flag throwing;
  sched::Run({.workers = 2}, [&] {
    std::call_once(flag, [] { Nap(); });
    std::call_once(flag, [] { ADD_FAILURE(); });
    Nap();
    EXPECT_THROW(std::call_once(throwing, [] { throw std::runtime_error("once"); }), std::runtime_error);
    Nap();
  });
  const std::vector<HeldLock> all = TakeFound();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].kind, Kind::kOnce);
}

TEST_F(HeldLocksTest, WhatIsReleasedBeforeIsNotReported) {
  std::mutex mutex;
  std::shared_mutex shared;
  sched::Run({.workers = 2}, [&] {
    for (int i = 0; i < 100; ++i) {
      {
        std::lock_guard<std::mutex> hold(mutex);
        std::shared_lock<std::shared_mutex> read(shared);
      }
      Yield();
    }
    Nap();
  });
}

TEST_F(HeldLocksTest, AFibersOwnMutexMayBeHeld) {
  sched::Run({.workers = 2}, [] {
    Mutex mutex;
    MutexLock hold(mutex);
    Nap();
  });
}

// Threads hold what they like: nobody else gets onto them.
TEST_F(HeldLocksTest, WhatAPlainThreadHoldsIsNotReported) {
  std::mutex mutex;
  sched::Runtime runtime({.workers = 1});
  std::lock_guard<std::mutex> hold(mutex);
  Nap();
  runtime.Spawn(Nap).Join();
}

// The mutex is given back while it waits, and held again after that; the worker is blocked meanwhile, which is not a park.
TEST_F(HeldLocksTest, AWaitOfAThreadsConditionVariableKeepsTheCount) {
  std::mutex mutex;
  std::condition_variable condition;
  bool is_set = false;  // guarded by mutex
  std::thread setter([&] {
    std::lock_guard<std::mutex> hold(mutex);
    is_set = true;
    condition.notify_one();
  });
  sched::Run({.workers = 1}, [&] {
    {
      std::unique_lock<std::mutex> hold(mutex);
      condition.wait(hold, [&] { return is_set; });
    }
    Nap();
    EXPECT_TRUE(TakeFound().empty());
    std::unique_lock<std::mutex> hold(mutex);
    EXPECT_FALSE(condition.wait_for(hold, std::chrono::milliseconds(1), [] { return false; }));
    Nap();
    EXPECT_EQ(TakeFound().size(), 1u);
  });
  setter.join();
}

// On two workers, which both are kept busy, so that the fibers are on one each.
TEST_F(HeldLocksTest, ALockThatAnotherFiberReleasesOnItsThreadIsForgotten) {
  pthread_rwlock_t lock;
  ASSERT_EQ(pthread_rwlock_init(&lock, nullptr), 0);
  std::atomic<int> turn{0};
  std::mutex mutex;
  sched::Run({.workers = 2}, [&] {
    auto taker = Spawn([&] {
      while (turn.load() != 1) {
      }
      EXPECT_EQ(pthread_rwlock_unlock(&lock), 0);
      turn = 2;
    });
    EXPECT_EQ(pthread_rwlock_wrlock(&lock), 0);
    turn = 1;
    while (turn.load() != 2) {
    }
    taker.Join();
    EXPECT_TRUE(TakeFound().empty());
    mutex.lock();
    Nap();
    mutex.unlock();
    EXPECT_EQ(TakeFound().size(), 1u) << "and what comes after that is noted as before";
  });
  pthread_rwlock_destroy(&lock);
}

TEST_F(HeldLocksTest, APlaceIsReportedOnceAndAnotherToo) {
  std::mutex mutex;
  sched::Run({.workers = 2}, [&] {
    volatile int rounds = 5;  // else compilers make five places of it
    for (int i = 0; i < rounds; ++i) {
      std::lock_guard<std::mutex> hold(mutex);
      Nap();
    }
    EXPECT_EQ(TakeFound().size(), 1u);
    std::lock_guard<std::mutex> hold(mutex);
    Nap();
    EXPECT_EQ(TakeFound().size(), 1u);
  });
}

// More than are noted, and more fibers than keep apart by chance.
TEST_F(HeldLocksTest, ManyLocksOfManyFibersAreNotedAndReleasedInAnyOrder) {
  std::vector<std::mutex> mutexes(100);
  held_locks::SetHandler([](const HeldLock&) { ADD_FAILURE(); });
  sched::Run({.workers = 4}, [&] {
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 50; ++i) {
      fibers.push_back(Spawn([&] {
        for (int round = 0; round < 20; ++round) {
          for (auto& mutex : mutexes) mutex.lock();
          for (auto& mutex : mutexes) mutex.unlock();
          Yield();
        }
      }));
    }
    for (auto& each : fibers) each.Join();
  });
}

TEST_F(HeldLocksTest, WithoutAHandlerBothPlacesAreWrittenToStderr) {
  std::string said;
  tests::InChild(
      [] {
        held_locks::SetHandler(nullptr);
        std::mutex mutex;
        sched::Run({.workers = 1}, [&] {
          HeldLocksTestAcquire([&] { mutex.lock(); });
          HeldLocksTestLeave(Nap);
          mutex.unlock();
        });
        return tests::kFine;
      },
      &said);
  EXPECT_TRUE(absl::StrContains(said, " parks (sleep) and holds a mutex (0x")) << said;
  EXPECT_TRUE(absl::StrContains(said, "  HeldLocksTestAcquire\n")) << said;
  EXPECT_TRUE(absl::StrContains(said, "weft: and parks at\n")) << said;
  EXPECT_TRUE(absl::StrContains(said, "  HeldLocksTestLeave\n")) << said;
}

}  // namespace
}  // namespace fiber
