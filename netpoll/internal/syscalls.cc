// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"

#define WEFT_NOINLINE __attribute__((noinline))

namespace netpoll::internal {
namespace {

using fiber::internal::System;

int Result(int result) { return result < 0 ? -errno : result; }

// Inlined: into functions that are not.
template <class F>
[[gnu::always_inline]] inline auto Retried(F call) -> decltype(call()) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return -errno;
  }
}

}  // namespace

WEFT_NOINLINE ssize_t Receive(int fd, char* buffer, size_t size) {
  for (;;) {
    const ssize_t n = System().recv(fd, buffer, size, 0);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE ssize_t Send(int fd, const char* data, size_t size) {
  for (;;) {
    const ssize_t n = System().send(fd, data, size, MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE ssize_t SendPieces(int fd, const iovec* pieces, size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces);
  message.msg_iovlen = count;
  for (;;) {
    const ssize_t n = System().sendmsg(fd, &message, MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int Accept(int fd) {
  for (;;) {
    const int accepted = System().accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (accepted >= 0) return accepted;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int Socket(int family) {
  return Result(System().socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

WEFT_NOINLINE int Connect(int fd, const sockaddr* address, socklen_t size) {
  return Result(System().connect(fd, address, size));
}

WEFT_NOINLINE int Bind(int fd, const sockaddr* address, socklen_t size) {
  return Result(System().bind(fd, address, size));
}

WEFT_NOINLINE int Listen(int fd, int backlog) { return Result(System().listen(fd, backlog)); }

WEFT_NOINLINE int Shutdown(int fd, int how) { return Result(System().shutdown(fd, how)); }

WEFT_NOINLINE int SetOption(int fd, int level, int name, int value) {
  return Result(System().setsockopt(fd, level, name, &value, sizeof value));
}

WEFT_NOINLINE int GetOption(int fd, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  const int result = Result(System().getsockopt(fd, level, name, &value, &size));
  return result < 0 ? result : value;
}

WEFT_NOINLINE int GetLocal(int fd, sockaddr_storage* address, socklen_t* size) {
  *size = sizeof *address;
  return Result(System().getsockname(fd, reinterpret_cast<sockaddr*>(address), size));
}

WEFT_NOINLINE int GetPeer(int fd, sockaddr_storage* address, socklen_t* size) {
  *size = sizeof *address;
  return Result(System().getpeername(fd, reinterpret_cast<sockaddr*>(address), size));
}

WEFT_NOINLINE int FindInterface(int fd, const char* name) {
  ifreq request{};
  std::strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
  const int result = Result(System().ioctl(fd, SIOCGIFINDEX, &request));
  return result < 0 ? result : request.ifr_ifindex;
}

WEFT_NOINLINE int MakePipe(int fds[2]) { return Result(System().pipe2(fds, O_CLOEXEC)); }

WEFT_NOINLINE ssize_t ReadPipe(int fd, char* buffer, size_t size) {
  for (;;) {
    const ssize_t n = System().read(fd, buffer, size);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE ssize_t WritePipe(int fd, const char* data, size_t size) {
  for (;;) {
    const ssize_t n = System().write(fd, data, size);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int OpenPidFd(pid_t pid) { return Result(System().pidfd_open(pid, 0)); }

WEFT_NOINLINE int SendSignal(pid_t pid, int signal) { return Result(System().kill(pid, signal)); }

WEFT_NOINLINE int WaitForChild(pid_t pid, int options, siginfo_t* info) {
  info->si_pid = 0;
  for (;;) {
    if (System().waitid(P_PID, static_cast<id_t>(pid), info, WEXITED | options) == 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int Open(const char* path, int flags) {
  for (;;) {
    const int fd = System().open(path, flags);
    if (fd >= 0) return fd;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int GetFlags(int fd) { return Result(System().fcntl(fd, F_GETFL, 0)); }

WEFT_NOINLINE int MakeNonBlocking(int fd) {
  const int flags = GetFlags(fd);
  if (flags < 0) return flags;
  return (flags & O_NONBLOCK) != 0 ? 0 : Result(System().fcntl(fd, F_SETFL, flags | O_NONBLOCK));
}

WEFT_NOINLINE int Duplicate(int fd, int least) {
  return Result(System().fcntl(fd, F_DUPFD_CLOEXEC, least));
}

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
    const int count = System().ppoll(&polled, 1, deadline_ns == kNeverNs ? nullptr : &timeout, nullptr);
    if (count > 0) return polled.revents;
    if (count == 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE void Close(int fd) {
  if (System().close(fd) != 0 && errno == EBADF) {
    fiber::internal::Fatal("descriptor %d of ours was closed by somebody else", fd);
  }
}

WEFT_NOINLINE int MakeEpoll() { return Result(System().epoll_create1(EPOLL_CLOEXEC)); }

WEFT_NOINLINE int EpollAdd(int epoll_fd, int fd, uint32_t events, uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  return Result(System().epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event));
}

WEFT_NOINLINE int EpollRemove(int epoll_fd, int fd) {
  epoll_event unused{};  // kernels before 2.6.9 want one
  return Result(System().epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &unused));
}

WEFT_NOINLINE int EpollWait(int epoll_fd, epoll_event* events, int capacity, int timeout_ms) {
  return Result(System().epoll_wait(epoll_fd, events, capacity, timeout_ms));
}

WEFT_NOINLINE int EpollWaitNs(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns) {
  timespec timeout;
  timeout.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000);
  timeout.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  return Result(System().epoll_pwait2(epoll_fd, events, capacity, &timeout));
}

WEFT_NOINLINE int OpenFile(const char* path, int flags, mode_t permissions) {
  return Retried([&] { return System().openat(AT_FDCWD, path, flags | O_CLOEXEC, permissions); });
}

WEFT_NOINLINE ssize_t ReadAt(int fd, char* buffer, size_t size, uint64_t offset) {
  return Retried([&] { return System().pread(fd, buffer, size, static_cast<off_t>(offset)); });
}

WEFT_NOINLINE ssize_t ReadAtNow(int fd, char* buffer, size_t size, uint64_t offset) {
  const iovec piece{buffer, size};
  return Retried(
      [&] { return System().preadv2(fd, &piece, 1, static_cast<off_t>(offset), RWF_NOWAIT); });
}

WEFT_NOINLINE ssize_t WriteAt(int fd, const char* data, size_t size, uint64_t offset) {
  return Retried([&] { return System().pwrite(fd, data, size, static_cast<off_t>(offset)); });
}

WEFT_NOINLINE int SyncFile(int fd, bool with_metadata) {
  return Retried([&] { return with_metadata ? System().fsync(fd) : System().fdatasync(fd); });
}

WEFT_NOINLINE int SetFileSize(int fd, uint64_t size) {
  return Retried([&] { return System().ftruncate(fd, static_cast<off_t>(size)); });
}

WEFT_NOINLINE int StatFile(int fd, struct statx* result) {
  return Retried(
      [&] { return System().statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, result); });
}

WEFT_NOINLINE int StatPath(const char* path, bool follows_links, struct statx* result) {
  const int flags = follows_links ? 0 : AT_SYMLINK_NOFOLLOW;
  return Retried([&] { return System().statx(AT_FDCWD, path, flags, STATX_BASIC_STATS, result); });
}

WEFT_NOINLINE ssize_t ReadFolder(int fd, char* buffer, size_t size) {
  return Retried([&] { return System().getdents64(fd, buffer, size); });
}

WEFT_NOINLINE int RenamePath(const char* from, const char* to) {
  return Retried([&] { return System().renameat(AT_FDCWD, from, AT_FDCWD, to); });
}

WEFT_NOINLINE int RemovePath(const char* path, bool is_folder) {
  return Retried([&] { return System().unlinkat(AT_FDCWD, path, is_folder ? AT_REMOVEDIR : 0); });
}

WEFT_NOINLINE int MakeFolder(const char* path, mode_t permissions) {
  return Retried([&] { return System().mkdirat(AT_FDCWD, path, permissions); });
}

WEFT_NOINLINE int CloseFile(int fd) {
  if (System().close(fd) == 0 || errno == EINTR) return 0;
  if (errno == EBADF) {
    fiber::internal::Fatal("descriptor %d of ours was closed by somebody else", fd);
  }
  return -errno;
}

WEFT_NOINLINE int MakeRing(unsigned int entries, io_uring_params* params) {
  return Result(System().io_uring_setup(entries, params));
}

WEFT_NOINLINE int SubmitToRing(int ring_fd, unsigned int count) {
  return Result(System().io_uring_enter(ring_fd, count, 0, 0));
}

WEFT_NOINLINE int RegisterWithRing(int ring_fd, unsigned int operation, void* argument,
                                   unsigned int count) {
  return Result(System().io_uring_register(ring_fd, operation, argument, count));
}

WEFT_NOINLINE void* MapRing(int ring_fd, size_t size, uint64_t offset) {
  void* const address = System().mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                                      ring_fd, static_cast<off_t>(offset));
  return address == MAP_FAILED ? nullptr : address;
}

WEFT_NOINLINE void UnmapRing(void* address, size_t size) {
  System().munmap(address, size);  // refused: for want of memory; then it stays
}

WEFT_NOINLINE int MakeEventFd() { return Result(System().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

WEFT_NOINLINE int AddToEventFd(int fd) {
  const uint64_t one = 1;
  for (;;) {
    if (System().write(fd, &one, sizeof one) >= 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

WEFT_NOINLINE int EmptyEventFd(int fd) {
  uint64_t value;
  for (;;) {
    if (System().read(fd, &value, sizeof value) >= 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

}  // namespace netpoll::internal
