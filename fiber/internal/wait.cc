// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/wait.h"

#include <new>

#include "fiber/internal/blocking_region.h"
#include "fiber/internal/cancel_node.h"
#include "fiber/internal/context.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/leave_hook.h"
#include "fiber/internal/park.h"
#include "fiber/internal/stack_guard.h"
#include "fiber/scheduler.h"

namespace fiber::internal {

namespace {

Deadline AmbientDeadline(const WaitBlock& mine) {
  return mine.ambient == nullptr ? Deadline::Never() : Deadline::AtNanos(mine.ambient->deadline_ns);
}

// What ends a call before it begins; `mine` is null if neither a cancellation nor an ambient deadline can.
absl::Status BoundsStatus(const WaitBlock* mine, Deadline deadline) {
  if (mine != nullptr) {
    if (absl::Status status = CancelStatus(*mine); !status.ok()) return status;
    deadline = Deadline::Earlier(deadline, AmbientDeadline(*mine));
  }
  return deadline.is_past() ? absl::DeadlineExceededError("deadline exceeded") : absl::OkStatus();
}

// A call that fails at once has not parked: who calls again and again must not keep its worker to itself.
absl::Status SpendTurnIfFailed(absl::Status status) {
  if (!status.ok()) SpendTurn();
  return status;
}

const WaitBlock* CallersBlockIfAny() {
  const ThreadState& thread = ThisThread();
  return thread.current == nullptr ? thread.plain_block
                                   : thread.current->block.load(std::memory_order_relaxed);
}

}  // namespace

WaitBlock& Wait::BlockOf(ThreadState& thread) {
  if (thread.scheduler != nullptr) Fatal("a worker waits outside of any fiber");
  return PlainBlock(thread);
}

void Wait::EndTurn() { internal::SpendTurn(0); }

absl::Status Wait::CheckBounds(const WaitBlock& block, Interruptible interruptible,
                               Deadline deadline) {
  const WaitBlock* const mine = interruptible == Interruptible::kYes ? &block : nullptr;
  return SpendTurnIfFailed(BoundsStatus(mine, deadline));
}

Waiter& Wait::Open() {
  block_->reason = reason_;
  block_->object = object_;
  if (fiber_ != nullptr) {
    BeginPark(*fiber_);
  } else {
    block_->signal.store(0, std::memory_order_relaxed);
  }
  open_word_ = block_->word.Open(interruptible_ == Interruptible::kYes);
  Waiter& waiter = block_->waiter;
  waiter.block = block_;
  waiter.open_word = open_word_;
  waiter.value = nullptr;
  waiter.clause = 0;
  waiter.amount = 0;
  return waiter;
}

void Wait::AddClause(Waiter& waiter, uint32_t clause) const {
  waiter.block = block_;
  waiter.open_word = open_word_;
  waiter.clause = clause;
  waiter.is_linked = false;
}

bool Wait::CloseUnclaimed() {
  if (!block_->word.TryClaim(open_word_)) return false;
  if (fiber_ != nullptr) AbandonPark(*fiber_);
  return true;
}

inline void Wait::ParkFiber() {
  CheckCanary(*block_);
  TellLeaveHook(*fiber_, Leaving::kPark);
  if (TryFinishParkEarly(*fiber_)) return;
  if (fiber_->is_bound()) [[unlikely]] {
    ParkBound(*fiber_);
    return;
  }
  ThreadState& thread = ThisThread();
  const int saved_errno = *thread.errno_address;
  Record* next = fiber_->scheduler->TakeNext(thread, nullptr);
  ThreadState& back = Switch(thread, next, After::kPark);
  *back.errno_address = saved_errno;
}

uint32_t Wait::Park(Deadline deadline) {
  if (interruptible_ == Interruptible::kYes) {
    if (IsBounded() && IsCancelled(*block_) && CloseUnclaimed()) return kOutcomeCancelled;
    deadline = Deadline::Earlier(deadline, AmbientDeadline(*block_));
  }
  if (fiber_ == nullptr) {
    BlockThread(deadline.nanos());
    return block_->outcome;
  }
  const bool has_deadline = !deadline.is_never();
  if (has_deadline) {
    block_->timer.deadline_ns.store(deadline.nanos(), std::memory_order_seq_cst);  // order: timer
    // A bound fiber's thread waits until then by itself.
    if (!fiber_->is_bound() && !fiber_->scheduler->ArmTimer(ThisThread(), *block_, deadline.nanos()) &&
        CloseUnclaimed()) [[unlikely]] {
      block_->timer.deadline_ns.store(kNeverNs, std::memory_order_relaxed);
      return kOutcomeNoTimer;
    }
  }
  ParkFiber();
  if (has_deadline) {
    block_->timer.deadline_ns.store(kNeverNs, std::memory_order_relaxed);
  }
  return block_->outcome;
}

// order: thread-signal — release by the unparker, acquire by the thread: what the claimer wrote travels with it.
void Wait::BlockThread(int64_t deadline_ns) {
  while (block_->signal.load(std::memory_order_acquire) == 0) {  // order: thread-signal
    if (FutexWait(block_->signal, 0, deadline_ns)) continue;
    if (block_->word.TryClaim(open_word_)) {
      block_->outcome = kOutcomeDeadline;
      return;
    }
    deadline_ns = kNeverNs;  // claimed: the unpark comes
  }
}

absl::Status Wait::StatusOf(uint32_t outcome) const {
  switch (outcome) {
    case kOutcomeDeadline:
      return absl::DeadlineExceededError("deadline exceeded");
    case kOutcomeCancelled: {
      absl::Status status = CancelStatus(*block_);
      return status.ok() ? absl::CancelledError() : status;
    }
    case kOutcomeNoTimer:
      return absl::ResourceExhaustedError(
          "no memory for the timer of a deadline: the heap is exhausted (the memory limit, ulimit -v)");
    default:
      return absl::OkStatus();
  }
}

bool IsCancelled(const WaitBlock& mine) {
  if (mine.node != nullptr) {
    const CancelNode* const node = CancelNode::Around(mine);
    if (node != nullptr && node->is_cancelled()) return true;
  }
  const Record* const fiber = mine.fiber.load(std::memory_order_relaxed);
  return fiber != nullptr && mine.shields.load(std::memory_order_relaxed) == 0 &&
         (fiber->cancel.load(std::memory_order_seq_cst) != nullptr ||  // order: cancel
          fiber->scheduler->is_cancelled());
}

absl::Status SeenOf(const absl::Status& cause) {
  if (absl::IsCancelled(cause) || absl::IsDeadlineExceeded(cause)) return cause;
  return absl::CancelledError(cause.message());
}

absl::Status CancelStatus(const WaitBlock& mine) {
  const Record* const fiber = mine.fiber.load(std::memory_order_relaxed);
  if (fiber != nullptr && mine.shields.load(std::memory_order_relaxed) == 0) {
    if (const absl::Status* cause = fiber->cancel.load(std::memory_order_seq_cst);  // order: cancel
        cause != nullptr) {
      return SeenOf(*cause);
    }
    if (fiber->scheduler->is_cancelled()) {
      return absl::CancelledError("the runtime is shutting down");
    }
  }
  if (mine.node == nullptr) return absl::OkStatus();
  const CancelNode* const node = CancelNode::Around(mine);
  return node == nullptr ? absl::OkStatus() : node->status();
}

absl::Status CheckCaller(Deadline deadline) {
  return SpendTurnIfFailed(BoundsStatus(CallersBlockIfAny(), deadline));
}

absl::Status CallerStatus() { return BoundsStatus(CallersBlockIfAny(), Deadline::Never()); }

bool TryClaimForCancel(WaitBlock& block, uint32_t shields) {
  const uint64_t word = block.word.Load();
  if (!WaitWord::IsOpen(word) || !WaitWord::IsInterruptible(word)) return false;
  // If the claim succeeds, this wait was open from the load of the word on, and shields change outside of waits only.
  if (block.shields.load(std::memory_order_seq_cst) > shields || !block.word.TryClaim(word)) return false;  // order: cancel
  block.outcome = kOutcomeCancelled;
  return true;
}

void ClaimForCancel(Record& fiber, uint64_t id) {
  // order: cancel — the fiber got its block before it opened its wait, which is seq_cst: so either its look at the cause
  // finds it, or this finds the block.
  WaitBlock* block = fiber.block.load(std::memory_order_seq_cst);  // order: owner, cancel
  if (block == nullptr) return;  // not started, or ended: it looks by itself, or never again
  const uint64_t word = block->word.Load();
  if (!WaitWord::IsOpen(word) || !WaitWord::IsInterruptible(word)) return;
  // If the claim succeeds, the block's owner was the same from the load of the word on, and so were its shields.
  if (block->fiber.load(std::memory_order_acquire) != &fiber ||     // order: owner
      fiber.id.load(std::memory_order_acquire) != id ||             // order: owner
      block->shields.load(std::memory_order_seq_cst) != 0) {        // order: cancel
    return;
  }
  if (!block->word.TryClaim(word)) return;
  block->outcome = kOutcomeCancelled;
  Unpark(*block);
}

absl::Status CancelledFor(const char* why) noexcept {
  try {
    return absl::CancelledError(why);
  } catch (const std::bad_alloc&) {
    return CancelledWithoutMemory();
  }
}

namespace {

// Never destroyed, and nothing is allocated for it.
const absl::Status& CauseWithoutMemory() {
  alignas(absl::Status) static char place[sizeof(absl::Status)];
  static const absl::Status& cause = *new (place) absl::Status(CancelledWithoutMemory());
  return cause;
}

// A child of fork() may need it while another thread of its parent's made it.
[[maybe_unused]] const absl::Status& cause_made_before_main = CauseWithoutMemory();

}  // namespace

const absl::Status* NewCause(const absl::Status& cause) {
  try {
    return new absl::Status(cause);
  } catch (const std::bad_alloc&) {
    return &CauseWithoutMemory();
  }
}

void FreeCause(const absl::Status* cause) {
  if (cause != &CauseWithoutMemory()) delete cause;
}

void Cancel(Record& fiber, const absl::Status& cause) {
  const absl::Status* expected = nullptr;
  const absl::Status* const mine = NewCause(cause.ok() ? absl::CancelledError() : cause);
  if (!fiber.cancel.compare_exchange_strong(expected, mine, std::memory_order_seq_cst,  // order: cancel
                                            std::memory_order_relaxed)) {
    FreeCause(mine);
    return;
  }
  const uint64_t id = fiber.id.load(std::memory_order_relaxed);
  ClaimForCancel(fiber, id);
  if (CancelNode* scope = TakeOutermostScope(fiber, id); scope != nullptr) {
    scope->Cancel(cause);
    scope->Unref();
  }
}

bool IsCallers(const void* block) {
  const ThreadState& thread = ThisThread();
  if (block == nullptr) return false;
  if (thread.current == nullptr && block == thread.plain_block) return true;
  const Record* const fiber = thread.current != nullptr ? thread.current : thread.blocked_fiber;
  return fiber != nullptr && block == fiber->block.load(std::memory_order_relaxed);
}

void GiveWayInSimulation() {
  ThreadState& thread = ThisThread();
  // Not from one that is about to park: its state says so already.
  if (thread.current != nullptr && thread.scheduler->is_simulation() &&
      thread.current->state.load(std::memory_order_relaxed) == State::kRunning) {
    thread.scheduler->SchedulePoint(thread);
  }
}

}  // namespace fiber::internal
