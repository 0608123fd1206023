// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/backend_epoll.h"

#include <errno.h>
#include <sys/epoll.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "fiber/internal/atomic.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {
namespace {

using fiber::internal::Atomic;
using fiber::internal::Fatal;
using fiber::internal::kNeverNs;
using fiber::internal::MonotonicNs;

constexpr uint64_t kKickTag = 0;
constexpr int kCapacity = 128;

// Linux 5.11; older kernels, seccomp and gVisor refuse it, whatever was said at start, so the answer is taken at the
// call. Once refused it is not tried again: then waits are rounded up to milliseconds.
Atomic<bool> has_pwait2{true};

int WaitMilliseconds(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns) {
  const int64_t milliseconds = timeout_ns / 1'000'000 + (timeout_ns % 1'000'000 != 0 ? 1 : 0);
  return EpollWait(epoll_fd, events, capacity,
                   static_cast<int>(std::min<int64_t>(milliseconds, INT_MAX)));
}

// Until when: -1 without end.
int64_t TimeoutUntil(int64_t deadline_ns) {
  if (deadline_ns == kNeverNs) return -1;
  if (deadline_ns <= 0) return 0;
  return std::max<int64_t>(deadline_ns - MonotonicNs(), 0);
}

// The count or -errno.
int WaitOnce(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns) {
  if (timeout_ns <= 0) {
    return EpollWait(epoll_fd, events, capacity, static_cast<int>(timeout_ns));
  }
  if (has_pwait2.load(std::memory_order_relaxed)) {
    const int count = EpollWaitNs(epoll_fd, events, capacity, timeout_ns);
    if (count != -ENOSYS && count != -EPERM) return count;
    has_pwait2.store(false, std::memory_order_relaxed);
  }
  return WaitMilliseconds(epoll_fd, events, capacity, timeout_ns);
}

uint32_t BitsOf(uint32_t events) {
  uint32_t bits = 0;
  if ((events & EPOLLIN) != 0) bits |= kReadable;
  if ((events & EPOLLOUT) != 0) bits |= kWritable;
  if ((events & EPOLLRDHUP) != 0) bits |= kPeerClosed;
  if ((events & EPOLLHUP) != 0) bits |= kHangup;
  if ((events & EPOLLERR) != 0) bits |= kError;
  if ((events & EPOLLPRI) != 0) bits |= kUrgent;
  return bits;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> EpollBackend::Create() {
  const int epoll_fd = MakeEpoll();
  if (epoll_fd < 0) return ErrnoStatus(-epoll_fd, "epoll_create1");
  const int event_fd = MakeEventFd();
  if (event_fd < 0) {
    Close(epoll_fd);
    return ErrnoStatus(-event_fd, "eventfd");
  }
  std::unique_ptr<Backend> backend(new EpollBackend(epoll_fd, event_fd));
  if (const int error = EpollAdd(epoll_fd, event_fd, EPOLLIN | EPOLLET, kKickTag); error < 0) {
    return ErrnoStatus(-error, "epoll_ctl");
  }
  return backend;
}

EpollBackend::~EpollBackend() {
  Close(event_fd_);
  Close(epoll_fd_);
}

absl::Status EpollBackend::Add(int fd, uint64_t tag) {
  constexpr uint32_t kEverything = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
  added_.fetch_add(1, std::memory_order_release);  // order: added
  const int error = EpollAdd(epoll_fd_, fd, kEverything, tag);
  return error < 0 ? ErrnoStatus(-error, "epoll_ctl") : absl::OkStatus();
}

void EpollBackend::Remove(int fd) {
  if (const int error = EpollRemove(epoll_fd_, fd); error < 0) {
    Fatal("descriptor %d of ours was closed by somebody else: epoll_ctl: %s", fd, strerror(-error));
  }
}

int EpollBackend::Wait(int64_t deadline_ns, Event* events, int capacity, bool* was_kicked) {
  epoll_event collected[kCapacity];
  *was_kicked = false;
  const int count = WaitOnce(epoll_fd_, collected, std::min(capacity, kCapacity),
                             TimeoutUntil(deadline_ns));
  if (count == -EINTR) return 0;
  if (count < 0) Fatal("epoll_wait: %s", strerror(-count));
  (void)added_.load(std::memory_order_acquire);  // order: added
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (collected[i].data.u64 == kKickTag) {
      *was_kicked = true;
    } else {
      events[kept++] = {collected[i].data.u64, BitsOf(collected[i].events)};
    }
  }
  return kept;
}

void EpollBackend::Kick() {
  int error = AddToEventFd(event_fd_);
  if (error == -EAGAIN) {
    // Nobody has read it since it was made, and it is full: empty it, and the next write is an edge again.
    error = EmptyEventFd(event_fd_);
    if (error < 0 && error != -EAGAIN) Fatal("eventfd read: %s", strerror(-error));
    error = AddToEventFd(event_fd_);
  }
  if (error < 0 && error != -EAGAIN) Fatal("eventfd write: %s", strerror(-error));
}

}  // namespace netpoll::internal
