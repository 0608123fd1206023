// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_SYSCALLS_H_
#define WEFT_NETPOLL_INTERNAL_SYSCALLS_H_

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>

// System calls that return -errno. Never inlined: a function that parks may come back on another thread, and compilers
// keep errno's address in it from one call to the next.
namespace netpoll::internal {

// Each retries EINTR, but for Connect and Poll.
ssize_t Receive(int fd, char* buffer, size_t size);
ssize_t Send(int fd, const char* data, size_t size);
ssize_t SendPieces(int fd, const iovec* pieces, size_t count);
int Accept(int fd);  // non-blocking, close-on-exec

int Socket(int family);  // a stream socket; likewise
int Connect(int fd, const sockaddr* address, socklen_t size);
int Bind(int fd, const sockaddr* address, socklen_t size);
int Listen(int fd, int backlog);
int Shutdown(int fd, int how);
int Close(int fd);

int SetOption(int fd, int level, int name, int value);
int GetOption(int fd, int level, int name);  // the value, which is not negative, or -errno
int GetLocal(int fd, sockaddr_storage* address, socklen_t* size);
int GetPeer(int fd, sockaddr_storage* address, socklen_t* size);

int MakeNonBlocking(int fd);
int Duplicate(int fd);  // close-on-exec
// poll(2) of one descriptor, until `deadline_ns` on the monotonic clock. 0: at the deadline; else what came.
int Poll(int fd, short events, int64_t deadline_ns);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_SYSCALLS_H_
