// SPDX-License-Identifier: Apache-2.0
//
// Go's sync: rows 30, 34 and 37 of docs/go_conformance.md.
#include <atomic>
#include <stdexcept>
#include <vector>

#include "fiber/channel.h"
#include "fiber/condition.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/once.h"
#include "fiber/shared_mutex.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "tests/fiber/go/row.h"
#include "tests/parked.h"

namespace fiber {
namespace {

using tests::Times;
using tests::WaitUntilParked;

// Row 30.
GO_ROW(GoLock, ReadersHoldItAllAtTheSameTime, 2000) {
  constexpr int kReaders = 5;
  SharedMutex mutex;
  WaitGroup inside;
  inside.Add(kReaders);
  std::vector<JoinHandle<void>> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.push_back(Spawn([&] {
      ReaderLock hold(mutex);
      inside.Done();
      EXPECT_TRUE(inside.Wait().ok());
    }));
  }
  for (auto& each : readers) each.Join();
}

// Row 30.
GO_ROW(GoLock, AWriterIsAloneAndReadersAreNotBesideOne, 1000) {
  constexpr int kWriter = 10'000;
  SharedMutex mutex;
  std::atomic<int> inside{0};
  const int rounds = Times(5, 200);
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 8; ++i) {
    fibers.push_back(Spawn([&, is_writer = i % 4 == 0] {
      for (int round = 0; round < rounds; ++round) {
        if (is_writer) {
          WriterLock hold(mutex);
          EXPECT_EQ(inside.fetch_add(kWriter, std::memory_order_relaxed), 0);
          Yield();
          inside.fetch_sub(kWriter, std::memory_order_relaxed);
        } else {
          ReaderLock hold(mutex);
          EXPECT_LT(inside.fetch_add(1, std::memory_order_relaxed), kWriter);
          Yield();
          inside.fetch_sub(1, std::memory_order_relaxed);
        }
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(inside.load(std::memory_order_relaxed), 0);
}

bool CanBeWritten(SharedMutex& mutex) {
  if (!mutex.try_lock()) return false;
  mutex.unlock();
  return true;
}
bool CanBeRead(SharedMutex& mutex) {
  if (!mutex.try_lock_shared()) return false;
  mutex.unlock_shared();
  return true;
}

// Row 30.
GO_ROW(GoLock, TriesSayWhoHoldsItAndAWriterThatWaitsKeepsNewReadersOut, 2000) {
  SharedMutex mutex;
  const auto can_be_read = [&] { return Spawn([&] { return CanBeRead(mutex); }).Join(); };
  const auto can_be_written = [&] { return Spawn([&] { return CanBeWritten(mutex); }).Join(); };
  EXPECT_TRUE(can_be_read());
  EXPECT_TRUE(can_be_written());
  {
    WriterLock hold(mutex);
    EXPECT_FALSE(can_be_read());
    EXPECT_FALSE(can_be_written());
  }
  JoinHandle<void> writer;
  {
    ReaderLock hold(mutex);
    EXPECT_TRUE(can_be_read());
    EXPECT_FALSE(can_be_written());
    writer = Spawn([&] { WriterLock hold_too(mutex); });
    WaitUntilParked(writer);
    EXPECT_FALSE(can_be_read());
  }
  writer.Join();
  EXPECT_TRUE(can_be_read());
  EXPECT_TRUE(can_be_written());
}

// Row 30.
GO_ROW(GoLock, ReadersThatCameWhileAWriterHeldItGoInBeforeTheNextWriter, 1000) {
  SharedMutex mutex;
  int written = 0;  // by the mutex
  std::vector<JoinHandle<void>> fibers;
  const auto read = [&] {
    ReaderLock hold(mutex);
    EXPECT_EQ(written, 1);
  };
  {
    WriterLock hold(mutex);
    fibers.push_back(Spawn(read));
    WaitUntilParked(fibers.back());
    fibers.push_back(Spawn([&] {
      WriterLock hold_too(mutex);
      ++written;
    }));
    WaitUntilParked(fibers.back());
    fibers.push_back(Spawn(read));
    WaitUntilParked(fibers.back());
    ++written;
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(Spawn([&] {
              ReaderLock hold(mutex);
              return written;
            }).Join(),
            2);
}

// Row 34.
GO_ROW(GoLock, EachSignalWakesOneInTheOrderOfComing, 1000) {
  constexpr int kWaiters = 4;
  Mutex mutex;
  Condition condition;
  Channel<int> awake(kWaiters);
  std::vector<JoinHandle<void>> waiters;
  for (int i = 0; i < kWaiters; ++i) {
    waiters.push_back(Spawn([&, i] {
      MutexLock hold(mutex);
      EXPECT_TRUE(condition.Wait(mutex).ok());
      EXPECT_TRUE(awake.TrySend(i).ok());
    }));
    WaitUntilParked(waiters.back());
  }
  for (int i = 0; i < kWaiters; ++i) {
    EXPECT_FALSE(awake.TryReceive().ok()) << "nobody wakes without a signal";
    {
      MutexLock hold(mutex);
      condition.Signal();
    }
    EXPECT_EQ(awake.Receive().value(), i);
  }
  {
    MutexLock hold(mutex);
    condition.Signal();  // to nobody, and it is not kept
  }
  for (auto& each : waiters) each.Join();
}

// Row 34.
GO_ROW(GoLock, OneThatComesLaterDoesNotGetASignalOfOneThatWaits, 5000) {
  Mutex mutex;
  Condition condition;
  auto first = Spawn([&] {
    MutexLock hold(mutex);
    return condition.Wait(mutex).ok();
  });
  WaitUntilParked(first);
  JoinHandle<bool> second;
  {
    MutexLock hold(mutex);
    condition.Signal();
  }
  second = Spawn([&] {
    MutexLock hold(mutex);
    return condition.Wait(mutex).ok();
  });
  EXPECT_TRUE(first.Join());
  WaitUntilParked(second);
  EXPECT_FALSE(second.is_done());
  {
    MutexLock hold(mutex);
    condition.Signal();
  }
  EXPECT_TRUE(second.Join());
}

// Row 34.
GO_ROW(GoLock, ASignalToAllWakesAllWhoWaitAndNobodyElse, 500) {
  constexpr int kWaiters = 10;
  Mutex mutex;
  Condition condition;
  int generation = 0;  // by the mutex
  for (int round = 1; round <= 3; ++round) {
    std::vector<JoinHandle<void>> waiters;
    for (int i = 0; i < kWaiters; ++i) {
      waiters.push_back(Spawn([&, round] {
        MutexLock hold(mutex);
        EXPECT_TRUE(condition.Wait(mutex).ok());
        EXPECT_EQ(generation, round);
      }));
      WaitUntilParked(waiters.back());
    }
    {
      MutexLock hold(mutex);
      generation = round;
      condition.SignalAll();
    }
    for (auto& each : waiters) each.Join();
  }
}

// Row 37.
GO_ROW(GoLock, OnceIsOnceAndOthersWaitUntilItIsOver, 10'000) {
  Once once;
  int count = 0;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&] {
      once.Do([&] {
        Yield();
        ++count;
      });
      EXPECT_EQ(count, 1);
    }));
  }
  for (auto& each : fibers) each.Join();
  once.Do([] { ADD_FAILURE(); });
}

// Row 37. An exception does not count as done, unlike a panic: the next one tries.
GO_ROW(GoLock, OnceThatThrewIsTriedAgainByTheNext, 5000) {
  Once once;
  int tries = 0, done = 0, thrown = 0;  // tries and done: by the one whose turn it is
  Mutex mutex;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] {
      try {
        once.Do([&] {
          Yield();
          if (++tries == 1) throw std::runtime_error("not yet");
          ++done;
        });
        EXPECT_EQ(done, 1);
      } catch (const std::runtime_error&) {
        MutexLock hold(mutex);
        ++thrown;
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  MutexLock hold(mutex);
  EXPECT_EQ(thrown, 1);
  EXPECT_EQ(tries, 2);
}

// Row 37.
GO_ROW(GoLock, AValueIsComputedOnceAndItsExceptionRethrownToAll, 5000) {
  std::atomic<int> calls{0};
  OnceValue value([&] {
    Yield();
    return calls.fetch_add(1, std::memory_order_relaxed) + 42;
  });
  OnceValue broken([&]() -> int {
    Yield();
    calls.fetch_add(10, std::memory_order_relaxed);
    throw std::runtime_error("broken");
  });
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] {
      EXPECT_EQ(value(), 42);
      EXPECT_THROW((void)broken(), std::runtime_error);
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(calls.load(std::memory_order_relaxed), 11);
}

}  // namespace
}  // namespace fiber
