// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/timer_queue.h"

#include <malloc.h>

#include <cstddef>
#include <cstdint>

#include "fiber/internal/park.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "gtest/gtest.h"

namespace sched::internal {
namespace {

using fiber::internal::DeadlineTimer;
using fiber::internal::kNeverNs;
using fiber::internal::OnTimer;
using fiber::internal::TryFile;
using fiber::internal::WaitBlock;

constexpr int64_t kMillisecond = 1'000'000;
constexpr int64_t kSecond = 1000 * kMillisecond;

// A plain thread's block with a wait that can be opened, armed, and seen to end.
struct Sleeper {
  WaitBlock block;
  uint64_t word = 0;

  void Open() {
    block.signal.store(0, std::memory_order_relaxed);
    word = block.word.Open(/*is_interruptible=*/false);
  }
  // What a scheduler's ArmTimer does.
  bool Arm(TimerQueue& queue, int64_t deadline_ns, int64_t now_ns) {
    block.timer.deadline_ns.store(deadline_ns, std::memory_order_seq_cst);
    constexpr int64_t kLate = TimerQueue::kLatenessNs;
    if (!TryFile(block, deadline_ns, kLate, deadline_ns - now_ns >= 64 * kLate)) return false;
    (void)queue.File(block, deadline_ns, now_ns);
    return true;
  }
  void Disarm() { block.timer.deadline_ns.store(kNeverNs, std::memory_order_relaxed); }
  bool is_woken() const { return block.signal.load(std::memory_order_relaxed) == 1; }
  int64_t filed() const { return block.timer.filed_ns.load(std::memory_order_relaxed); }
};

class TimerQueueTest : public testing::Test {
 protected:
  const int64_t now_ = fiber::internal::MonotonicNs();
  // Late enough for an entry under `deadline`, early enough for none that is `kLatenessNs` later.
  static int64_t After(int64_t deadline) { return deadline + TimerQueue::kLatenessNs; }
  // Fires whatever falls due until then, as workers do that come by now and then.
  static void ExpireUntil(TimerQueue& queue, int64_t until) {
    while (queue.next_due_ns() <= until) (void)queue.Expire(queue.next_due_ns());
  }
  TimerQueue a_;
  TimerQueue b_;
};

TEST_F(TimerQueueTest, ADeadlineThatPassesWakesWithItsOutcomeAndNotBefore) {
  Sleeper sleeper;
  sleeper.Open();
  EXPECT_EQ(a_.next_due_ns(), kNeverNs);
  const int64_t deadline = now_ + 10 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, deadline, now_));
  EXPECT_GE(a_.next_due_ns(), deadline);
  ExpireUntil(a_, deadline - 1);
  EXPECT_FALSE(sleeper.is_woken());
  ExpireUntil(a_, After(deadline));
  EXPECT_TRUE(sleeper.is_woken());
  EXPECT_EQ(sleeper.block.outcome, fiber::internal::kOutcomeDeadline);
  EXPECT_EQ(sleeper.filed(), kNeverNs);
  EXPECT_EQ(a_.next_due_ns(), kNeverNs);
}

TEST_F(TimerQueueTest, FilingSaysWhenTheQueueFallsDueEarlier) {
  Sleeper sleepers[3];
  EXPECT_TRUE(a_.File(sleepers[0].block, now_ + 20 * kMillisecond, now_));
  EXPECT_FALSE(a_.File(sleepers[1].block, now_ + 40 * kMillisecond, now_));
  EXPECT_TRUE(a_.File(sleepers[2].block, now_ + 10 * kMillisecond, now_));
}

// A keeper that falls asleep while an expired entry is neither in the queue nor filed anew does not know of it:
//
//   worker, on its way             keeper
//   takes the entry off            sleeps until the queue's earliest instant: never
//   files it under its new wish
//   must tell the keeper before it runs a fiber
TEST_F(TimerQueueTest, ExpiringSaysWhenWhatItFiledAnewFallsDueFirst) {
  Sleeper sleeper, other;
  sleeper.Open();
  const int64_t first = now_ + 10 * kMillisecond;
  const int64_t second = now_ + 50 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, first, now_));
  ASSERT_FALSE(sleeper.Arm(a_, second, now_));
  EXPECT_TRUE(a_.Expire(After(first)));
  EXPECT_EQ(sleeper.filed(), second);
  ASSERT_FALSE(sleeper.Arm(a_, now_ + 90 * kMillisecond, now_));
  EXPECT_FALSE(a_.File(other.block, now_ + 70 * kMillisecond, now_));
  EXPECT_FALSE(a_.Expire(After(second))) << "the other one falls due before";
}

TEST_F(TimerQueueTest, ADisarmedEntryWakesNobody) {
  Sleeper sleeper;
  sleeper.Open();
  ASSERT_TRUE(sleeper.Arm(a_, now_ + 10 * kMillisecond, now_));
  sleeper.Disarm();
  ExpireUntil(a_, now_ + kSecond);
  EXPECT_FALSE(sleeper.is_woken());
  EXPECT_EQ(sleeper.filed(), kNeverNs) << "the next arming files anew";
}

TEST_F(TimerQueueTest, ALaterDeadlineUsesTheEarlierEntryAndMovesOnWithIt) {
  Sleeper sleeper;
  sleeper.Open();
  const int64_t first = now_ + 10 * kMillisecond;
  const int64_t later = now_ + 50 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, first, now_));
  sleeper.Disarm();
  EXPECT_FALSE(sleeper.Arm(b_, later, now_)) << "the entry in the other queue is early enough";
  EXPECT_EQ(b_.next_due_ns(), kNeverNs);
  ExpireUntil(a_, After(first));
  EXPECT_FALSE(sleeper.is_woken());
  EXPECT_EQ(sleeper.filed(), later);
  ExpireUntil(a_, After(later));
  EXPECT_TRUE(sleeper.is_woken());
}

TEST_F(TimerQueueTest, AnEarlierDeadlineIsFiledAnewAndTheOldEntryInTheOtherQueueIsIgnored) {
  Sleeper sleeper;
  sleeper.Open();
  const int64_t old = now_ + 50 * kMillisecond;
  const int64_t earlier = now_ + 10 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, old, now_));
  ASSERT_TRUE(sleeper.Arm(b_, earlier, now_));
  EXPECT_EQ(sleeper.filed(), earlier);
  ExpireUntil(b_, After(earlier));
  EXPECT_TRUE(sleeper.is_woken());
  // The next wait has a deadline that the old entry must not be taken for.
  sleeper.Disarm();
  sleeper.Open();
  ASSERT_TRUE(sleeper.Arm(b_, old + 10 * kMillisecond, now_));
  ExpireUntil(a_, After(old));
  EXPECT_EQ(a_.next_due_ns(), kNeverNs);
  EXPECT_FALSE(sleeper.is_woken());
  EXPECT_EQ(sleeper.filed(), old + 10 * kMillisecond);
  ExpireUntil(b_, After(old + 10 * kMillisecond));
  EXPECT_TRUE(sleeper.is_woken());
}

TEST_F(TimerQueueTest, OfTwoEntriesUnderOneDeadlineOneCounts) {
  Sleeper sleeper;
  sleeper.Open();
  const int64_t deadline = now_ + 10 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, deadline, now_));
  (void)b_.File(sleeper.block, deadline, now_);
  ExpireUntil(a_, After(deadline));
  EXPECT_TRUE(sleeper.is_woken());
  sleeper.Open();
  ExpireUntil(b_, After(deadline));
  EXPECT_FALSE(sleeper.is_woken()) << "the wish is still the passed one, but the entry does not count";
}

TEST_F(TimerQueueTest, AWaitThatAPeerCompletedIsNotCompletedAgain) {
  Sleeper sleeper;
  sleeper.Open();
  const int64_t deadline = now_ + 10 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, deadline, now_));
  ASSERT_TRUE(sleeper.block.word.TryClaim(sleeper.word));
  ExpireUntil(a_, After(deadline));
  EXPECT_FALSE(sleeper.is_woken());
}

TEST_F(TimerQueueTest, NoEntryCountsOnceTheTimerIsForgotten) {
  Sleeper sleeper;
  sleeper.Open();
  const int64_t deadline = now_ + 10 * kMillisecond;
  ASSERT_TRUE(sleeper.Arm(a_, deadline, now_));
  fiber::internal::ForgetTimer(sleeper.block);
  EXPECT_TRUE(sleeper.Arm(b_, deadline + 10 * kMillisecond, now_)) << "what is in the other queue counts no more";
  ExpireUntil(a_, After(deadline));
  EXPECT_FALSE(sleeper.is_woken());
  ExpireUntil(b_, After(deadline + 10 * kMillisecond));
  EXPECT_TRUE(sleeper.is_woken());
}

// The bytes the allocator has handed out.
size_t BytesInUse() { return mallinfo2().uordblks + mallinfo2().hblkhd; }

constexpr int kArmings = 1'000'000;
// 1024 entries of 16 bytes before each sweep, the levels of the wheel, and room to spare; a million would take 16 MB.
constexpr size_t kMostBytes = 1 << 20;

// Fibers of two runtimes share a deadline, and a block goes from the one to the other.
TEST_F(TimerQueueTest, AnEntryOfAnEarlierRuntimeDoesNotCountUnderTheSameInstant) {
  int owner_a = 0;
  int owner_b = 0;
  TimerQueue queue_a(&owner_a);
  TimerQueue queue_b(&owner_b);
  const int64_t deadline = now_ + 10 * kMillisecond;
  const int64_t later = now_ + 500 * kMillisecond;
  Sleeper sleeper;
  const auto arm = [&](TimerQueue& queue, const void* owner, int64_t deadline_ns) {
    sleeper.block.timer.deadline_ns.store(deadline_ns, std::memory_order_seq_cst);
    if (!TryFile(sleeper.block, deadline_ns, TimerQueue::kLatenessNs, false, owner)) return;
    (void)queue.File(sleeper.block, deadline_ns, now_);
  };
  sleeper.Open();
  arm(queue_a, &owner_a, deadline);
  fiber::internal::ForgetTimer(sleeper.block);  // its fiber ends
  sleeper.Open();
  arm(queue_b, &owner_b, deadline);
  sleeper.Open();  // a longer wait, which relies on what is filed
  arm(queue_b, &owner_b, later);
  ExpireUntil(queue_a, After(deadline));
  EXPECT_FALSE(sleeper.is_woken());
  EXPECT_EQ(queue_a.next_due_ns(), kNeverNs) << "filed anew in a queue that may be gone by then";
  ExpireUntil(queue_b, After(later));
  EXPECT_TRUE(sleeper.is_woken());
}

TEST_F(TimerQueueTest, AMillionArmingsUnderGrowingDeadlinesKeepTheMemoryFlat) {
  // Of a long wait one entry serves all, since it may be late as much anyway; a short one is filed anew each time.
  for (const int64_t ahead : {60 * kSecond, 10 * kMillisecond}) {
    Sleeper sleeper;
    const size_t before = BytesInUse();
    int filed = 0;
    for (int i = 0; i < kArmings; ++i) {
      sleeper.Open();
      const int64_t now = now_ + i * int64_t{10};
      filed += sleeper.Arm(a_, now + ahead, now);
      sleeper.Disarm();
    }
    EXPECT_LT(BytesInUse(), before + kMostBytes);
    if (ahead == 60 * kSecond) {
      EXPECT_EQ(filed, 1);
    } else {
      EXPECT_GT(filed, kArmings / 2);
    }
  }
}

TEST_F(TimerQueueTest, AMillionArmingsUnderShrinkingDeadlinesKeepTheMemoryFlat) {
  Sleeper sleeper;
  const size_t before = BytesInUse();
  int filed = 0;
  for (int i = 0; i < kArmings; ++i) {
    sleeper.Open();
    filed += sleeper.Arm(a_, now_ + 60 * kSecond - i * int64_t{1000}, now_);
    sleeper.Disarm();
  }
  EXPECT_EQ(filed, kArmings) << "each is earlier than what is filed";
  EXPECT_LT(BytesInUse(), before + kMostBytes);
  // And the sweeps spared the one that counts.
  sleeper.Open();
  const int64_t deadline = sleeper.filed();
  sleeper.block.timer.deadline_ns.store(deadline, std::memory_order_seq_cst);
  ExpireUntil(a_, After(deadline));
  EXPECT_TRUE(sleeper.is_woken());
}

TEST_F(TimerQueueTest, ASweepKeepsWhatCounts) {
  constexpr int kSleepers = 500;
  Sleeper sleepers[kSleepers];
  for (Sleeper& sleeper : sleepers) {
    sleeper.Open();
    ASSERT_TRUE(sleeper.Arm(a_, now_ + 30 * kSecond, now_));
  }
  Sleeper restless;
  restless.Open();
  for (int i = 0; i < 10'000; ++i) restless.Arm(a_, now_ + 60 * kSecond - i * int64_t{1000}, now_);
  restless.Disarm();
  ExpireUntil(a_, now_ + 61 * kSecond);
  for (Sleeper& sleeper : sleepers) EXPECT_TRUE(sleeper.is_woken());
  EXPECT_FALSE(restless.is_woken());
}

}  // namespace
}  // namespace sched::internal
