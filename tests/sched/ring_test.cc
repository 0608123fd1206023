// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/ring.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sched::internal {
namespace {

TEST(RingTest, PopsInTheOrderOfPushesAndRefusesWhatDoesNotFit) {
  Record fibers[5];
  Ring<4> ring;
  EXPECT_TRUE(ring.is_empty());
  EXPECT_EQ(ring.Pop(), nullptr);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(ring.Push(fibers[i]));
    EXPECT_FALSE(ring.Push(fibers[4]));
    EXPECT_EQ(ring.size(), 4u);
    EXPECT_FALSE(ring.is_empty());
    EXPECT_EQ(ring.Pop(), &fibers[0]);
    EXPECT_TRUE(ring.Push(fibers[4]));
    for (int i = 1; i < 5; ++i) EXPECT_EQ(ring.Pop(), &fibers[i]);
    EXPECT_EQ(ring.Pop(), nullptr);
    EXPECT_TRUE(ring.is_empty());
  }
}

TEST(RingTest, AThiefTakesTheOlderHalfRoundedUp) {
  Record fibers[8];
  Ring<8> ring;
  Record* out[8];
  EXPECT_EQ(ring.TakeHalf(out), 0u);
  for (Record& fiber : fibers) ASSERT_TRUE(ring.Push(fiber));
  size_t next = 0;
  for (size_t expected : {4, 2, 1, 1}) {
    ASSERT_EQ(ring.TakeHalf(out), expected);
    for (size_t i = 0; i < expected; ++i) EXPECT_EQ(out[i], &fibers[next++]);
  }
  EXPECT_TRUE(ring.is_empty());
}

TEST(RingTest, AThiefTakesNoMoreThanItHasRoomFor) {
  Record fibers[8];
  Ring<8> ring;
  for (Record& fiber : fibers) ASSERT_TRUE(ring.Push(fiber));
  Record* out[2];
  ASSERT_EQ(ring.TakeHalf(out), 2u);
  EXPECT_EQ(out[0], &fibers[0]);
  EXPECT_EQ(out[1], &fibers[1]);
  EXPECT_EQ(ring.size(), 6u);
}

TEST(RingTest, PeekSeesWhatPopsWillReturnAndNothingStale) {
  Record fibers[4];
  Ring<4> ring;
  EXPECT_EQ(ring.Peek(0), nullptr);
  for (int round = 0; round < 3; ++round) {
    for (Record& fiber : fibers) ASSERT_TRUE(ring.Push(fiber));
    for (uint64_t popped = 0; popped < 4; ++popped) {
      for (uint64_t i = 0; i < 6; ++i) {
        EXPECT_EQ(ring.Peek(i), popped + i < 4 ? &fibers[popped + i] : nullptr);
      }
      EXPECT_EQ(ring.Pop(), &fibers[popped]);
    }
    EXPECT_EQ(ring.Peek(0), nullptr);
  }
}

// The owner pushes numbered fibers into a ring that is nearly always full or empty; everybody takes. Whoever takes counts
// the fiber, and each taker must see numbers that only grow.
template <size_t kSlots>
void EachIsTakenOnce() {
  constexpr uint64_t kFibers = 200'000;
  auto fibers = std::make_unique<Record[]>(kFibers);
  auto taken = std::make_unique<std::atomic<uint32_t>[]>(kFibers);
  Ring<kSlots> ring;
  std::atomic<bool> is_done{false};
  std::atomic<uint64_t> stolen{0};
  std::atomic<uint64_t> out_of_order{0};
  const auto take = [&](Record* fiber, int64_t* last) {
    const int64_t index = fiber - fibers.get();
    if (index <= *last) out_of_order.fetch_add(1, std::memory_order_relaxed);
    *last = index;
    fiber->parent_id += 1;  // a plain access: a race detector sees it if two take the same, or the push is not ordered
    taken[index].fetch_add(1, std::memory_order_relaxed);
  };
  std::vector<std::thread> thieves;
  for (int i = 0; i < 2; ++i) {
    thieves.emplace_back([&] {
      int64_t last = -1;
      Record* out[kSlots];
      for (;;) {
        const bool is_last_look = is_done.load(std::memory_order_acquire);
        const size_t count = ring.TakeHalf(out);
        for (size_t k = 0; k < count; ++k) take(out[k], &last);
        stolen.fetch_add(count, std::memory_order_relaxed);
        if (count == 0 && is_last_look) return;
        if (count == 0) std::this_thread::yield();
      }
    });
  }
  int64_t last = -1;
  uint64_t full = 0;
  for (uint64_t i = 0; i < kFibers; ++i) {
    fibers[i].parent_id = 1;
    while (!ring.Push(fibers[i])) {
      // Now and then only wait, so that thieves find it full as well.
      if (++full % 4 == 0) {
        std::this_thread::yield();
      } else if (Record* fiber = ring.Pop(); fiber != nullptr) {
        take(fiber, &last);
      }
    }
  }
  is_done.store(true, std::memory_order_release);
  while (Record* fiber = ring.Pop()) take(fiber, &last);
  for (std::thread& thief : thieves) thief.join();
  EXPECT_TRUE(ring.is_empty());
  EXPECT_GT(full, 0u);
  EXPECT_GT(stolen.load(), 0u);
  EXPECT_EQ(out_of_order.load(), 0u);
  for (uint64_t i = 0; i < kFibers; ++i) {
    ASSERT_EQ(taken[i].load(std::memory_order_relaxed), 1u) << i;
    ASSERT_EQ(fibers[i].parent_id, 2u) << i;
  }
}

TEST(RingTest, EveryFiberIsTakenOnceAndInOrderByOwnerAndThieves) {
  EachIsTakenOnce<4>();
  EachIsTakenOnce<8>();
}

}  // namespace
}  // namespace sched::internal
