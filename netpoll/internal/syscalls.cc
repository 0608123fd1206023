// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"

#define WEFT_NOINLINE __attribute__((noinline))

namespace netpoll::internal {
namespace {

int Result(int result) { return result < 0 ? -errno : result; }

}  // namespace

WEFT_NOINLINE ssize_t Receive(int fd, char* buffer, size_t size) {
  for (;;) {
    const ssize_t n = recv(fd, buffer, size, 0);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE ssize_t Send(int fd, const char* data, size_t size) {
  for (;;) {
    const ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE ssize_t SendPieces(int fd, const iovec* pieces, size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces);
  message.msg_iovlen = count;
  for (;;) {
    const ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int Accept(int fd) {
  for (;;) {
    const int accepted = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (accepted >= 0) return accepted;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int Socket(int family) {
  return Result(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

WEFT_NOINLINE int Connect(int fd, const sockaddr* address, socklen_t size) {
  return Result(connect(fd, address, size));
}

WEFT_NOINLINE int Bind(int fd, const sockaddr* address, socklen_t size) {
  return Result(bind(fd, address, size));
}

WEFT_NOINLINE int Listen(int fd, int backlog) { return Result(listen(fd, backlog)); }

WEFT_NOINLINE int Shutdown(int fd, int how) { return Result(shutdown(fd, how)); }

WEFT_NOINLINE int Close(int fd) { return Result(close(fd)); }

WEFT_NOINLINE int SetOption(int fd, int level, int name, int value) {
  return Result(setsockopt(fd, level, name, &value, sizeof value));
}

WEFT_NOINLINE int GetOption(int fd, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  const int result = Result(getsockopt(fd, level, name, &value, &size));
  return result < 0 ? result : value;
}

WEFT_NOINLINE int GetLocal(int fd, sockaddr_storage* address, socklen_t* size) {
  *size = sizeof *address;
  return Result(getsockname(fd, reinterpret_cast<sockaddr*>(address), size));
}

WEFT_NOINLINE int GetPeer(int fd, sockaddr_storage* address, socklen_t* size) {
  *size = sizeof *address;
  return Result(getpeername(fd, reinterpret_cast<sockaddr*>(address), size));
}

WEFT_NOINLINE int MakeNonBlocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return (flags & O_NONBLOCK) != 0 ? 0 : Result(fcntl(fd, F_SETFL, flags | O_NONBLOCK));
}

WEFT_NOINLINE int Duplicate(int fd) { return Result(fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

WEFT_NOINLINE int Poll(int fd, short events, int64_t deadline_ns) {
  using fiber::internal::kNeverNs;
  pollfd polled{fd, events, 0};
  for (;;) {
    timespec timeout{};
    if (deadline_ns != kNeverNs && deadline_ns > 0) {
      const int64_t left =
          std::max<int64_t>(deadline_ns - fiber::internal::MonotonicNs(), 0);
      timeout.tv_sec = static_cast<time_t>(left / 1'000'000'000);
      timeout.tv_nsec = static_cast<long>(left % 1'000'000'000);
    }
    const int count = ppoll(&polled, 1, deadline_ns == kNeverNs ? nullptr : &timeout, nullptr);
    if (count > 0) return polled.revents;
    if (count == 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

}  // namespace netpoll::internal
