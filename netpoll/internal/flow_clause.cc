// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/flow_clause.h"

#include <poll.h>

#include <utility>

#include "fiber/internal/park.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {

using fiber::Deadline;
using fiber::internal::Unpark;
using fiber::internal::Wait;

Flow& FlowClause::flow() const { return descriptor_->flow(direction_); }

void FlowClause::End(absl::Status status) {
  is_over_ = true;
  status_ = std::move(status);
}

void FlowClause::Prepare() {
  Release();  // a select before this one may have been left by an exception
  is_over_ = false;
  armed_ = Deadline::Never();
  status_ = absl::OkStatus();
  if (descriptor_ == nullptr || descriptor_->is_closing()) return End(ClosedStatus());
  if (absl::Status status = descriptor_->CheckAlive(); !status.ok()) return End(std::move(status));
  if (!descriptor_->TryLock(direction_)) return;  // queues for it, if it comes to waiting
  hold_ = Hold::kFlow;
  Look();
}

void FlowClause::Release() {
  if (hold_ == Hold::kFlow) descriptor_->Unlock(direction_);
  hold_ = Hold::kNothing;
}

void FlowClause::Look() {
  must_look_ = false;
  if (descriptor_->is_closing()) return End(ClosedStatus());
  if (absl::Status status = descriptor_->CheckAlive(); !status.ok()) return End(std::move(status));
  armed_ = FlowDeadline();
  if (armed_.is_past()) return End(absl::DeadlineExceededError("deadline exceeded"));
  if (direction_ == Direction::kRead && descriptor_->pending_fd() >= 0) return End(absl::OkStatus());
  flow().slot.ClearReady();
  flow().is_drained = false;
  const short events = direction_ == Direction::kRead ? POLLIN : POLLOUT;
  const int what = internal::Poll(descriptor_->fd(), events, 0);
  if (what < 0) return End(ErrnoStatus(-what, "poll"));
  if (what > 0) End(absl::OkStatus());
}

Deadline FlowClause::FlowDeadline() const {
  return Deadline::AtNanos(flow().deadline_ns.load(std::memory_order_seq_cst));  // order: poll-slot
}

bool FlowClause::TryLink(Wait& wait) {
  if (is_over_) return false;
  if (hold_ == Hold::kNothing) return TryLinkInQueue();
  if (must_look_) return false;
  PollSlot& slot = flow().slot;
  if (!slot.TryLink(wait.block(), waiter.clause)) return false;
  // Linked; now what was stored before somebody looked at the slot in vain. As one of those would, and so that one unpark
  // comes, whoever claims.
  if (descriptor_->ended_.load(std::memory_order_seq_cst) != Descriptor::kAlive ||  // order: poll-end
      FlowDeadline() < armed_) {
    if (fiber::internal::WaitBlock* mine = slot.ClaimWaiter(kOutcomeLookAgain); mine != nullptr) {
      Unpark(*mine);
    }
  }
  return true;
}

bool FlowClause::TryLinkInQueue() {
  const uint64_t seen = descriptor_->state_.LockQueue();
  if ((seen & Descriptor::kClosing) != 0) {
    descriptor_->state_.UnlockQueue(seen);
    return false;
  }
  if ((seen & Descriptor::LockBit(direction_)) == 0) {
    descriptor_->state_.UnlockQueue((seen | Descriptor::LockBit(direction_)) + Descriptor::kRef);
    hold_ = Hold::kFlow;
    must_look_ = true;
    return false;  // not over: to be looked at. Now, or, if another clause has ended this wait, when it is to be linked again
  }
  flow().queue.PushBack(waiter);
  descriptor_->state_.UnlockQueue((seen | Descriptor::kHasWaiters) + Descriptor::kRef);
  hold_ = Hold::kQueued;
  return true;
}

void FlowClause::Unlink(Wait&) {
  if (hold_ == Hold::kFlow) return flow().slot.Unlink();
  descriptor_->LeaveQueue(flow(), waiter);
  hold_ = Hold::kNothing;
}

bool FlowClause::IsOver(uint32_t outcome) {
  if (outcome == kOutcomeClosed) {  // and the lock and the reference are gone
    hold_ = Hold::kNothing;
    End(ClosedStatus());
  }
  if (is_over_) return true;
  if (hold_ == Hold::kNothing) {
    End(ClosedStatus());
  } else {
    hold_ = Hold::kFlow;  // it was queued for
    Look();
  }
  return is_over_;
}

}  // namespace netpoll::internal
