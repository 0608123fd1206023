// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/idle.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fiber/internal/record.h"
#include "gtest/gtest.h"
#include "sched/internal/futex_source.h"
#include "sched/internal/shared_queue.h"

namespace sched::internal {
namespace {

using fiber::internal::Record;

TEST(IdleTest, NobodyIsWokenWhileNobodyIsIdle) {
  Idle idle;
  EXPECT_FALSE(idle.TryWake());
}

TEST(IdleTest, NobodyIsWokenWhileSomebodySearches) {
  Idle idle;
  idle.Enter(Idle::Role::kBusy);
  ASSERT_TRUE(idle.TryStartSearching(2));
  EXPECT_FALSE(idle.TryWake());
  EXPECT_TRUE(idle.StopSearching()) << "it was the last one";
  EXPECT_TRUE(idle.TryWake());
}

TEST(IdleTest, WhoeverLeavesFirstTakesTheOneGrantAndSearches) {
  Idle idle;
  idle.Enter(Idle::Role::kBusy);
  idle.Enter(Idle::Role::kBusy);
  EXPECT_TRUE(idle.TryWake());
  EXPECT_FALSE(idle.TryWake()) << "a wake-up is under way";
  EXPECT_EQ(idle.Leave(), Idle::Role::kSearcher);
  EXPECT_EQ(idle.Leave(), Idle::Role::kBusy);
  EXPECT_EQ(idle.idle(), 0u);
  EXPECT_TRUE(idle.StopSearching());
}

TEST(IdleTest, ASearcherThatBecomesIdleSearchesNoMore) {
  Idle idle;
  ASSERT_TRUE(idle.TryStartSearching(1));
  idle.Enter(Idle::Role::kSearcher);
  EXPECT_EQ(idle.idle(), 1u);
  EXPECT_TRUE(idle.TryWake());
}

TEST(IdleTest, AtMostHalfOfThoseAwakeSearch) {
  Idle idle;
  EXPECT_TRUE(idle.TryStartSearching(4));
  EXPECT_TRUE(idle.TryStartSearching(4));
  EXPECT_FALSE(idle.TryStartSearching(4));
  EXPECT_FALSE(idle.StopSearching()) << "another still searches";
  EXPECT_TRUE(idle.StopSearching());
}

TEST(IdleTest, TheKeeperIsWhoHasTheEarliestDeadline) {
  Idle idle;
  EXPECT_FALSE(idle.TryKeep(kNeverNs, 1));
  EXPECT_FALSE(idle.IsKeeperLate(5)) << "nobody is idle";
  idle.Enter(Idle::Role::kBusy);
  EXPECT_FALSE(idle.IsKeeperLate(kNeverNs)) << "nothing is armed";
  EXPECT_TRUE(idle.IsKeeperLate(5));
  EXPECT_TRUE(idle.TryKeep(10, 1));
  EXPECT_FALSE(idle.TryKeep(10, 1));
  EXPECT_TRUE(idle.IsKeeperLate(9));
  EXPECT_FALSE(idle.IsKeeperLate(10));
  EXPECT_TRUE(idle.TryKeep(5, 1));
  idle.StopKeeping(10);  // it has lost the office already
  EXPECT_FALSE(idle.IsKeeperLate(7));
  idle.StopKeeping(5);
  EXPECT_TRUE(idle.IsKeeperLate(7));
}

TEST(IdleTest, AnOfficeWhoseTimeHasPassedIsTakenOver) {
  Idle idle;
  idle.Enter(Idle::Role::kBusy);
  ASSERT_TRUE(idle.TryKeep(10, 1));
  EXPECT_FALSE(idle.TryKeep(kNeverNs, 11)) << "nothing to keep";
  EXPECT_FALSE(idle.TryKeep(30, 9));
  EXPECT_TRUE(idle.TryKeep(30, 10));
  EXPECT_TRUE(idle.IsKeeperLate(29));
  idle.StopKeeping(10);
  EXPECT_FALSE(idle.IsKeeperLate(30)) << "the new keeper stays";
}

// Threads that do with Idle what workers do (worker.cc), over two shared queues of fibers.
class Pool {
 public:
  explicit Pool(uint32_t workers) : workers_(workers) {
    for (uint32_t i = 0; i < workers; ++i) {
      threads_.emplace_back([this] { Main(); });
    }
  }
  ~Pool() {
    is_stopped_.store(true, std::memory_order_seq_cst);
    source_.Interrupt();
    for (std::thread& thread : threads_) thread.join();
  }

  void Push(Record& fiber, bool is_second) {
    queues_[is_second].Push(fiber);
    if (idle_.TryWake()) source_.Interrupt();
  }

  // Blocks until so many have been taken in all.
  void WaitUntilTaken(uint64_t count) {
    std::unique_lock<std::mutex> hold(mutex_);
    wanted_.store(count, std::memory_order_seq_cst);
    const bool is_done = taken_enough_.wait_for(hold, std::chrono::seconds(60), [&] {
      return taken_.load(std::memory_order_seq_cst) >= count;
    });
    if (is_done) return;
    uint64_t word;
    static_assert(sizeof(Idle) >= sizeof(word));
    __builtin_memcpy(&word, static_cast<const void*>(&idle_), sizeof(word));  // its first member
    fprintf(stderr,
            "%llu of %llu fibers were taken; %zu and %zu are queued; idle %llu, searching %llu, grants %llu\n",
            static_cast<unsigned long long>(taken_.load()), static_cast<unsigned long long>(count),
            queues_[0].size(), queues_[1].size(), static_cast<unsigned long long>(word & 0xFFFFF),
            static_cast<unsigned long long>((word >> 20) & 0xFFFFF),
            static_cast<unsigned long long>((word >> 40) & 0xFFFFF));
    std::quick_exit(1);  // the workers cannot be joined
  }

  uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }

 private:
  void Main() {
    Idle::Role role = Idle::Role::kBusy;
    while (!is_stopped_.load(std::memory_order_seq_cst)) {
      Record* fiber = TakeFrom(queues_[0]);
      if (fiber == nullptr && (role == Idle::Role::kSearcher || idle_.TryStartSearching(workers_))) {
        // The second queue is seen by searchers only.
        role = Idle::Role::kSearcher;
        fiber = TakeFrom(queues_[1]);
      }
      if (fiber != nullptr) {
        if (role == Idle::Role::kSearcher) {
          role = Idle::Role::kBusy;
          if (idle_.StopSearching() && idle_.TryWake()) source_.Interrupt();
        }
        Run(*fiber);
        continue;
      }
      idle_.Enter(role);
      if (queues_[0].size() == 0 && queues_[1].size() == 0 &&
          !is_stopped_.load(std::memory_order_seq_cst)) {
        sleeps_.fetch_add(1, std::memory_order_relaxed);
        source_.Poll(kNeverNs);
      }
      role = idle_.Leave();
    }
    source_.Interrupt();  // the next one may sleep on
  }

  static Record* TakeFrom(SharedQueue& queue) {
    size_t count;
    return queue.Take(1, &count);
  }

  void Run(Record& fiber) {
    // A fiber with a count pushes itself again, from the worker.
    const bool is_last = fiber.parent_id == 0;
    if (!is_last) {
      --fiber.parent_id;
      Push(fiber, fiber.parent_id % 2 == 1);
    }
    if (taken_.fetch_add(1, std::memory_order_seq_cst) + 1 ==
        wanted_.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> hold(mutex_);
      taken_enough_.notify_all();
    }
  }

  const uint32_t workers_;
  Idle idle_;
  FutexSource source_;
  SharedQueue queues_[2];
  std::atomic<bool> is_stopped_{false};
  std::atomic<uint64_t> taken_{0};
  std::atomic<uint64_t> wanted_{0};
  std::atomic<uint64_t> sleeps_{0};
  std::mutex mutex_;
  std::condition_variable taken_enough_;
  std::vector<std::thread> threads_;
};

TEST(IdleTest, NothingIsLeftInAQueueWhileAllSleepWhoeverPushes) {
  for (uint32_t workers : {1u, 2u, 4u}) {
    constexpr int kProducers = 2;
    constexpr uint64_t kEach = 30'000;
    constexpr uint64_t kRuns = 3;  // of each fiber: one push from outside, the others from workers
    auto fibers = std::make_unique<Record[]>(kProducers * kEach);
    Pool pool(workers);
    std::vector<std::thread> producers;
    for (int p = 0; p < kProducers; ++p) {
      producers.emplace_back([&, p] {
        for (uint64_t i = 0; i < kEach; ++i) {
          Record& fiber = fibers[p * kEach + i];
          fiber.parent_id = kRuns - 1;
          pool.Push(fiber, i % 2 == 1);
          if (i % 16 == 0) std::this_thread::yield();  // so that workers run dry
        }
      });
    }
    for (std::thread& producer : producers) producer.join();
    pool.WaitUntilTaken(kProducers * kEach * kRuns);
    EXPECT_GT(pool.sleeps(), 0u);
  }
}

TEST(IdleTest, ASinglePushWakesASleeperEachTime) {
  constexpr uint64_t kPushes = 20'000;
  auto fibers = std::make_unique<Record[]>(kPushes);
  Pool pool(3);
  for (uint64_t i = 0; i < kPushes; ++i) {
    pool.Push(fibers[i], i % 2 == 1);
    pool.WaitUntilTaken(i + 1);
  }
  EXPECT_GT(pool.sleeps(), 0u);
}

}  // namespace
}  // namespace sched::internal
