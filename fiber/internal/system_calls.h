// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_SYSTEM_CALLS_H_
#define WEFT_FIBER_INTERNAL_SYSTEM_CALLS_H_

#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

struct io_uring_params;

namespace fiber::internal {

// SystemCalls is the system calls of //sched and //netpoll, and the futex of all: an entry for each, with the C library's
// name, result and errno, without arguments that are always the same. Nobody there calls the kernel around it
// (tools/layers), so that a test can make any call fail (tests/netpoll/faults.h), as a kernel does when it likes.
//
// Not in it: the clock, which does not enter the kernel and cannot fail; joining a thread and masking signals, which cannot
// fail either; a thread's name.
struct SystemCalls {
  // Threads.
  int (*pthread_create)(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                        void* argument);  // the error is the result
  long (*futex)(uint32_t* word, int operation, uint32_t value, const timespec* until, uint32_t mask);
  int (*prctl)(int option, unsigned long argument);
  int (*sched_getaffinity)(pid_t thread, size_t bytes, cpu_set_t* mask);
  long (*sysconf)(int name);
  // Signals.
  int (*sigaction)(int signal, const struct sigaction* action, struct sigaction* before);
  int (*tgkill)(pid_t process, pid_t thread, int signal);
  // Processes.
  int (*posix_spawnp)(pid_t* process, const char* file, const posix_spawn_file_actions_t* actions,
                      const posix_spawnattr_t* attributes, char* const* arguments,
                      char* const* environment);  // the error is the result
  int (*kill)(pid_t process, int signal);
  int (*pidfd_open)(pid_t process, unsigned int flags);
  int (*waitid)(idtype_t type, id_t id, siginfo_t* info, int options);
  // Limits and memory.
  int (*getrlimit)(int resource, rlimit* limit);
  int (*setrlimit)(int resource, const rlimit* limit);
  void* (*mmap)(void* address, size_t size, int protection, int flags, int fd, off_t offset);
  // Of this process: what is not there is an error, not a fault.
  ssize_t (*process_vm_readv)(void* to, const void* from, size_t size);
  int (*munmap)(void* address, size_t size);
  // Any descriptor.
  int (*pipe2)(int* fds, int flags);
  int (*open)(const char* path, int flags);
  ssize_t (*read)(int fd, void* buffer, size_t size);
  ssize_t (*write)(int fd, const void* data, size_t size);
  int (*close)(int fd);
  int (*fcntl)(int fd, int command, int argument);
  int (*ioctl)(int fd, unsigned long request, void* argument);
  int (*ppoll)(pollfd* polled, nfds_t count, const timespec* timeout, const sigset_t* mask);
  // Sockets.
  int (*socket)(int family, int type, int protocol);
  int (*bind)(int fd, const sockaddr* address, socklen_t size);
  int (*listen)(int fd, int backlog);
  int (*accept4)(int fd, sockaddr* address, socklen_t* size, int flags);
  int (*connect)(int fd, const sockaddr* address, socklen_t size);
  int (*shutdown)(int fd, int how);
  ssize_t (*recv)(int fd, void* buffer, size_t size, int flags);
  ssize_t (*send)(int fd, const void* data, size_t size, int flags);
  ssize_t (*sendmsg)(int fd, const msghdr* message, int flags);
  int (*getsockopt)(int fd, int level, int name, void* value, socklen_t* size);
  int (*setsockopt)(int fd, int level, int name, const void* value, socklen_t size);
  int (*getsockname)(int fd, sockaddr* address, socklen_t* size);
  int (*getpeername)(int fd, sockaddr* address, socklen_t* size);
  // The C library's way to the name servers: no system call, but as many as it likes. The error is the result.
  int (*getaddrinfo)(const char* host, const char* service, const addrinfo* hints, addrinfo** found);
  // Events.
  int (*epoll_create1)(int flags);
  int (*epoll_ctl)(int epoll_fd, int operation, int fd, epoll_event* event);
  int (*epoll_wait)(int epoll_fd, epoll_event* events, int capacity, int timeout_ms);
  int (*epoll_pwait2)(int epoll_fd, epoll_event* events, int capacity, const timespec* timeout);
  int (*eventfd)(unsigned int value, int flags);
  // Files.
  int (*openat)(int folder_fd, const char* path, int flags, mode_t mode);
  ssize_t (*pread)(int fd, void* buffer, size_t size, off_t offset);
  ssize_t (*pwrite)(int fd, const void* data, size_t size, off_t offset);
  ssize_t (*preadv2)(int fd, const iovec* pieces, int count, off_t offset, int flags);
  int (*fsync)(int fd);
  int (*fdatasync)(int fd);
  int (*ftruncate)(int fd, off_t size);
  int (*statx)(int folder_fd, const char* path, int flags, unsigned int mask, struct statx* result);
  ssize_t (*getdents64)(int fd, void* buffer, size_t size);
  int (*renameat)(int from_folder_fd, const char* from, int to_folder_fd, const char* to);
  int (*unlinkat)(int folder_fd, const char* path, int flags);
  int (*mkdirat)(int folder_fd, const char* path, mode_t mode);
  int (*io_uring_setup)(unsigned int entries, io_uring_params* params);
  int (*io_uring_enter)(int ring_fd, unsigned int submitted, unsigned int awaited, unsigned int flags);
  int (*io_uring_register)(int ring_fd, unsigned int operation, void* argument, unsigned int count);
};

// The kernel's own.
extern const SystemCalls kKernel;

// The table in use. order: system-calls — release by whoever puts another in place, acquire by callers: they find it filled.
extern std::atomic<const SystemCalls*> system_calls;
inline const SystemCalls& System() {
  return *system_calls.load(std::memory_order_acquire);  // order: system-calls
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_SYSTEM_CALLS_H_
