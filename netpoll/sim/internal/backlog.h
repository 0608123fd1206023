// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_SIM_INTERNAL_BACKLOG_H_
#define WEFT_NETPOLL_SIM_INTERNAL_BACKLOG_H_

#include <cstddef>
#include <list>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"
#include "fiber/semaphore.h"
#include "netpoll/sim/internal/connection.h"

namespace netpoll::sim::internal {

// Backlog is the connections to one address that wait to be accepted. All of MemoryListener is
// here.
//
// As at Connection: locked are a few lines that neither park nor allocate; who is parked looks
// again after each change. Accepting and connecting queue for their turn before that.
class Backlog {
 public:
  explicit Backlog(int most) : most_(static_cast<size_t>(most)) {}

  // kFailedPrecondition: closed.
  absl::StatusOr<std::shared_ptr<Connection>> Accept(fiber::Deadline deadline);
  // Waits for room. kUnavailable: closed; else as Accept.
  absl::Status Offer(std::shared_ptr<Connection> connection, std::string_view address,
                     fiber::Deadline deadline);
  void Close();
  bool is_closed();

 private:
  using Connections = std::list<std::shared_ptr<Connection>>;

  // Claims all who are parked in `queue`, and unlocks.
  void UnlockAndWake(fiber::internal::WaitQueue& queue) ABSL_UNLOCK_FUNCTION(lock_);

  const size_t most_;
  fiber::Semaphore accepting_{1};
  fiber::Semaphore connecting_{1};

  fiber::internal::StateWord lock_;
  Connections waiting_ ABSL_GUARDED_BY(lock_);
  bool is_closed_ ABSL_GUARDED_BY(lock_) = false;
  fiber::internal::WaitQueue acceptor_ ABSL_GUARDED_BY(lock_);
  fiber::internal::WaitQueue connector_ ABSL_GUARDED_BY(lock_);
};

}  // namespace netpoll::sim::internal

#endif  // WEFT_NETPOLL_SIM_INTERNAL_BACKLOG_H_
