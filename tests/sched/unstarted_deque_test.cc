// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/unstarted_deque.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sched::internal {
namespace {

TEST(UnstartedDequeTest, TheOwnerTakesTheNewestAndAThiefTheOldest) {
  Record fibers[4];
  UnstartedDeque<4> deque;
  EXPECT_TRUE(deque.is_empty());
  EXPECT_EQ(deque.TakeNewest(), nullptr);
  EXPECT_EQ(deque.TakeOldest(), nullptr);
  for (int round = 0; round < 3; ++round) {
    for (Record& fiber : fibers) EXPECT_TRUE(deque.Push(fiber));
    EXPECT_EQ(deque.TakeNewest(), &fibers[3]);
    EXPECT_EQ(deque.TakeOldest(), &fibers[0]);
    EXPECT_EQ(deque.TakeOldest(), &fibers[1]);
    EXPECT_FALSE(deque.is_empty());
    EXPECT_EQ(deque.TakeNewest(), &fibers[2]);
    EXPECT_TRUE(deque.is_empty());
    EXPECT_EQ(deque.TakeNewest(), nullptr);
    EXPECT_EQ(deque.TakeOldest(), nullptr);
  }
}

TEST(UnstartedDequeTest, RefusesWhatDoesNotFitUntilOneIsTaken) {
  Record fibers[6];
  UnstartedDeque<4> deque;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(deque.Push(fibers[i]));
  EXPECT_FALSE(deque.Push(fibers[4]));
  EXPECT_EQ(deque.TakeOldest(), &fibers[0]);
  EXPECT_TRUE(deque.Push(fibers[4]));
  EXPECT_FALSE(deque.Push(fibers[5]));
  for (int i = 4; i > 0; --i) EXPECT_EQ(deque.TakeNewest(), &fibers[i]);
}

// `burst` pushes at a time, then as many takes: one makes every take a fight for the last fiber.
template <size_t kSlots>
void EachIsTakenOnce(uint64_t burst) {
  constexpr uint64_t kFibers = 200'000;
  auto fibers = std::make_unique<Record[]>(kFibers);
  auto taken = std::make_unique<std::atomic<uint32_t>[]>(kFibers);
  UnstartedDeque<kSlots> deque;
  std::atomic<bool> is_done{false};
  std::atomic<uint64_t> stolen{0};
  std::atomic<uint64_t> out_of_order{0};
  const auto take = [&](Record* fiber) {
    fiber->parent_id += 1;  // a plain access, for race detectors
    taken[fiber - fibers.get()].fetch_add(1, std::memory_order_relaxed);
  };
  std::vector<std::thread> thieves;
  for (int i = 0; i < 2; ++i) {
    thieves.emplace_back([&] {
      int64_t last = -1;
      for (;;) {
        const bool is_last_look = is_done.load(std::memory_order_acquire);
        Record* fiber = deque.TakeOldest();
        if (fiber == nullptr) {
          if (is_last_look) return;
          std::this_thread::yield();
          continue;
        }
        // What is above the oldest was pushed later.
        if (fiber - fibers.get() <= last) out_of_order.fetch_add(1, std::memory_order_relaxed);
        last = fiber - fibers.get();
        take(fiber);
        stolen.fetch_add(1, std::memory_order_relaxed);
      }
    });
  }
  uint64_t full = 0;
  for (uint64_t i = 0; i < kFibers; ++i) {
    fibers[i].parent_id = 1;
    while (!deque.Push(fibers[i])) {
      ++full;
      // As the worker does when it is full: it takes the oldest, too.
      if (Record* fiber = deque.TakeOldest(); fiber != nullptr) take(fiber);
    }
    // On a busy machine the owner would otherwise be through before a thief has had a turn.
    while (i == 0 && stolen.load(std::memory_order_relaxed) == 0) std::this_thread::yield();
    if (i % (2 * burst) >= burst) {
      for (int k = 0; k < 2; ++k) {
        if (Record* fiber = deque.TakeNewest(); fiber != nullptr) take(fiber);
      }
    }
    if (i % 1024 == 0) std::this_thread::yield();
  }
  is_done.store(true, std::memory_order_release);
  while (Record* fiber = deque.TakeNewest()) take(fiber);
  for (std::thread& thief : thieves) thief.join();
  EXPECT_TRUE(deque.is_empty());
  EXPECT_TRUE(burst <= kSlots || full > 0);
  EXPECT_GT(stolen.load(), 0u);
  EXPECT_EQ(out_of_order.load(), 0u);
  for (uint64_t i = 0; i < kFibers; ++i) {
    ASSERT_EQ(taken[i].load(std::memory_order_relaxed), 1u) << i;
    ASSERT_EQ(fibers[i].parent_id, 2u) << i;
  }
}

TEST(UnstartedDequeTest, EveryFiberIsTakenOnceWhenTheDequeIsFullAgainAndAgain) {
  EachIsTakenOnce<4>(16);
  EachIsTakenOnce<8>(32);
}

TEST(UnstartedDequeTest, TheLastFiberGoesToOneOfThoseWhoReachForIt) {
  EachIsTakenOnce<4>(1);
  EachIsTakenOnce<8>(1);
}

}  // namespace
}  // namespace sched::internal
