// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/wait.h"

#include "fiber/internal/context.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/park.h"
#include "fiber/internal/stack_guard.h"
#include "fiber/scheduler.h"

namespace fiber::internal {

Wait::Wait(WaitReason reason, const void* object, Interruptible interruptible)
    : interruptible_(interruptible) {
  ThreadState& thread = ThisThread();
  fiber_ = thread.current;
  if (fiber_ != nullptr) {
    SchedulePoint();
    block_ = fiber_->block.load(std::memory_order_relaxed);
  } else {
    if (thread.scheduler != nullptr) Fatal("a worker waits outside of any fiber");
    block_ = &PlainBlock(thread);
  }
  block_->reason = reason;
  block_->object = object;
}

absl::Status Wait::Check(Deadline deadline) const {
  if (fiber_ != nullptr && interruptible_ == Interruptible::kYes) {
    if (absl::Status status = CancelStatus(*fiber_); !status.ok()) return status;
  }
  if (deadline.is_past()) return StatusOf(kOutcomeDeadline);
  return absl::OkStatus();
}

Waiter& Wait::Open() {
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

bool Wait::CloseUnclaimed() {
  if (!block_->word.TryClaim(open_word_)) return false;
  if (fiber_ != nullptr) AbandonPark(*fiber_);
  return true;
}

uint32_t Wait::Park(Deadline deadline) {
  if (fiber_ == nullptr) {
    BlockThread(deadline.nanos());
    return block_->outcome;
  }
  if (interruptible_ == Interruptible::kYes && IsCancelled(*fiber_) && CloseUnclaimed()) {
    return kOutcomeCancelled;
  }
  const bool has_deadline = !deadline.is_never();
  if (has_deadline) {
    block_->timer.deadline_ns.store(deadline.nanos(), std::memory_order_seq_cst);  // order: timer
    if (!fiber_->scheduler->ArmTimer(ThisThread(), *block_, deadline.nanos()) && CloseUnclaimed()) [[unlikely]] {
      return kOutcomeNoTimer;
    }
  }
  ParkFiber();
  if (has_deadline) {
    block_->timer.deadline_ns.store(kNeverNs, std::memory_order_relaxed);
  }
  return block_->outcome;
}

void Wait::ParkFiber() {
  CheckCanary(*block_);
  if (TryFinishParkEarly(*fiber_)) return;
  ThreadState& thread = ThisThread();
  const int saved_errno = *thread.errno_address;
  Record* next = fiber_->scheduler->TakeNext(thread, nullptr);
  ThreadState& back = Switch(thread, next, After::kPark);
  *back.errno_address = saved_errno;
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
      absl::Status status = CancelStatus(*fiber_);
      return status.ok() ? absl::CancelledError() : status;
    }
    case kOutcomeNoTimer:
      return absl::ResourceExhaustedError(
          "no memory for the timer of a deadline: the heap is exhausted (the memory limit, ulimit -v)");
    default:
      return absl::OkStatus();
  }
}

bool IsCancelled(const Record& fiber) {
  return fiber.cancel.load(std::memory_order_seq_cst) != nullptr ||  // order: cancel
         fiber.scheduler->is_cancelled();
}

absl::Status CancelStatus(const Record& fiber) {
  if (const absl::Status* cause = fiber.cancel.load(std::memory_order_seq_cst);  // order: cancel
      cause != nullptr) {
    return absl::IsCancelled(*cause) ? *cause : absl::CancelledError(cause->message());
  }
  if (fiber.scheduler->is_cancelled()) {
    return absl::CancelledError("the runtime is shutting down");
  }
  return absl::OkStatus();
}

void ClaimForCancel(Record& fiber, uint64_t id) {
  // order: cancel — the fiber got its block before it opened its wait, which is seq_cst: so either its look at the cause
  // finds it, or this finds the block.
  WaitBlock* block = fiber.block.load(std::memory_order_seq_cst);  // order: owner, cancel
  if (block == nullptr) return;  // not started, or ended: it looks by itself, or never again
  const uint64_t word = block->word.Load();
  if (!WaitWord::IsOpen(word) || !WaitWord::IsInterruptible(word)) return;
  // If the claim succeeds, the block's owner was the same from the load of the word on.
  if (block->fiber.load(std::memory_order_acquire) != &fiber ||  // order: owner
      fiber.id.load(std::memory_order_acquire) != id) {          // order: owner
    return;
  }
  if (!block->word.TryClaim(word)) return;
  block->outcome = kOutcomeCancelled;
  Unpark(*block);
}

void Cancel(Record& fiber, const absl::Status& cause) {
  const absl::Status* expected = nullptr;
  auto* mine = new absl::Status(cause.ok() ? absl::CancelledError() : cause);
  if (!fiber.cancel.compare_exchange_strong(expected, mine, std::memory_order_seq_cst,  // order: cancel
                                            std::memory_order_relaxed)) {
    delete mine;
    return;
  }
  ClaimForCancel(fiber, fiber.id.load(std::memory_order_relaxed));
}

void GiveWayInSimulation() {
  ThreadState& thread = ThisThread();
  // Not from one that is about to park: its state says so already.
  if (thread.current != nullptr && thread.scheduler->is_simulation_ &&
      thread.current->state.load(std::memory_order_relaxed) == State::kRunning) {
    thread.scheduler->SchedulePoint(thread);
  }
}

}  // namespace fiber::internal
