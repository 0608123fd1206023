// SPDX-License-Identifier: Apache-2.0
//
// Wait for a descriptor that belongs to somebody else: a library's socket, a pipe, a pidfd, a terminal.
#ifndef WEFT_NETPOLL_WAIT_H_
#define WEFT_NETPOLL_WAIT_H_

#include "absl/status/status.h"
#include "fiber/deadline.h"

namespace netpoll {

// Waits until a read (write) of `fd` would not block: there is something, or an end or error to be told of, as poll(2)
// has it. Whether it then really does not block is between the caller and whoever else uses the descriptor. Files that
// are always ready are so here.
//
//   while ((n = TryRead(tty, line)) == 0) {  // which reads, and returns 0 where errno is EAGAIN
//     if (absl::Status status = netpoll::WaitReadable(tty, absl::Seconds(5)); !status.ok()) return status;
//   }
//
// It costs some system calls each time (the wait is on a duplicate, so that whatever happens to the number meanwhile
// does no harm): for what is read all day, netpoll's own streams are faster.
//
// Parks the fiber. Blocks the thread when called from a plain one. kDeadlineExceeded, kCancelled; kInvalidArgument: no such
// descriptor; kResourceExhausted: no descriptors, epoll watches or memory left; kFailedPrecondition: this fiber's
// scheduler has no poller (simulation).
// REQUIRES: `fd` is not closed meanwhile; if it is, the wait goes on as if it were not.
absl::Status WaitReadable(int fd, fiber::Deadline deadline = {});
absl::Status WaitWritable(int fd, fiber::Deadline deadline = {});

}  // namespace netpoll

#endif  // WEFT_NETPOLL_WAIT_H_
