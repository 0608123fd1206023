// SPDX-License-Identifier: Apache-2.0
#include "netpoll/sim/internal/backlog.h"

#include <errno.h>

#include <utility>

#include "fiber/internal/wait.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/sim/internal/turn.h"

namespace netpoll::sim::internal {

using fiber::Deadline;
using fiber::WaitReason;
using fiber::internal::ClaimedWaiters;
using fiber::internal::Wait;
using netpoll::internal::ClosedStatus;
using netpoll::internal::ErrnoStatus;

absl::StatusOr<std::shared_ptr<Connection>> Backlog::Accept(Deadline deadline) {
  Turn turn(accepting_, deadline);
  if (!turn.status().ok()) return is_closed() ? ClosedStatus() : turn.status();
  for (;;) {
    Wait wait(WaitReason::kAccept, this);
    if (is_closed()) return ClosedStatus();
    if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
    Connections taken;
    const uint64_t word = lock_.LockQueue();
    if (is_closed_) {
      lock_.UnlockQueue(word);
      continue;
    }
    if (!waiting_.empty()) {
      taken.splice(taken.end(), waiting_, waiting_.begin());
      UnlockAndWake(connector_);
      return std::move(taken.front());
    }
    absl::Status status = fiber::internal::ParkInQueue(wait, lock_, word, acceptor_, deadline);
    if (!status.ok()) return status;
  }
}

absl::Status Backlog::Offer(std::shared_ptr<Connection> connection, std::string_view address,
                            Deadline deadline) {
  Turn turn(connecting_, deadline);
  if (!turn.status().ok()) return turn.status();
  Connections offered;
  offered.push_back(std::move(connection));
  for (;;) {
    Wait wait(WaitReason::kConnect, this);
    if (is_closed()) return ErrnoStatus(ECONNREFUSED, "connect to", address);
    if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
    const uint64_t word = lock_.LockQueue();
    if (is_closed_) {
      lock_.UnlockQueue(word);
      continue;
    }
    if (waiting_.size() < most_) {
      waiting_.splice(waiting_.end(), offered);
      UnlockAndWake(acceptor_);
      return absl::OkStatus();
    }
    absl::Status status = fiber::internal::ParkInQueue(wait, lock_, word, connector_, deadline);
    if (!status.ok()) return status;
  }
}

void Backlog::Close() {
  Connections refused;
  ClaimedWaiters claimed;
  lock_.LockQueue();
  is_closed_ = true;
  refused.swap(waiting_);
  for (fiber::internal::WaitQueue* queue : {&acceptor_, &connector_}) {
    while (fiber::internal::Waiter* first = queue->first()) claimed.Claim(*queue, *first);
  }
  lock_.UnlockQueue(0);
  claimed.Unpark();
  for (const auto& connection : refused) connection->Reset(1);
}

bool Backlog::is_closed() {
  const uint64_t word = lock_.LockQueue();
  const bool is_closed = is_closed_;
  lock_.UnlockQueue(word);
  return is_closed;
}

void Backlog::UnlockAndWake(fiber::internal::WaitQueue& queue) {
  ClaimedWaiters claimed;
  while (fiber::internal::Waiter* first = queue.first()) claimed.Claim(queue, *first);
  lock_.UnlockQueue(0);
  claimed.Unpark();
}

}  // namespace netpoll::sim::internal
