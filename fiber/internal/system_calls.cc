// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/system_calls.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace fiber::internal {

constinit const SystemCalls kKernel = {
    .pthread_create = ::pthread_create,
    .futex =
        [](uint32_t* word, int operation, uint32_t value, const timespec* until, uint32_t mask) {
          return ::syscall(SYS_futex, word, operation, value, until, nullptr, mask);
        },
    .prctl = [](int option, unsigned long argument) { return ::prctl(option, argument); },
    .sched_getaffinity = ::sched_getaffinity,
    .sysconf = ::sysconf,
    .sigaction = ::sigaction,
    .tgkill = [](pid_t process, pid_t thread, int signal) {
      return static_cast<int>(::syscall(SYS_tgkill, process, thread, signal));
    },
    .getrlimit = [](int resource, rlimit* limit) {
      return ::getrlimit(static_cast<__rlimit_resource>(resource), limit);
    },
    .setrlimit = [](int resource, const rlimit* limit) {
      return ::setrlimit(static_cast<__rlimit_resource>(resource), limit);
    },
    .mmap = ::mmap,
    .process_vm_readv = [](void* to, const void* from, size_t size) {
      const iovec here{to, size};
      const iovec there{const_cast<void*>(from), size};
      return ::process_vm_readv(::getpid(), &here, 1, &there, 1, 0);
    },
    .open = [](const char* path, int flags) { return ::open(path, flags); },
    .read = ::read,
    .write = ::write,
    .close = ::close,
    .fcntl = [](int fd, int command, int argument) { return ::fcntl(fd, command, argument); },
    .ioctl = [](int fd, unsigned long request, void* argument) { return ::ioctl(fd, request, argument); },
    .ppoll = ::ppoll,
    .socket = ::socket,
    .bind = ::bind,
    .listen = ::listen,
    .accept4 = ::accept4,
    .connect = ::connect,
    .shutdown = ::shutdown,
    .recv = ::recv,
    .send = ::send,
    .sendmsg = ::sendmsg,
    .getsockopt = ::getsockopt,
    .setsockopt = ::setsockopt,
    .getsockname = ::getsockname,
    .getpeername = ::getpeername,
    .epoll_create1 = ::epoll_create1,
    .epoll_ctl = ::epoll_ctl,
    .epoll_wait = ::epoll_wait,
    .epoll_pwait2 =
        [](int epoll_fd, epoll_event* events, int capacity, const timespec* timeout) {
          return static_cast<int>(
              ::syscall(SYS_epoll_pwait2, epoll_fd, events, capacity, timeout, nullptr, size_t{0}));
        },
    .eventfd = ::eventfd,
};

constinit std::atomic<const SystemCalls*> system_calls{&kKernel};

}  // namespace fiber::internal
