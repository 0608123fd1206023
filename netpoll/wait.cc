// SPDX-License-Identifier: Apache-2.0
#include "netpoll/wait.h"

#include <errno.h>
#include <poll.h>

#include "fiber/internal/context.h"
#include "fiber/internal/thread_state.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/scoped_fd.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll {

using fiber::Deadline;
using fiber::WaitReason;
using internal::Descriptor;
using internal::Direction;
using internal::ErrnoStatus;
using internal::FlowLock;
using internal::Poller;
using internal::ScopedFd;

namespace {

// OK: ready. kDeadlineExceeded: not, until then.
absl::Status PollUntil(int fd, short events, Deadline deadline) {
  const int what = internal::Poll(fd, events, deadline.nanos());
  if (what < 0) return ErrnoStatus(-what, "poll");
  if ((what & POLLNVAL) != 0) return ErrnoStatus(EBADF, "wait for a descriptor");
  return what == 0 ? absl::DeadlineExceededError("deadline exceeded") : absl::OkStatus();
}

// Owner drops a descriptor, whatever is thrown meanwhile.
struct Owner {
  Descriptor& descriptor;
  ~Owner() { descriptor.Drop(); }
};

absl::Status ParkUntil(int fd, Direction direction, short events, Deadline deadline) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  ScopedFd duplicate(internal::Duplicate(fd));
  if (duplicate.get() < 0) return ErrnoStatus(-duplicate.get(), "wait for a descriptor");
  absl::StatusOr<Descriptor*> descriptor = Descriptor::Create(**poller, duplicate.get(), false);
  if (!descriptor.ok()) return descriptor.status();
  (void)duplicate.Take();
  const Owner owner{**descriptor};
  FlowLock lock(owner.descriptor, direction, WaitReason::kDescriptor, deadline);
  absl::Status status = lock.status();
  while (status.ok()) {
    lock.flow().slot.ClearReady();
    status = PollUntil(owner.descriptor.fd(), events, Deadline::AtNanos(0));
    if (!absl::IsDeadlineExceeded(status)) break;
    status = lock.Await();
  }
  return status;
}

absl::Status WaitFor(int fd, Direction direction, short events, Deadline deadline) {
  fiber::internal::SpendTurn();  // what is always ready never waits
  if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
  if (fd < 0) return ErrnoStatus(EBADF, "wait for a descriptor");  // which poll(2) would never find ready
  if (fiber::internal::ThisThread().current == nullptr) {
    return PollUntil(fd, events, Deadline::Earlier(deadline, fiber::CurrentDeadline()));
  }
  absl::Status status = PollUntil(fd, events, Deadline::AtNanos(0));
  if (!absl::IsDeadlineExceeded(status)) return status;
  return ParkUntil(fd, direction, events, deadline);
}

}  // namespace

absl::Status WaitReadable(int fd, Deadline deadline) {
  return WaitFor(fd, Direction::kRead, POLLIN, deadline);
}

absl::Status WaitWritable(int fd, Deadline deadline) {
  return WaitFor(fd, Direction::kWrite, POLLOUT, deadline);
}

}  // namespace netpoll
