// SPDX-License-Identifier: Apache-2.0
//
// Go's sync: rows 29, 31, 32, 35 and 36 of docs/go_conformance.md.
#include <atomic>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "tests/fiber/go/row.h"
#include "tests/parked.h"

namespace fiber {
namespace {

using tests::Times;
using tests::WaitUntilParked;

// Row 29. Handed over for good, and not only in most cases.
GO_ROW(GoSync, APermitThatIsReleasedBelongsToWhoWaitsForIt, 10'000) {
  Semaphore one(0), two(0);
  for (Semaphore* each : {&one, &two}) {
    auto waiter = Spawn([each] { return each->Acquire(); });
    WaitUntilParked(waiter);
    each->Release();
    EXPECT_FALSE(each->TryAcquire());
    EXPECT_TRUE(waiter.Join().ok());
    each->Release();
    EXPECT_TRUE(each->TryAcquire());
  }
}

// Row 31.
GO_ROW(GoSync, ASemaphoreOfOneKeepsAllButOneOut, 1000) {
  Semaphore semaphore(1);
  const int rounds = Times(5, 200);
  int inside = 0;  // by the semaphore
  int entered = 0;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 10; ++i) {
    fibers.push_back(Spawn([&] {
      for (int round = 0; round < rounds; ++round) {
        ASSERT_TRUE(semaphore.Acquire().ok());
        EXPECT_EQ(++inside, 1);
        ++entered;
        if (round % 4 == 0) Yield();
        --inside;
        semaphore.Release();
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(entered, 10 * rounds);
}

bool CanBeTaken(Mutex& mutex) {
  if (!mutex.try_lock()) return false;
  mutex.unlock();
  return true;
}

// Row 31.
GO_ROW(GoSync, AMutexKeepsAllButOneOutAndTriesFailWhileItIsHeld, 1000) {
  Mutex mutex;
  const int rounds = Times(5, 200);
  int inside = 0, entered = 0, tried = 0;  // by the mutex
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 10; ++i) {
    fibers.push_back(Spawn([&] {
      for (int round = 0; round < rounds; ++round) {
        if (round % 3 == 0) {
          if (mutex.try_lock()) {
            EXPECT_EQ(++inside, 1);
            ++tried;
            --inside;
            mutex.unlock();
          }
          continue;
        }
        MutexLock hold(mutex);
        EXPECT_EQ(++inside, 1);
        ++entered;
        if (round % 4 == 0) Yield();
        --inside;
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(entered, 10 * (rounds - (rounds + 2) / 3));
  EXPECT_LE(tried, 10 * ((rounds + 2) / 3));
  EXPECT_TRUE(CanBeTaken(mutex));
  MutexLock hold(mutex);
  EXPECT_FALSE(Spawn([&] { return CanBeTaken(mutex); }).Join());
}

// Row 32. That it takes no longer than so and so is not said here, only that it comes to an end.
GO_ROW(GoSync, OneThatTakesAMutexAgainAtOnceDoesNotKeepAnotherOut, 200) {
  Mutex mutex;
  std::atomic<bool> is_done{false};
  auto hog = Spawn([&] {
    while (!is_done.load(std::memory_order_relaxed)) {
      MutexLock hold(mutex);
      Yield();
    }
  });
  for (int i = 0; i < 10; ++i) {
    MutexLock hold(mutex);
    Yield();
  }
  is_done.store(true, std::memory_order_relaxed);
  hog.Join();
}

// Row 35.
GO_ROW(GoSync, AllWhoWaitForAGroupAreReleasedTogetherAndItIsUsedAgain, 300) {
  constexpr int kWaiters = 16;
  WaitGroup arrived, released;
  for (int round = 0; round < 4; ++round) {
    Channel<int> ended(kWaiters);
    arrived.Add(kWaiters);
    released.Add(kWaiters);
    for (int i = 0; i < kWaiters; ++i) {
      Go([&] {
        arrived.Done();
        EXPECT_TRUE(released.Wait().ok());
        EXPECT_TRUE(ended.TrySend(1).ok());
      });
    }
    ASSERT_TRUE(arrived.Wait().ok());
    for (int i = 0; i < kWaiters; ++i) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(ended.TryReceive().status())) << "released too early";
      released.Done();
    }
    for (int i = 0; i < kWaiters; ++i) ASSERT_TRUE(ended.Receive().ok());
    EXPECT_TRUE(released.Wait().ok()) << "at zero nobody waits";
  }
}

// Row 35.
GO_ROW(GoSync, WaitRacingTheLastDoneSeesAllThatWasDone, 10'000) {
  WaitGroup group;
  int one = 0, two = 0;  // by the group
  group.Add();
  Go([&] {
    one = 1;
    group.Done();
  });
  group.Add();
  Go([&] {
    two = 1;
    group.Done();
  });
  ASSERT_TRUE(group.Wait().ok());
  EXPECT_EQ(one + two, 2);
}

}  // namespace
}  // namespace fiber
