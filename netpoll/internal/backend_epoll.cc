// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/backend_epoll.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "fiber/internal/atomic.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "netpoll/internal/errno_status.h"

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

int PWait2(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns) {
  timespec timeout;
  timeout.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000);
  timeout.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  return static_cast<int>(
      syscall(SYS_epoll_pwait2, epoll_fd, events, capacity, &timeout, nullptr, size_t{0}));
}

int WaitMilliseconds(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns) {
  const int64_t milliseconds = timeout_ns / 1'000'000 + (timeout_ns % 1'000'000 != 0 ? 1 : 0);
  return epoll_wait(epoll_fd, events, capacity,
                    static_cast<int>(std::min<int64_t>(milliseconds, INT_MAX)));
}

// Until when: -1 without end.
int64_t TimeoutUntil(int64_t deadline_ns) {
  if (deadline_ns == kNeverNs) return -1;
  if (deadline_ns <= 0) return 0;
  return std::max<int64_t>(deadline_ns - MonotonicNs(), 0);
}

int WaitOnce(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns) {
  if (timeout_ns <= 0) {
    return epoll_wait(epoll_fd, events, capacity, static_cast<int>(timeout_ns));
  }
  if (has_pwait2.load(std::memory_order_relaxed)) {
    const int count = PWait2(epoll_fd, events, capacity, timeout_ns);
    if (count >= 0 || (errno != ENOSYS && errno != EPERM)) return count;
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
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) return ErrnoStatus(errno, "epoll_create1");
  const int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_fd < 0) {
    absl::Status status = ErrnoStatus(errno, "eventfd");
    close(epoll_fd);
    return status;
  }
  std::unique_ptr<Backend> backend(new EpollBackend(epoll_fd, event_fd));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = kKickTag;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, event_fd, &event) != 0) {
    return ErrnoStatus(errno, "epoll_ctl");
  }
  return backend;
}

EpollBackend::~EpollBackend() {
  if (close(event_fd_) != 0 || close(epoll_fd_) != 0) {
    Fatal("an epoll instance was closed by somebody else: %s", strerror(errno));
  }
}

absl::Status EpollBackend::Add(int fd, uint64_t tag) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
  event.data.u64 = tag;
  added_.fetch_add(1, std::memory_order_release);  // order: added
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, "epoll_ctl");
}

void EpollBackend::Remove(int fd) {
  epoll_event unused{};  // kernels before 2.6.9 want one
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, &unused) != 0) {
    Fatal("descriptor %d of a socket of ours was closed by somebody else: %s", fd, strerror(errno));
  }
}

int EpollBackend::Wait(int64_t deadline_ns, Event* events, int capacity, bool* was_kicked) {
  epoll_event collected[kCapacity];
  *was_kicked = false;
  const int count = WaitOnce(epoll_fd_, collected, std::min(capacity, kCapacity),
                             TimeoutUntil(deadline_ns));
  if (count < 0) {
    if (errno == EINTR) return 0;
    Fatal("epoll_wait: %s", strerror(errno));
  }
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
  const uint64_t one = 1;
  if (write(event_fd_, &one, sizeof one) == static_cast<ssize_t>(sizeof one)) return;
  if (errno != EAGAIN) Fatal("eventfd write: %s", strerror(errno));
  // Nobody has read it since it was made, and it is full: empty it, and the next write is an edge again.
  uint64_t value;
  if (read(event_fd_, &value, sizeof value) < 0 && errno != EAGAIN) {
    Fatal("eventfd read: %s", strerror(errno));
  }
  if (write(event_fd_, &one, sizeof one) < 0 && errno != EAGAIN) {
    Fatal("eventfd write: %s", strerror(errno));
  }
}

}  // namespace netpoll::internal
