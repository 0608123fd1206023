// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/system_calls.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
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
    .posix_spawnp = ::posix_spawnp,
    .kill = ::kill,
    .pidfd_open =
        [](pid_t process, unsigned int flags) {
          return static_cast<int>(::syscall(SYS_pidfd_open, process, flags));
        },
    .waitid = ::waitid,
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
    .munmap = ::munmap,
    .pipe2 = ::pipe2,
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
    .getaddrinfo = ::getaddrinfo,
    .epoll_create1 = ::epoll_create1,
    .epoll_ctl = ::epoll_ctl,
    .epoll_wait = ::epoll_wait,
    .epoll_pwait2 =
        [](int epoll_fd, epoll_event* events, int capacity, const timespec* timeout) {
          return static_cast<int>(
              ::syscall(SYS_epoll_pwait2, epoll_fd, events, capacity, timeout, nullptr, size_t{0}));
        },
    .eventfd = ::eventfd,
    .openat = [](int folder_fd, const char* path, int flags,
                 mode_t mode) { return ::openat(folder_fd, path, flags, mode); },
    .pread = ::pread,
    .pwrite = ::pwrite,
    .preadv2 = ::preadv2,
    .fsync = ::fsync,
    .fdatasync = ::fdatasync,
    .ftruncate = ::ftruncate,
    .statx = ::statx,
    .getdents64 = ::getdents64,
    .renameat = ::renameat,
    .unlinkat = ::unlinkat,
    .mkdirat = ::mkdirat,
    .io_uring_setup =
        [](unsigned int entries, io_uring_params* params) {
          return static_cast<int>(::syscall(SYS_io_uring_setup, entries, params));
        },
    .io_uring_enter =
        [](int ring_fd, unsigned int submitted, unsigned int awaited, unsigned int flags) {
          return static_cast<int>(
              ::syscall(SYS_io_uring_enter, ring_fd, submitted, awaited, flags, nullptr, size_t{0}));
        },
    .io_uring_register =
        [](int ring_fd, unsigned int operation, void* argument, unsigned int count) {
          return static_cast<int>(
              ::syscall(SYS_io_uring_register, ring_fd, operation, argument, count));
        },
};

constinit std::atomic<const SystemCalls*> system_calls{&kKernel};

}  // namespace fiber::internal
