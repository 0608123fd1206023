// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_SIM_INTERNAL_TURN_H_
#define WEFT_NETPOLL_SIM_INTERNAL_TURN_H_

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/semaphore.h"

namespace netpoll::sim::internal {

// Turn is one call among those that queue for a semaphore of one permit: one at a time, in order of
// arrival.
class Turn {
 public:
  Turn(fiber::Semaphore& turns, fiber::Deadline deadline)
      : turns_(turns), status_(turns.Acquire(1, deadline)) {}
  ~Turn() {
    if (status_.ok()) turns_.Release();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // kDeadlineExceeded, kCancelled: it never came.
  const absl::Status& status() const { return status_; }

 private:
  fiber::Semaphore& turns_;
  const absl::Status status_;
};

}  // namespace netpoll::sim::internal

#endif  // WEFT_NETPOLL_SIM_INTERNAL_TURN_H_
