// SPDX-License-Identifier: Apache-2.0
#include "fiber/shared_mutex.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
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
#include "sched/gtest.h"
#include "tests/fiber/crew.h"
#include "tests/scale.h"

namespace fiber {
namespace {

// In simulation: long enough that whoever can run has run until it parks.
void LetOthersPark() { (void)Sleep(absl::Microseconds(1)); }

// From the outside of clang's analysis, where a test locks and unlocks in different fibers or by
// condition.
void Take(SharedMutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.lock(); }
void Give(SharedMutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.unlock(); }
void TakeShared(SharedMutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.lock_shared(); }
void GiveShared(SharedMutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex.unlock_shared(); }
bool IsFree(SharedMutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!mutex.try_lock()) return false;
  mutex.unlock();
  return true;
}
bool IsReadable(SharedMutex& mutex) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (!mutex.try_lock_shared()) return false;
  mutex.unlock_shared();
  return true;
}

// Notices when a writer is not alone.
class Ledger {
 public:
  void Read() ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    const int readers = readers_.fetch_add(1) + 1;
    EXPECT_EQ(writers_.load(), 0);
    int most = most_readers_.load();
    while (most < readers && !most_readers_.compare_exchange_weak(most, readers)) {
    }
    const int64_t before = version_;
    Yield();
    EXPECT_EQ(version_, before);
    EXPECT_EQ(writers_.load(), 0);
    readers_.fetch_sub(1);
  }
  void Write() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    EXPECT_EQ(writers_.fetch_add(1), 0);
    EXPECT_EQ(readers_.load(), 0);
    const int64_t before = version_;
    Yield();
    version_ = before + 1;
    EXPECT_EQ(readers_.load(), 0);
    writers_.fetch_sub(1);
  }
  void LockAndRead() {
    ReaderLock hold(mutex);
    Read();
  }
  void LockAndWrite() {
    WriterLock hold(mutex);
    Write();
  }
  absl::Status LockAndReadBefore(Deadline deadline) {
    if (absl::Status status = mutex.LockShared(deadline); !status.ok()) return status;
    mutex.AssertReaderHeld();
    ReaderLock hold(mutex, std::adopt_lock);
    Read();
    return absl::OkStatus();
  }
  absl::Status LockAndWriteBefore(Deadline deadline) {
    if (absl::Status status = mutex.Lock(deadline); !status.ok()) return status;
    mutex.AssertHeld();
    WriterLock hold(mutex, std::adopt_lock);
    Write();
    return absl::OkStatus();
  }
  int64_t version() {
    ReaderLock hold(mutex);
    return version_;
  }
  int most_readers() const { return most_readers_.load(); }

  SharedMutex mutex;

 private:
  std::atomic<int> readers_{0}, writers_{0}, most_readers_{0};
  int64_t version_ ABSL_GUARDED_BY(mutex) = 0;
};

TEST(SharedMutexTest, ReadersShareItAndAWriterIsAlone) {
  int most_readers = 0;
  sim::SimulateInTest({}, [&] {
    Ledger ledger;
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 5; ++i) {
      fibers.push_back(Spawn([&ledger, i] {
        for (int round = 0; round < 3; ++round) {
          if ((i + round) % 3 == 0) {
            ledger.LockAndWrite();
          } else {
            ledger.LockAndRead();
          }
        }
      }));
    }
    for (auto& each : fibers) each.Join();
    EXPECT_EQ(ledger.version(), 5);
    EXPECT_TRUE(IsFree(ledger.mutex));
    most_readers = std::max(most_readers, ledger.most_readers());
  });
  EXPECT_GT(most_readers, 2);
}

FIBER_SIM_TEST(SharedMutexTest, TriesTakeItOnlyIfTheyNeedNotWait) {
  SharedMutex mutex;
  EXPECT_TRUE(IsFree(mutex));
  TakeShared(mutex);
  EXPECT_TRUE(IsReadable(mutex));
  EXPECT_FALSE(IsFree(mutex));
  GiveShared(mutex);
  Take(mutex);
  EXPECT_FALSE(IsReadable(mutex));
  EXPECT_FALSE(IsFree(mutex));
  Give(mutex);
  EXPECT_TRUE(IsReadable(mutex));
}

FIBER_SIM_TEST(SharedMutexTest, AWriterThatWaitsHoldsBackNewReaders) {
  SharedMutex mutex;
  TakeShared(mutex);
  std::string order;
  auto writer = Spawn([&] {
    WriterLock hold(mutex);
    order += 'w';
  });
  LetOthersPark();
  EXPECT_FALSE(IsReadable(mutex));
  auto reader = Spawn([&] {
    ReaderLock hold(mutex);
    order += 'r';
  });
  LetOthersPark();
  EXPECT_EQ(order, "");
  GiveShared(mutex);
  writer.Join();
  reader.Join();
  EXPECT_EQ(order, "wr");
}

FIBER_SIM_TEST(SharedMutexTest, AfterAWriterAllReadersThatWaitGoTogetherThenTheNextWriter) {
  SharedMutex mutex;
  Take(mutex);
  int inside = 0;
  std::vector<int> writers;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] {
      ReaderLock hold(mutex);
      ++inside;
      (void)Sleep(absl::Seconds(1));
      EXPECT_EQ(inside, 3);
      EXPECT_TRUE(writers.empty());
    }));
    LetOthersPark();
    fibers.push_back(Spawn([&writers, &mutex, i] {
      WriterLock hold(mutex);
      writers.push_back(i);
    }));
    LetOthersPark();
  }
  Give(mutex);
  LetOthersPark();
  EXPECT_EQ(inside, 3);
  EXPECT_FALSE(IsReadable(mutex));
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(writers, (std::vector<int>{0, 1, 2}));
}

FIBER_SIM_TEST(SharedMutexTest, ReadersThatAWriterHeldBackGoWhenItGivesUp) {
  SharedMutex mutex;
  TakeShared(mutex);
  auto writer = Spawn([&] { return mutex.Lock(absl::Milliseconds(5)); });
  LetOthersPark();
  auto reader = Spawn([&] {
    ReaderLock hold(mutex);
    return Now();
  });
  const absl::Duration before = Now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(writer.Join()));
  EXPECT_LE(reader.Join() - before, absl::Milliseconds(5));  // though this one still reads
  GiveShared(mutex);
  EXPECT_TRUE(IsFree(mutex));
}

FIBER_SIM_TEST(SharedMutexTest, LocksGiveUpAtTheirDeadlines) {
  SharedMutex mutex;
  Take(mutex);
  const absl::Duration before = Now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.Lock(absl::Milliseconds(3))));
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.LockShared(absl::Milliseconds(3))));
  EXPECT_EQ(Now() - before, absl::Milliseconds(6));
  Give(mutex);
  TakeShared(mutex);
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.Lock(absl::Milliseconds(3))));
  EXPECT_TRUE(IsReadable(mutex));
  GiveShared(mutex);
  EXPECT_TRUE(IsFree(mutex));
}

FIBER_SIM_TEST(SharedMutexTest, CancellationAndDeadlinesAreLookedAtFirst) {
  SharedMutex mutex;
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.Lock(absl::ZeroDuration())));
  EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.LockShared(absl::ZeroDuration())));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    EXPECT_TRUE(absl::IsCancelled(mutex.LockShared(absl::ZeroDuration())));
    return mutex.Lock(absl::ZeroDuration());
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
  EXPECT_TRUE(IsFree(mutex));
}

FIBER_SIM_TEST(SharedMutexTest, OnlyTheLocksThatCanFailAreInterruptedByCancellation) {
  SharedMutex mutex;
  Take(mutex);
  int inside = 0;
  auto writer = Spawn([&] {
    WriterLock hold(mutex);
    ++inside;
  });
  auto reader = Spawn([&] {
    ReaderLock hold(mutex);
    ++inside;
  });
  auto polite = Spawn([&] { return mutex.Lock(Deadline::Never()); });
  auto polite_reader = Spawn([&] { return mutex.LockShared(Deadline::Never()); });
  LetOthersPark();
  for (auto* each : {&writer, &reader}) each->Cancel();
  for (auto* each : {&polite, &polite_reader}) each->Cancel();
  EXPECT_TRUE(absl::IsCancelled(polite.Join()));
  EXPECT_TRUE(absl::IsCancelled(polite_reader.Join()));
  LetOthersPark();
  EXPECT_EQ(inside, 0);
  Give(mutex);
  writer.Join();
  reader.Join();
  EXPECT_EQ(inside, 2);
}

FIBER_SIM_TEST(SharedMutexTest, StandardGuardsTakeIt) {
  SharedMutex mutex;
  {
    std::unique_lock<SharedMutex> hold(mutex);
    EXPECT_FALSE(IsReadable(mutex));
  }
  std::shared_lock<SharedMutex> hold(mutex);
  EXPECT_TRUE(hold.owns_lock());
  EXPECT_TRUE(IsReadable(mutex));
  EXPECT_FALSE(IsFree(mutex));
}

FIBER_SIM_TEST(SharedMutexTest, WhoUnlocksNeedNotBeWhoLocked) {
  SharedMutex mutex;
  TakeShared(mutex);
  auto reader = Spawn([&] { GiveShared(mutex); });
  Take(mutex);
  auto writer = Spawn([&] { Give(mutex); });
  Take(mutex);
  Give(mutex);
}

// Four give up at the very moment in which it becomes free; two are patient.
TEST(SharedMutexTest, DeadlinesRacingUnlockNeitherLoseItNorLetAWriterMeetOthers) {
  int schedules = 0, taken = 0, expired = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    Ledger ledger;
    int written = 0;
    const bool is_read_first = sim::ChooseBelow(2) == 0;
    is_read_first ? TakeShared(ledger.mutex) : Take(ledger.mutex);
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 4; ++i) {
      fibers.push_back(Spawn([&, i] {
        const bool is_writer = i % 2 == 0;
        const Deadline deadline = absl::Milliseconds(1);
        const absl::Status status =
            is_writer ? ledger.LockAndWriteBefore(deadline) : ledger.LockAndReadBefore(deadline);
        ++(status.ok() ? taken : expired);
        if (is_writer && status.ok()) ++written;
      }));
    }
    fibers.push_back(Spawn([&] { ledger.LockAndRead(); }));
    fibers.push_back(Spawn([&] { ledger.LockAndWrite(); }));
    (void)Sleep(absl::Milliseconds(1));
    is_read_first ? GiveShared(ledger.mutex) : Give(ledger.mutex);
    for (auto& each : fibers) each.Join();
    EXPECT_EQ(ledger.version(), written + 1);
    EXPECT_TRUE(IsFree(ledger.mutex));
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(taken, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(SharedMutexTest, CancellationsRacingUnlockNeitherLoseItNorLetAWriterMeetOthers) {
  int schedules = 0, taken = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000)}, [&] {
    Ledger ledger;
    TakeShared(ledger.mutex);
    auto writer = Spawn([&] { return ledger.LockAndWriteBefore({}); });
    auto reader = Spawn([&] { return ledger.LockAndReadBefore({}); });
    auto patient = Spawn([&] { ledger.LockAndRead(); });
    auto patient_writer = Spawn([&] { ledger.LockAndWrite(); });
    Yield();
    auto giver = Spawn([&] { GiveShared(ledger.mutex); });
    writer.Cancel();
    reader.Cancel();
    const absl::Status written = writer.Join();
    for (const absl::Status& each : {written, reader.Join()}) {
      EXPECT_TRUE(each.ok() || absl::IsCancelled(each)) << each;
      ++(each.ok() ? taken : cancelled);
    }
    patient.Join();
    patient_writer.Join();
    giver.Join();
    EXPECT_EQ(ledger.version(), written.ok() ? 2 : 1);
    EXPECT_TRUE(IsFree(ledger.mutex));
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(taken, 0);
    EXPECT_GT(cancelled, 0);
  }
}

FIBER_EXPLORE_TEST(SharedMutexTest, AReaderAndAWriterNeverMeetOnAnySchedule) {
  Ledger ledger;
  auto reader = Spawn([&] {
    ledger.LockAndRead();
    ledger.LockAndRead();
  });
  ledger.LockAndWrite();
  ledger.LockAndWrite();
  reader.Join();
  EXPECT_EQ(ledger.version(), 2);
  EXPECT_TRUE(IsFree(ledger.mutex));
}

TEST(SharedMutexTest, AWriterThatGivesUpStrandsNobodyOnAnySchedule) {
  int taken = 0, expired = 0;
  sim::ExploreInTest({.max_late_timers = 1}, [&] {
    Ledger ledger;
    auto writer = Spawn([&] {
      const absl::Status status = ledger.LockAndWriteBefore(absl::Milliseconds(1));
      ++(status.ok() ? taken : expired);
    });
    auto reader = Spawn([&] { ledger.LockAndRead(); });
    ledger.LockAndRead();
    writer.Join();
    reader.Join();
    EXPECT_TRUE(IsFree(ledger.mutex));
  });
  EXPECT_GT(taken, 0);
  EXPECT_GT(expired, 0);
}

FIBER_SIM_TEST(SharedMutexTest, MayBeDestroyedByTheLastWhoHeldIt) {
  struct Shared {
    SharedMutex mutex;
    int users = 3;
  };
  auto* shared = new Shared;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([shared] {
      TakeShared(shared->mutex);
      Yield();
      GiveShared(shared->mutex);
      Take(shared->mutex);
      const bool is_last = --shared->users == 0;
      Give(shared->mutex);
      if (is_last) delete shared;
    }));
  }
  for (auto& each : fibers) each.Join();
}

TEST(SharedMutexTest, MayBeDestroyedUnderAnUnlockOnAnotherThread) {
  struct Shared {
    SharedMutex mutex;
    std::atomic<bool> is_seen{false};
  };
  std::atomic<Shared*> slot{nullptr};
  const int rounds = tests::Scaled(20'000);
  std::thread other([&] {
    for (int i = 0; i < rounds; ++i) {
      Shared* shared;
      while ((shared = slot.exchange(nullptr, std::memory_order_acq_rel)) == nullptr) {
        std::this_thread::yield();
      }
      i % 2 == 0 ? Take(shared->mutex) : TakeShared(shared->mutex);
      shared->is_seen.store(true, std::memory_order_relaxed);
      i % 2 == 0 ? Give(shared->mutex) : GiveShared(shared->mutex);
    }
  });
  for (int i = 0; i < rounds; ++i) {
    auto shared = std::make_unique<Shared>();
    slot.store(shared.get(), std::memory_order_release);
    for (;;) {
      WriterLock hold(shared->mutex);
      if (shared->is_seen.load(std::memory_order_relaxed)) break;
      std::this_thread::yield();
    }
  }
  other.join();
}

FIBER_TEST_ON(SharedMutexTest, NothingIsLostUnderLoad, 1, 2, 8) {
  const int rounds = tests::Scaled(2000);
  Ledger ledger;
  std::atomic<int64_t> written{0};
  RunTogether(8, 2, [&](int me) {
    for (int round = 0; round < rounds; ++round) {
      const Deadline soon = absl::Microseconds(round % 30);
      switch ((round + me) % 6) {
        case 0:
          ledger.LockAndWrite();
          written.fetch_add(1);
          break;
        case 1:
          if (ledger.LockAndWriteBefore(soon).ok()) written.fetch_add(1);
          break;
        case 2:
          (void)ledger.LockAndReadBefore(soon);
          break;
        case 3:
          (void)IsReadable(ledger.mutex);
          break;
        default:
          ledger.LockAndRead();
      }
    }
  });
  EXPECT_EQ(ledger.version(), written.load());
  EXPECT_TRUE(IsFree(ledger.mutex));
}

TEST(SharedMutexDeathTest, UnlockingWhatIsNotHeldSoEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::string object = "fiber::SharedMutex 0x[0-9a-f]+: ";
  SharedMutex mutex;
  EXPECT_DEATH(Give(mutex), object + "unlock\\(\\) of one that nobody holds");
  EXPECT_DEATH(GiveShared(mutex), object + "unlock_shared\\(\\) of one that nobody holds");
  EXPECT_DEATH(mutex.AssertHeld(), object + "AssertHeld\\(\\) of one that nobody holds");
  EXPECT_DEATH(mutex.AssertReaderHeld(),
               object + "AssertReaderHeld\\(\\) of one that nobody holds");
  TakeShared(mutex);
  EXPECT_DEATH(Give(mutex), object + "unlock\\(\\) of one that is held for reading");
  EXPECT_DEATH(mutex.AssertHeld(), object + "AssertHeld\\(\\) of one that is held for reading");
  GiveShared(mutex);
  Take(mutex);
  mutex.AssertReaderHeld();  // and more
  EXPECT_DEATH(GiveShared(mutex), object + "unlock_shared\\(\\) of one that is held for writing");
  Give(mutex);
}

TEST(SharedMutexDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      sim::Simulate({.schedules = 1},
                    [] {
                      auto mutex = std::make_unique<SharedMutex>();
                      Take(*mutex);
                      Go([&mutex = *mutex] { Take(mutex); });
                      for (int i = 0; i < 2; ++i) {
                        Go([&mutex = *mutex] { TakeShared(mutex); });
                      }
                      (void)Sleep(absl::Seconds(1));
                      mutex.reset();
                    }),
      "fiber::SharedMutex 0x[0-9a-f]+ was destroyed while 2 waited to read and 1 to write");
}

}  // namespace
}  // namespace fiber
