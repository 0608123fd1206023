// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/shared_queue.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sched::internal {
namespace {

TEST(SharedQueueTest, TakesTheOldestInTheOrderOfPushes) {
  Record fibers[5];
  SharedQueue queue;
  size_t count = 7;
  EXPECT_EQ(queue.Take(1, &count), nullptr);
  EXPECT_EQ(count, 0u);
  for (Record& fiber : fibers) queue.Push(fiber);
  EXPECT_EQ(queue.size(), 5u);
  Record* list = queue.Take(2, &count);
  EXPECT_EQ(count, 2u);
  EXPECT_EQ(list, &fibers[0]);
  EXPECT_EQ(list->next, &fibers[1]);
  EXPECT_EQ(list->next->next, nullptr);
  list = queue.Take(100, &count);
  EXPECT_EQ(count, 3u);
  for (int i = 2; i < 5; ++i, list = list->next) ASSERT_EQ(list, &fibers[i]);
  EXPECT_EQ(list, nullptr);
  EXPECT_EQ(queue.size(), 0u);
  queue.Push(fibers[3]);  // it goes on after it was empty
  EXPECT_EQ(queue.Take(1, &count), &fibers[3]);
}

TEST(SharedQueueTest, AListGoesBehindWhatIsThere) {
  Record fibers[4];
  SharedQueue queue;
  queue.Push(fibers[0]);
  fibers[1].next = &fibers[2];
  queue.PushList(&fibers[1], &fibers[2], 2);
  queue.Push(fibers[3]);
  EXPECT_EQ(queue.size(), 4u);
  for (Record& fiber : fibers) {
    size_t count;
    EXPECT_EQ(queue.Take(1, &count), &fiber);
  }
}

TEST(SharedQueueTest, TheTwoLinesTakeTurns) {
  Record fibers[6];
  SharedQueue queue;
  for (int i = 0; i < 4; ++i) queue.Push(fibers[i]);
  fibers[4].next = &fibers[5];
  fibers[5].next = nullptr;
  queue.PushAhead(&fibers[4], &fibers[5], 2);
  EXPECT_EQ(queue.size(), 6u);
  size_t count;
  Record* list = queue.Take(3, &count);
  EXPECT_EQ(count, 3u);
  for (int i : {4, 0, 5}) {
    ASSERT_EQ(list, &fibers[i]);
    list = list->next;
  }
  EXPECT_EQ(list, nullptr);
  // Whose turn it was last is remembered.
  fibers[5].next = nullptr;
  queue.PushAhead(&fibers[5], &fibers[5], 1);
  for (int i : {1, 5, 2, 3}) ASSERT_EQ(queue.Take(1, &count), &fibers[i]);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(SharedQueueTest, ABlockerIsTakenAlone) {
  Record fibers[4];
  fibers[1].set_blocker(true);
  fibers[2].set_blocker(true);
  SharedQueue queue;
  for (Record& fiber : fibers) queue.Push(fiber);
  for (Record& fiber : fibers) {
    size_t count;
    Record* const list = queue.Take(4, &count);
    EXPECT_EQ(count, 1u);
    ASSERT_EQ(list, &fiber);
    EXPECT_EQ(list->next, nullptr);
  }
}

// Else it waits for as long as the other line is not empty.
TEST(SharedQueueTest, ABlockerThatIsNotTakenKeepsItsTurn) {
  for (const bool is_blocker_ahead : {false, true}) {
    for (int taken_before = 0; taken_before < 3; ++taken_before) {
      Record blocker;
      blocker.set_blocker(true);
      Record others[8];
      SharedQueue queue;
      const auto push = [&queue](Record& fiber, bool is_ahead) {
        fiber.next = nullptr;
        is_ahead ? queue.PushAhead(&fiber, &fiber, 1) : queue.Push(fiber);
      };
      for (Record& other : others) push(other, !is_blocker_ahead);
      size_t count;
      for (int i = 0; i < taken_before; ++i) (void)queue.Take(1, &count);
      push(blocker, is_blocker_ahead);
      bool is_taken = false;
      for (int takes = 0; takes < 2 && !is_taken; ++takes) is_taken = queue.Take(2, &count) == &blocker;
      EXPECT_TRUE(is_taken) << is_blocker_ahead << " " << taken_before;
    }
  }
}

TEST(SharedQueueTest, TakingNoneTakesNone) {
  Record fiber;
  SharedQueue queue;
  queue.Push(fiber);
  size_t count = 7;
  EXPECT_EQ(queue.Take(0, &count), nullptr);
  EXPECT_EQ(count, 0u);
  EXPECT_EQ(queue.size(), 1u);
}

TEST(SharedQueueTest, EveryFiberIsTakenOnceAndEachPushersOnesInOrder) {
  constexpr int kPushers = 2;
  constexpr int64_t kEach = 100'000;
  auto fibers = std::make_unique<Record[]>(kPushers * kEach);
  auto taken = std::make_unique<std::atomic<uint32_t>[]>(kPushers * kEach);
  SharedQueue queue;
  std::atomic<int> pushing{kPushers};
  std::atomic<uint64_t> out_of_order{0};
  std::vector<std::thread> threads;
  for (int p = 0; p < kPushers; ++p) {
    threads.emplace_back([&, p] {
      for (int64_t i = p * kEach; i < (p + 1) * kEach;) {
        fibers[i].parent_id = 1;
        if (i % 3 != 0 || i + 1 == (p + 1) * kEach) {
          queue.Push(fibers[i]);
          ++i;
          continue;
        }
        fibers[i + 1].parent_id = 1;
        fibers[i].next = &fibers[i + 1];
        fibers[i + 1].next = nullptr;
        queue.PushList(&fibers[i], &fibers[i + 1], 2);
        i += 2;
      }
      pushing.fetch_sub(1, std::memory_order_release);
    });
  }
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      int64_t last[kPushers] = {-1, -1};
      for (;;) {
        const bool is_last_look = pushing.load(std::memory_order_acquire) == 0;
        size_t count;
        Record* list = queue.Take(t == 0 ? 1 : 4, &count);
        if (list == nullptr) {
          if (is_last_look) return;
          std::this_thread::yield();
        }
        size_t seen = 0;
        for (; list != nullptr; list = list->next, ++seen) {
          const int64_t index = list - fibers.get();
          int64_t& before = last[index / kEach];
          if (index <= before) out_of_order.fetch_add(1, std::memory_order_relaxed);
          before = index;
          list->parent_id += 1;
          taken[index].fetch_add(1, std::memory_order_relaxed);
        }
        EXPECT_EQ(seen, count);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(queue.size(), 0u);
  EXPECT_EQ(out_of_order.load(), 0u);
  for (int64_t i = 0; i < kPushers * kEach; ++i) {
    ASSERT_EQ(taken[i].load(std::memory_order_relaxed), 1u) << i;
    ASSERT_EQ(fibers[i].parent_id, 2u) << i;
  }
}

}  // namespace
}  // namespace sched::internal
