// SPDX-License-Identifier: Apache-2.0
// The parking protocol itself: every line of park.h's table, claims, timers and cancellers that
// come late.
#include "fiber/internal/park.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <set>
#include <source_location>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/internal/record.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/internal/wait_block.h"
#include "fiber/scheduler.h"
#include "fiber/wait_reason.h"
#include "gtest/gtest.h"

namespace fiber::internal {
namespace {

// Only remembers who was made runnable.
class FakeScheduler final : public Scheduler {
 public:
  FakeScheduler() : Scheduler(/*is_simulation=*/false) {}
  void QueueNew(Record&) override { ADD_FAILURE(); }
  void RequeueNew(Record&) override { ADD_FAILURE(); }
  void QueueReady(Record& fiber) override {
    EXPECT_EQ(fiber.state.load(std::memory_order_relaxed), State::kReady);
    queued_.fetch_add(1, std::memory_order_relaxed);
  }
  void QueueYielded(Record&) override { ADD_FAILURE(); }
  Record* TakeNext(ThreadState&, WaitBlock*) override { return nullptr; }
  bool TakeNextForYield(ThreadState&, Record**) override { return false; }
  bool ArmTimer(ThreadState&, WaitBlock&, int64_t) override {
    ADD_FAILURE();
    return false;
  }
  int64_t NowNs() override { return 0; }
  void OnFiberEnded(ThreadState&) override { ADD_FAILURE(); }
  StackClass default_stack_class() const override { return StackClass::k64KiB; }
  using Scheduler::SetCancelled;

  // How many were made runnable since the last call.
  int TakeQueued() { return queued_.exchange(0, std::memory_order_relaxed); }

 private:
  std::atomic<int> queued_{0};
};

// A fiber without a stack: enough for everything but a switch.
struct TestFiber {
  FakeScheduler scheduler;
  Record record;
  WaitBlock block;

  TestFiber() {
    record.scheduler = &scheduler;
    record.site = std::source_location::current();
    record.id.store(7, std::memory_order_relaxed);
    record.block.store(&block, std::memory_order_relaxed);
    block.fiber.store(&record, std::memory_order_relaxed);
    Set(State::kRunning);
  }
  void Set(State state) { record.state.store(state, std::memory_order_relaxed); }
  State state() const { return record.state.load(std::memory_order_relaxed); }
  // Opens a wait and parks in it.
  uint64_t Park(bool is_interruptible = true) {
    Set(State::kRunning);
    BeginPark(record);
    const uint64_t word = block.word.Open(is_interruptible);
    EXPECT_TRUE(FinishPark(record));
    return word;
  }
  bool IsClaimed() const { return !WaitWord::IsOpen(block.word.Load()); }
};

constexpr State kAllStates[] = {State::kFree,      State::kNew,    State::kReady, State::kRunning,
                                State::kParking,   State::kParked, State::kWoken, State::kHeld,
                                State::kHeldWoken, State::kDone};

TEST(ParkTest, ParksIfNobodyUnparkedItMeanwhile) {
  TestFiber fiber;
  BeginPark(fiber.record);
  EXPECT_EQ(fiber.state(), State::kParking);
  EXPECT_FALSE(TryFinishParkEarly(fiber.record));
  EXPECT_EQ(fiber.state(), State::kParking);
  EXPECT_TRUE(FinishPark(fiber.record));
  EXPECT_EQ(fiber.state(), State::kParked);
}

TEST(ParkTest, ItsOwnClaimBringsItBack) {
  TestFiber fiber;
  BeginPark(fiber.record);
  AbandonPark(fiber.record);
  EXPECT_EQ(fiber.state(), State::kRunning);
}

TEST(ParkTest, AnUnparkBeforeTheSwitchIsSeenWithoutOne) {
  TestFiber fiber;
  BeginPark(fiber.record);
  EXPECT_FALSE(TakeForUnpark(fiber.record));
  EXPECT_EQ(fiber.state(), State::kWoken);
  EXPECT_TRUE(TryFinishParkEarly(fiber.record));
  EXPECT_EQ(fiber.state(), State::kRunning);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);
}

TEST(ParkTest, AnUnparkBeforeTheEndOfTheSwitchIsLeftToTheWorker) {
  TestFiber fiber;
  BeginPark(fiber.record);
  Unpark(fiber.block);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);  // still on its stack
  EXPECT_FALSE(FinishPark(fiber.record));
  EXPECT_EQ(fiber.state(), State::kReady);  // the caller queues it
}

TEST(ParkTest, AnUnparkOfAParkedFiberQueuesIt) {
  TestFiber fiber;
  fiber.Set(State::kParked);
  Unpark(fiber.block);
  EXPECT_EQ(fiber.state(), State::kReady);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 1);
}

TEST(ParkTest, AHeldFiberIsParkedAgainWhenReleased) {
  TestFiber fiber;
  fiber.Set(State::kParked);
  EXPECT_TRUE(TryHold(fiber.record));
  EXPECT_EQ(fiber.state(), State::kHeld);
  EXPECT_FALSE(TryHold(fiber.record));  // one holder
  Release(fiber.record);
  EXPECT_EQ(fiber.state(), State::kParked);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);
}

TEST(ParkTest, AnUnparkOfAHeldFiberIsLeftToTheHolder) {
  TestFiber fiber;
  fiber.Set(State::kParked);
  EXPECT_TRUE(TryHold(fiber.record));
  Unpark(fiber.block);
  EXPECT_EQ(fiber.state(), State::kHeldWoken);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);  // the holder still reads its stack
  EXPECT_FALSE(TryHold(fiber.record));
  Release(fiber.record);
  EXPECT_EQ(fiber.state(), State::kReady);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 1);
}

TEST(ParkTest, OnlyAParkedFiberCanBeHeld) {
  TestFiber fiber;
  for (const State state : kAllStates) {
    fiber.Set(state);
    EXPECT_EQ(TryHold(fiber.record), state == State::kParked) << static_cast<int>(state);
  }
}

TEST(ParkDeathTest, AnUnparkOfAFiberThatDoesNotWaitIsABug) {
  for (const State state : kAllStates) {
    if (state == State::kParking || state == State::kParked || state == State::kHeld) continue;
    TestFiber fiber;
    fiber.Set(state);
    EXPECT_DEATH(Unpark(fiber.block), "fiber 7 .*was unparked without waiting");
  }
}

// Two threads that begin each round together.
class Rounds {
 public:
  void Meet() {
    const int mine = arrived_.fetch_add(1, std::memory_order_acq_rel) / 2;
    Backoff backoff;
    while (arrived_.load(std::memory_order_acquire) / 2 <= mine) backoff.Pause();
  }

 private:
  std::atomic<int> arrived_{0};
};

#if defined(__SANITIZE_THREAD__)
constexpr int kRounds = 3000;
#else
constexpr int kRounds = 10000;
#endif

// worker, after the switch   unparker
// FinishPark                 Unpark
TEST(ParkRaceTest, AnUnparkDuringTheSwitchQueuesTheFiberOnce) {
  TestFiber fiber;
  Rounds rounds;
  int by_worker = 0, by_unparker = 0;
  std::thread unparker([&] {
    for (int i = 0; i < kRounds; ++i) {
      rounds.Meet();
      Unpark(fiber.block);
      rounds.Meet();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    fiber.Set(State::kRunning);
    BeginPark(fiber.record);
    rounds.Meet();
    const bool is_parked = FinishPark(fiber.record);
    rounds.Meet();
    const int queued = fiber.scheduler.TakeQueued();
    ASSERT_EQ(queued + !is_parked, 1);
    ASSERT_EQ(fiber.state(), State::kReady);
    ++(is_parked ? by_unparker : by_worker);
  }
  unparker.join();
  EXPECT_EQ(by_worker + by_unparker, kRounds);
}

// holder                  unparker
// TryHold, Release        Unpark
TEST(ParkRaceTest, AnUnparkOfAFiberThatSomebodyHoldsQueuesItOnce) {
  TestFiber fiber;
  Rounds rounds;
  std::thread unparker([&] {
    for (int i = 0; i < kRounds; ++i) {
      rounds.Meet();
      Unpark(fiber.block);
      rounds.Meet();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    fiber.Set(State::kParked);
    rounds.Meet();
    if (TryHold(fiber.record)) Release(fiber.record);
    rounds.Meet();
    ASSERT_EQ(fiber.scheduler.TakeQueued(), 1);
    ASSERT_EQ(fiber.state(), State::kReady);
  }
  unparker.join();
}

TEST(WaitWordTest, IsClaimedOnce) {
  WaitWord word;
  EXPECT_FALSE(WaitWord::IsOpen(word.Load()));
  const uint64_t open = word.Open(/*is_interruptible=*/true);
  EXPECT_TRUE(WaitWord::IsOpen(open));
  EXPECT_TRUE(WaitWord::IsInterruptible(open));
  EXPECT_EQ(word.Load(), open);
  EXPECT_TRUE(word.TryClaim(open));
  EXPECT_FALSE(WaitWord::IsOpen(word.Load()));
  EXPECT_FALSE(word.TryClaim(open));
  EXPECT_FALSE(WaitWord::IsInterruptible(word.Open(/*is_interruptible=*/false)));
}

TEST(WaitWordTest, AnOldWordNeverClaimsALaterWait) {
  WaitWord word;
  std::set<uint64_t> old;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t open = word.Open(/*is_interruptible=*/i % 3 == 0);
    for (const uint64_t stale : old) ASSERT_FALSE(word.TryClaim(stale));
    ASSERT_TRUE(old.insert(open).second);
    ASSERT_GE(open, *old.rbegin());  // numbers go on
    if (i % 2 == 0) {
      ASSERT_TRUE(word.TryClaim(open));
    }
  }
}

TEST(WaitWordTest, OneOfManyClaimersWins) {
  WaitWord word;
  Rounds rounds;
  int mine = 0;
  std::atomic<int> theirs{0};
  std::atomic<uint64_t> open{0};
  std::thread other([&] {
    for (int i = 0; i < kRounds; ++i) {
      rounds.Meet();
      theirs.fetch_add(word.TryClaim(open.load(std::memory_order_acquire)),
                       std::memory_order_relaxed);
      rounds.Meet();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    open.store(word.Open(true), std::memory_order_release);
    rounds.Meet();
    mine += word.TryClaim(open.load(std::memory_order_relaxed));
    rounds.Meet();
    ASSERT_EQ(mine + theirs.load(std::memory_order_relaxed), i + 1);
  }
  other.join();
}

// Timers. `Arm` is what Wait::Park and a scheduler's ArmTimer do.
bool Arm(WaitBlock& block, int64_t deadline_ns, int64_t lateness_ns = 0, bool is_tolerable = true) {
  block.timer.deadline_ns.store(deadline_ns, std::memory_order_seq_cst);
  return TryFile(block, deadline_ns, lateness_ns, is_tolerable);
}
void Disarm(WaitBlock& block) {
  block.timer.deadline_ns.store(kNeverNs, std::memory_order_relaxed);
}

TEST(TimerTest, ADueTimerClaimsAndUnparks) {
  TestFiber fiber;
  fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_EQ(OnTimer(fiber.block, 100, 100), kNeverNs);
  EXPECT_TRUE(fiber.IsClaimed());
  EXPECT_EQ(fiber.block.outcome, kOutcomeDeadline);
  EXPECT_EQ(fiber.state(), State::kReady);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 1);
}

TEST(TimerTest, ATimerClaimsALockThatCannotBeCancelledToo) {
  TestFiber fiber;
  fiber.Park(/*is_interruptible=*/false);
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_EQ(OnTimer(fiber.block, 100, 101), kNeverNs);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 1);
}

TEST(TimerTest, AnEntryFoundEarlyIsFiledAgain) {
  TestFiber fiber;
  fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_EQ(OnTimer(fiber.block, 100, 99), 100);
  EXPECT_FALSE(fiber.IsClaimed());
  EXPECT_EQ(OnTimer(fiber.block, 100, 100), kNeverNs);
  EXPECT_TRUE(fiber.IsClaimed());
}

TEST(TimerTest, ADisarmedTimerDoesNothing) {
  TestFiber fiber;
  fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  Disarm(fiber.block);
  EXPECT_EQ(OnTimer(fiber.block, 100, 200), kNeverNs);
  EXPECT_FALSE(fiber.IsClaimed());
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);
}

// The timer of a wait that was over in time falls due during the next wait.
TEST(TimerTest, AnOldTimerDoesNotClaimTheNextWait) {
  TestFiber fiber;
  const uint64_t first = fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_TRUE(fiber.block.word.TryClaim(first));  // by a peer, in time
  Unpark(fiber.block);
  Disarm(fiber.block);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 1);
  fiber.Park();
  EXPECT_EQ(OnTimer(fiber.block, 100, 150), kNeverNs);
  EXPECT_FALSE(fiber.IsClaimed());
}

TEST(TimerTest, AnOldEntryServesALaterWish) {
  TestFiber fiber;
  const uint64_t first = fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_TRUE(fiber.block.word.TryClaim(first));
  Unpark(fiber.block);
  Disarm(fiber.block);
  fiber.Park();
  EXPECT_FALSE(Arm(fiber.block, 300));  // 100 is early enough
  EXPECT_EQ(OnTimer(fiber.block, 100, 120), 300);
  EXPECT_FALSE(fiber.IsClaimed());
  EXPECT_EQ(OnTimer(fiber.block, 300, 300), kNeverNs);
  EXPECT_TRUE(fiber.IsClaimed());
}

TEST(TimerTest, AnEarlierWishIsFiledAndTheOldEntryNoLongerCounts) {
  TestFiber fiber;
  const uint64_t first = fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 300));
  EXPECT_TRUE(fiber.block.word.TryClaim(first));
  Unpark(fiber.block);
  Disarm(fiber.block);
  fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_EQ(OnTimer(fiber.block, 300, 300), kNeverNs);  // ignored, though the deadline has passed
  EXPECT_FALSE(fiber.IsClaimed());
  EXPECT_EQ(OnTimer(fiber.block, 100, 300), kNeverNs);
  EXPECT_TRUE(fiber.IsClaimed());
}

TEST(TimerTest, AClaimedWaitIsNotUnparkedByItsTimer) {
  TestFiber fiber;
  const uint64_t word = fiber.Park();
  EXPECT_TRUE(Arm(fiber.block, 100));
  EXPECT_TRUE(fiber.block.word.TryClaim(word));
  fiber.block.outcome = 3;
  EXPECT_EQ(OnTimer(fiber.block, 100, 100), kNeverNs);
  EXPECT_EQ(fiber.block.outcome, 3u);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);
}

TEST(TimerTest, AReuseMayCostNoMoreThanIsTolerated) {
  WaitBlock block;
  EXPECT_TRUE(Arm(block, 100));
  EXPECT_FALSE(Arm(block, 105, /*lateness_ns=*/10, /*is_tolerable=*/true));
  EXPECT_TRUE(Arm(block, 105, /*lateness_ns=*/10, /*is_tolerable=*/false));
  EXPECT_FALSE(Arm(block, 115, /*lateness_ns=*/10, /*is_tolerable=*/false));
}

// owner                            scheduler
// wait ends in time; disarm        OnTimer(entry of the first wait)
// next wait: arm a later deadline
//
// Whatever the order, an entry that counts is filed under the second deadline or before, and nobody
// is claimed early.
TEST(TimerRaceTest, ReArmingRacesWithExpiryAndTheWishStaysFiled) {
  TestFiber fiber;
  Rounds rounds;
  std::atomic<int64_t> again{0};
  std::thread scheduler([&] {
    for (int i = 0; i < kRounds; ++i) {
      rounds.Meet();
      again.store(OnTimer(fiber.block, 100, 150), std::memory_order_relaxed);
      rounds.Meet();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    const uint64_t first = fiber.Park();
    ASSERT_TRUE(Arm(fiber.block, 100));
    const bool is_in_time = fiber.block.word.TryClaim(first);
    ASSERT_TRUE(is_in_time);
    rounds.Meet();
    Unpark(fiber.block);
    Disarm(fiber.block);
    fiber.Park();
    const bool is_filed_by_owner = Arm(fiber.block, 200);
    rounds.Meet();
    ASSERT_FALSE(fiber.IsClaimed());
    const int64_t again_ns = again.load(std::memory_order_relaxed);
    ASSERT_TRUE(again_ns == kNeverNs || again_ns == 200);
    ASSERT_EQ(is_filed_by_owner + (again_ns == 200), 1);
    ASSERT_EQ(OnTimer(fiber.block, 200, 200), kNeverNs);
    ASSERT_TRUE(fiber.IsClaimed());
    Disarm(fiber.block);
    (void)fiber.scheduler.TakeQueued();
  }
  scheduler.join();
}

TEST(ClaimForCancelTest, ClaimsAWaitThatMayBeCancelled) {
  TestFiber fiber;
  fiber.Park();
  ClaimForCancel(fiber.record, 7);
  EXPECT_EQ(fiber.block.outcome, kOutcomeCancelled);
  EXPECT_EQ(fiber.state(), State::kReady);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 1);
  ClaimForCancel(fiber.record, 7);  // once
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);
}

TEST(ClaimForCancelTest, LeavesALockThatCannotFailAlone) {
  TestFiber fiber;
  fiber.Park(/*is_interruptible=*/false);
  ClaimForCancel(fiber.record, 7);
  EXPECT_FALSE(fiber.IsClaimed());
  EXPECT_EQ(fiber.state(), State::kParked);
}

TEST(ClaimForCancelTest, LeavesAFiberThatDoesNotWaitAlone) {
  TestFiber fiber;
  ClaimForCancel(fiber.record, 7);
  EXPECT_EQ(fiber.state(), State::kRunning);
  EXPECT_EQ(fiber.scheduler.TakeQueued(), 0);
}

TEST(ClaimForCancelTest, DoesNothingToAFiberThatHasEndedOrNotStarted) {
  TestFiber fiber;
  fiber.Park();
  fiber.record.block.store(nullptr, std::memory_order_relaxed);
  ClaimForCancel(fiber.record, 7);
  EXPECT_FALSE(fiber.IsClaimed());
}

TEST(ClaimForCancelTest, DoesNothingToTheNextFiberOfTheRecord) {
  TestFiber fiber;
  fiber.Park();
  fiber.record.id.store(8, std::memory_order_relaxed);
  ClaimForCancel(fiber.record, 7);
  EXPECT_FALSE(fiber.IsClaimed());
}

TEST(ClaimForCancelTest, DoesNothingToTheNextFiberOfTheBlock) {
  TestFiber ended, next;
  ended.record.block.store(&next.block, std::memory_order_relaxed);  // read before it ended
  next.Park();
  ClaimForCancel(ended.record, 7);
  EXPECT_FALSE(next.IsClaimed());
}

TEST(CancelStatusTest, TheCauseComesBeforeTheSchedulersEnd) {
  TestFiber fiber;
  EXPECT_TRUE(CancelStatus(fiber.block).ok());
  fiber.scheduler.SetCancelled();
  EXPECT_EQ(CancelStatus(fiber.block), absl::CancelledError("the runtime is shutting down"));
  Cancel(fiber.record, absl::CancelledError("mine"));
  EXPECT_EQ(CancelStatus(fiber.block), absl::CancelledError("mine"));
  delete fiber.record.cancel.load(std::memory_order_relaxed);
}

// Store-load: the canceller stores the cause, then looks for a wait; the fiber opens its wait, then
// looks for a cause.
TEST(CancelRaceTest, ACancellationIsSeenByTheFiberOrClaimsItsWait) {
  TestFiber fiber;
  Rounds rounds;
  std::thread canceller([&] {
    for (int i = 0; i < kRounds; ++i) {
      rounds.Meet();
      Cancel(fiber.record, absl::CancelledError());
      rounds.Meet();
    }
  });
  for (int i = 0; i < kRounds; ++i) {
    fiber.Set(State::kRunning);
    rounds.Meet();
    BeginPark(fiber.record);
    const uint64_t word = fiber.block.word.Open(true);
    const bool is_seen = !CancelStatus(fiber.block).ok();
    const bool is_mine = is_seen && fiber.block.word.TryClaim(word);
    if (is_mine) {
      AbandonPark(fiber.record);
    } else if (FinishPark(fiber.record)) {
      fiber.scheduler.TakeQueued();
    }
    rounds.Meet();
    ASSERT_TRUE(fiber.IsClaimed());  // else the fiber would sleep, cancelled
    ASSERT_EQ(fiber.state(), is_mine ? State::kRunning : State::kReady);
    delete fiber.record.cancel.exchange(nullptr, std::memory_order_relaxed);
  }
  canceller.join();
}

// A plain thread waits through a block, too.
TEST(ThreadWaitTest, APeerUnparksAThread) {
  for (int i = 0; i < 300; ++i) {
    std::atomic<Waiter*> linked{nullptr};
    std::thread peer([&linked] {
      Backoff backoff;
      Waiter* waiter;
      while ((waiter = linked.load(std::memory_order_acquire)) == nullptr) backoff.Pause();
      ASSERT_TRUE(waiter->TryClaim());
      WaitBlock& block = *waiter->block;
      block.outcome = 5;
      Unpark(block);
    });
    Wait wait(WaitReason::kEvent, nullptr);
    EXPECT_FALSE(wait.is_fiber());
    linked.store(&wait.Open(), std::memory_order_release);
    EXPECT_EQ(wait.Park(Deadline::Never()), 5u);
    peer.join();
  }
}

TEST(ThreadWaitTest, ADeadlineEndsTheWaitOfAThread) {
  Wait wait(WaitReason::kEvent, nullptr);
  const Waiter& waiter = wait.Open();
  const absl::Duration began = Now();
  EXPECT_EQ(wait.Park(absl::Milliseconds(2)), kOutcomeDeadline);
  EXPECT_GE(Now() - began, absl::Milliseconds(2));
  EXPECT_FALSE(wait.block().word.TryClaim(waiter.open_word));
}

// peer                     thread
// TryClaim, Unpark         times out: TryClaim
TEST(ThreadWaitTest, ATimeoutRacingAPeerEndsOneWay) {
  int by_peer = 0, by_deadline = 0;
  for (int i = 0; i < 300; ++i) {
    std::atomic<Waiter*> linked{nullptr};
    std::atomic<bool> has_claimed{false};
    std::thread peer([&] {
      Backoff backoff;
      Waiter* waiter;
      while ((waiter = linked.load(std::memory_order_acquire)) == nullptr) backoff.Pause();
      if (!waiter->TryClaim()) return;
      WaitBlock& block = *waiter->block;
      block.outcome = 5;
      has_claimed.store(true, std::memory_order_relaxed);
      Unpark(block);
    });
    Wait wait(WaitReason::kEvent, nullptr);
    const Deadline deadline = absl::Microseconds(20 * (i % 10));
    linked.store(&wait.Open(), std::memory_order_release);
    const uint32_t outcome = wait.Park(deadline);
    peer.join();
    ASSERT_EQ(outcome, has_claimed.load(std::memory_order_relaxed) ? 5u : kOutcomeDeadline);
    ++(outcome == 5 ? by_peer : by_deadline);
  }
  EXPECT_EQ(by_peer + by_deadline, 300);
}

TEST(ThreadWaitTest, GivingUpAWaitNobodyClaimed) {
  Wait wait(WaitReason::kEvent, nullptr);
  const uint64_t word = wait.Open().open_word;
  EXPECT_TRUE(wait.CloseUnclaimed());
  EXPECT_FALSE(wait.block().word.TryClaim(word));
}

}  // namespace
}  // namespace fiber::internal
