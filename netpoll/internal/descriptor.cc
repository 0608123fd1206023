// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/descriptor.h"

#include <errno.h>

#include <utility>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/park.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {

using fiber::Deadline;
using fiber::WaitReason;
using fiber::internal::ClaimedWaiters;
using fiber::internal::Fatal;
using fiber::internal::kNeverNs;
using fiber::internal::kOutcomeCancelled;
using fiber::internal::kOutcomeDeadline;
using fiber::internal::StateWord;
using fiber::internal::ThisThread;
using fiber::internal::Unpark;
using fiber::internal::Wait;
using fiber::internal::Waiter;

// Life. ---------------------------------------------------------------------------------------------------------------

absl::StatusOr<Descriptor*> Descriptor::Create(Poller& poller, int fd, bool is_tcp) {
  Descriptor* made = DescriptorSlab::Take();
  if (made == nullptr) {
    return ErrnoStatus(absl::StatusCode::kResourceExhausted, ENOMEM, "a descriptor record", {},
                       " (address space (ulimit -v), the memory limit or vm.max_map_count is "
                       "exhausted; raise it or use less)");
  }
  Descriptor& self = *made;
  self.ended_.store(kAlive, std::memory_order_relaxed);
  self.fd_ = fd;
  self.poller_ = &poller;
  for (Flow& flow : self.flows_) {
    flow.slot.Reset();
    flow.deadline_ns.store(kNeverNs, std::memory_order_relaxed);
    flow.is_drained = false;
  }
  self.sticky_.store(0, std::memory_order_relaxed);
  self.pending_fd_ = -1;
  self.is_tcp_ = is_tcp;
  self.fork_generation_.store(fiber::internal::ForkGeneration(), std::memory_order_seq_cst);  // order: poll-end
  // Visible before it is added: Stop() goes through the records after it has marked the poller.
  (void)self.state_.LockQueue();
  self.state_.UnlockQueue(kHasOwner);
  struct Unwatched {
    Descriptor* record;
    ~Unwatched() {
      if (record == nullptr) return;
      record->fd_ = -1;  // remains the caller's
      record->Drop();
    }
  } unwatched{&self};  // whatever is thrown: no memory for a status
  if (absl::Status status = poller.Add(self); !status.ok()) return status;
  unwatched.record = nullptr;
  if (poller.is_stopped()) self.Orphan(poller);
  return made;
}

// Changes bits of the word. Returns what it then holds.
uint64_t Descriptor::Change(uint64_t set, uint64_t clear) {
  uint64_t seen = state_.Peek();
  for (;;) {
    if ((seen & kQueueLock) != 0) seen = state_.AwaitUnlocked();
    const uint64_t next = (seen | set) & ~clear;
    if (state_.TryGive(seen, next)) {
      (void)state_.Load();  // what other references did happens before what comes now
      return next;
    }
  }
}

bool Descriptor::TryRef() {
  if (!IsOwnProcess()) return false;
  uint64_t seen = state_.Peek();
  for (;;) {
    if ((seen & kQueueLock) != 0) seen = state_.AwaitUnlocked();
    if ((seen & kClosing) != 0) return false;
    if (state_.TryTake(seen, seen + kRef)) return true;
  }
}

void Descriptor::Unref() {
  uint64_t seen = state_.Peek();
  for (;;) {
    if ((seen & kQueueLock) != 0) seen = state_.AwaitUnlocked();
    if (state_.TryGive(seen, seen - kRef)) break;
  }
  if (IsUnused(seen - kRef)) CloseNow();
}

void Descriptor::Close() {
  if (is_closing()) return;
  if (!IsOwnProcess()) return CloseInFork();
  uint64_t seen = state_.Peek();
  do {
    if ((seen & kQueueLock) != 0) seen = state_.AwaitUnlocked();
    if ((seen & kClosing) != 0) return;
  } while (!state_.TryTake(seen, (seen | kClosing) + kRef));
  ended_.store(kClosedByOwner, std::memory_order_seq_cst);  // order: poll-end

  // Those that wait give up nothing by themselves any more: their references go here, then they are unparked.
  ClaimedWaiters queued;
  uint64_t gone = 0;
  seen = state_.LockQueue();
  for (Flow& flow : flows_) {
    while (Waiter* waiter = flow.queue.first()) {
      if (queued.Claim(flow.queue, *waiter, waiter->clause | kOutcomeClosed)) gone += kRef;
    }
  }
  state_.UnlockQueue((seen & ~kHasWaiters) - gone);
  WaitBlock* parked[2];
  for (Direction direction : {Direction::kRead, Direction::kWrite}) {
    WaitBlock*& block = parked[static_cast<int>(direction)];
    block = flow(direction).slot.ClaimWaiter(kOutcomeClosed);
    if (block != nullptr) Unlock(direction);
  }
  Unref();
  for (WaitBlock* block : parked) {
    if (block != nullptr) Unpark(*block);
  }
  queued.Unpark();
}

// In a child of fork(). Whoever held locks and references stayed in the parent.
void Descriptor::CloseInFork() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  state_.UnlockQueue(kClosing | kHasOwner);
  ended_.store(kClosedByOwner, std::memory_order_relaxed);
  CloseNow();
}

int Descriptor::Release() {
  if (!IsOwnProcess()) return -1;
  uint64_t seen = state_.Peek();
  do {
    if ((seen & kQueueLock) != 0) seen = state_.AwaitUnlocked();
    if ((seen & kClosing) != 0) return -1;
    if (seen >= kRef) Fatal("a socket is released while another call on it is under way");
  } while (!state_.TryTake(seen, (seen | kClosing) + kRef));
  ended_.store(kClosedByOwner, std::memory_order_seq_cst);  // order: poll-end
  poller_->Remove(fd_);
  const int fd = std::exchange(fd_, -1);
  Unref();
  return fd;
}

void Descriptor::Drop() {
  Close();
  if ((Change(0, kHasOwner) & kClosed) != 0) Recycle();
}

// By whoever dropped the last reference.
void Descriptor::CloseNow() {
  (void)state_.Load();  // what other references did happens before what comes now
  if (fd_ >= 0) {
    poller_->Remove(fd_);
    internal::Close(fd_);
  }
  if (pending_fd_ >= 0) internal::Close(pending_fd_);
  if ((Change(kClosed, 0) & kHasOwner) == 0) Recycle();
}

void Descriptor::Recycle() {
  generation_.fetch_add(1, std::memory_order_relaxed);
  DescriptorSlab::Give(*this);
}

// With the lock of the queues, not a reference, which an owner who releases the descriptor would take for a call of his own.
void Descriptor::Orphan(Poller& poller) {
  // A copy: whoever had that lock at the fork has it for ever.
  if (!IsOwnProcess()) return;
  WaitBlock* parked[2] = {};
  const uint64_t seen = state_.LockQueue();
  uint32_t alive = kAlive;
  if ((seen & kClosing) == 0 && poller_ == &poller &&
      ended_.compare_exchange_strong(alive, kOrphaned, std::memory_order_seq_cst,  // order: poll-end
                                     std::memory_order_relaxed)) {
    for (int i = 0; i < 2; ++i) parked[i] = flows_[i].slot.ClaimWaiter(kOutcomeLookAgain);
  }
  state_.UnlockQueue(seen);
  for (WaitBlock* block : parked) {
    if (block != nullptr) Unpark(*block);
  }
}

absl::Status Descriptor::CheckAlive() const {
  const uint32_t ended = ended_.load(std::memory_order_relaxed);
  if (ended == kClosedByOwner) return ClosedStatus();
  if (ended == kOrphaned || !IsOwnProcess()) return RuntimeEndedStatus();
  return absl::OkStatus();
}

bool Descriptor::IsOwnProcess() const {
  return fork_generation_.load(std::memory_order_seq_cst) == fiber::internal::ForkGeneration();  // order: poll-end
}

// News. ---------------------------------------------------------------------------------------------------------------

void Descriptor::OnEvent(uint32_t bits) {
  constexpr uint32_t kSticky = kPeerClosed | kHangup | kError | kUrgent;
  const uint32_t sticky = bits & kSticky;
  // Before the mark: whoever acts on that sees them.
  if ((sticky & ~sticky_.load(std::memory_order_relaxed)) != 0) {
    sticky_.fetch_or(sticky, std::memory_order_relaxed);
  }
  if ((bits & (kReadable | kSticky)) != 0) flow(Direction::kRead).slot.MarkReady();
  if ((bits & (kWritable | kHangup | kError)) != 0) flow(Direction::kWrite).slot.MarkReady();
}

void Descriptor::SetDeadline(Direction direction, Deadline deadline) {
  Flow& flow = this->flow(direction);
  const int64_t before =
      flow.deadline_ns.exchange(deadline.nanos(), std::memory_order_seq_cst);  // order: poll-slot
  // Under a later one, whoever waits looks at it when the earlier one wakes him.
  if (deadline.nanos() >= before) return;
  WaitBlock* block = flow.slot.ClaimWaiter(kOutcomeLookAgain);
  if (block != nullptr) Unpark(*block);
}

// Locks of flows. -----------------------------------------------------------------------------------------------------

bool Descriptor::TryLock(Direction direction) {
  uint64_t seen = state_.Peek();
  for (;;) {
    if ((seen & kQueueLock) != 0) seen = state_.AwaitUnlocked();  // who has that need not have the flow
    if ((seen & (kClosing | LockBit(direction))) != 0) return false;
    if (state_.TryTake(seen, (seen | LockBit(direction)) + kRef)) return true;
  }
}

absl::Status Descriptor::LockSlow(Direction direction, WaitReason reason, Deadline deadline) {
  Wait wait(reason, this);
  if (absl::Status status = wait.Check(deadline); !status.ok()) {
    return is_closing() ? ClosedStatus() : status;
  }
  uint64_t seen = state_.LockQueue();
  if ((seen & kClosing) != 0) {
    state_.UnlockQueue(seen);
    return ClosedStatus();
  }
  if ((seen & LockBit(direction)) == 0) {
    state_.UnlockQueue((seen | LockBit(direction)) + kRef);
    return absl::OkStatus();
  }
  Flow& flow = this->flow(direction);
  Waiter& waiter = wait.Open();
  flow.queue.PushBack(waiter);
  state_.UnlockQueue((seen | kHasWaiters) + kRef);
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == kOutcomeReady) return absl::OkStatus();
  if (outcome == kOutcomeClosed) return ClosedStatus();
  LeaveQueue(flow, waiter);
  return wait.StatusOf(outcome);
}

void Descriptor::LeaveQueue(Flow& flow, Waiter& waiter) {
  uint64_t next = state_.LockQueue() - kRef;
  if (waiter.is_linked) flow.queue.Remove(waiter);
  if (AreQueuesEmpty()) next &= ~kHasWaiters;
  state_.UnlockQueue(next);
  if (IsUnused(next)) CloseNow();
}

void Descriptor::Unlock(Direction direction) {
  uint64_t seen = state_.Peek();
  for (;;) {
    if ((seen & (kQueueLock | kHasWaiters)) != 0) return UnlockSlow(direction);
    const uint64_t next = (seen & ~LockBit(direction)) - kRef;
    if (state_.TryGive(seen, next)) {
      if (IsUnused(next)) CloseNow();
      return;
    }
  }
}

// Hands the flow to the first that waits for it.
void Descriptor::UnlockSlow(Direction direction) {
  Flow& flow = this->flow(direction);
  ClaimedWaiters claimed;
  uint64_t next = state_.LockQueue() - kRef;
  bool is_handed_over = false;
  while (!is_handed_over && !flow.queue.is_empty()) {
    Waiter& first = *flow.queue.first();
    is_handed_over = claimed.Claim(flow.queue, first, first.clause | kOutcomeReady);
  }
  if (!is_handed_over) next &= ~LockBit(direction);
  if (AreQueuesEmpty()) next &= ~kHasWaiters;
  state_.UnlockQueue(next);
  if (IsUnused(next)) CloseNow();
  claimed.Unpark();
}

FlowLock::FlowLock(Descriptor& descriptor, Direction direction, WaitReason reason,
                   Deadline deadline)
    : descriptor_(descriptor), deadline_(deadline), direction_(direction), reason_(reason) {
  if (!descriptor.IsOwnProcess()) [[unlikely]] {
    status_ = RuntimeEndedStatus();
    return;
  }
  bool is_closing = false;
  if (!descriptor.TryLock(direction)) [[unlikely]] {
    status_ = descriptor.LockSlow(direction, reason, deadline);
    if (!status_.ok()) return;
    // Handed over between Close()'s first step and its look at the queues.
    is_closing = descriptor.is_closing();
  }
  has_lock_ = true;
  try {
    status_ = is_closing ? ClosedStatus() : CheckCaller();
  } catch (...) {  // no memory for a status, and no destructor for what was not made
    descriptor.Unlock(direction);
    throw;
  }
}

absl::Status FlowLock::CheckCaller() const {
  return fiber::internal::CheckCaller(Deadline::Earlier(
      deadline_, Deadline::AtNanos(flow().deadline_ns.load(std::memory_order_relaxed))));
}

absl::Status FlowLock::Check() const {
  if (descriptor_.is_closing()) return ClosedStatus();
  return CheckCaller();
}

absl::Status FlowLock::AwaitUntil(Deadline pause) {
  Flow& flow = this->flow();
  const auto limit = [&] {
    return Deadline::Earlier(deadline_, Deadline::AtNanos(flow.deadline_ns.load(
                                            std::memory_order_seq_cst)));  // order: poll-slot
  };
  for (;;) {
    Wait wait(reason_, &descriptor_);
    if (absl::Status status = descriptor_.CheckAlive(); !status.ok()) return status;
    if (absl::Status status = wait.Check(limit()); !status.ok()) return status;
    if (pause.is_past()) return absl::OkStatus();

    wait.Open();
    if (!pause.is_never()) {
      flow.slot.LinkDeaf(wait.block());
    } else if (!flow.slot.TryLink(wait.block())) {
      if (wait.CloseUnclaimed()) return absl::OkStatus();
      return wait.StatusOf(wait.Park(Deadline::Never()));  // only a cancellation can have claimed it
    }
    // Linked; now what was stored before somebody looked at the slot in vain.
    if (descriptor_.ended_.load(std::memory_order_seq_cst) != Descriptor::kAlive &&  // order: poll-end
        wait.CloseUnclaimed()) {
      flow.slot.Unlink();
      continue;
    }
    const uint32_t outcome = wait.Park(Deadline::Earlier(limit(), pause));
    switch (outcome) {
      case kOutcomeReady: return absl::OkStatus();
      case kOutcomeClosed: has_lock_ = false; return ClosedStatus();
      case kOutcomeLookAgain: break;
      case kOutcomeDeadline: flow.slot.Unlink(); break;
      default: flow.slot.Unlink(); return wait.StatusOf(outcome);
    }
  }
}

}  // namespace netpoll::internal
