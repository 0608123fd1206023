// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_SYSCALLS_H_
#define WEFT_NETPOLL_INTERNAL_SYSCALLS_H_

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

struct io_uring_params;

// All system calls of netpoll, by way of the table (fiber/internal/system_calls.h), with -errno for a result. Never
// inlined: a function that parks may come back on another thread, and compilers keep errno's address in it from one call to
// the next.
namespace netpoll::internal {

// Each retries EINTR, but for Connect, Poll and the two that wait for events.
ssize_t Receive(int fd, char* buffer, size_t size);
ssize_t Send(int fd, const char* data, size_t size);
ssize_t SendPieces(int fd, const iovec* pieces, size_t count);
int Accept(int fd);  // non-blocking, close-on-exec

int Socket(int family);  // a stream socket; likewise
int Connect(int fd, const sockaddr* address, socklen_t size);
int Bind(int fd, const sockaddr* address, socklen_t size);
int Listen(int fd, int backlog);
int Shutdown(int fd, int how);

int SetOption(int fd, int level, int name, int value);
int GetOption(int fd, int level, int name);  // the value, which is not negative, or -errno
int GetLocal(int fd, sockaddr_storage* address, socklen_t* size);
int GetPeer(int fd, sockaddr_storage* address, socklen_t* size);
int FindInterface(int fd, const char* name);  // its number; the name has less than IFNAMSIZ characters

// Pipes, and whatever else is read and written as they are.
int MakePipe(int fds[2]);  // {to read, to write}, close-on-exec
ssize_t ReadPipe(int fd, char* buffer, size_t size);
// -EPIPE: its reader is gone. The thread gets SIGPIPE for it, unless it blocks that.
ssize_t WritePipe(int fd, const char* data, size_t size);

// Processes.
int OpenPidFd(pid_t pid);                                     // close-on-exec
int SendSignal(pid_t pid, int signal);
int WaitForChild(pid_t pid, int options, siginfo_t* info);    // WNOHANG: si_pid is 0 if it has not ended

// Any descriptor.
int Open(const char* path, int flags);
int GetFlags(int fd);  // as fcntl(F_GETFL)
int MakeNonBlocking(int fd);
int Duplicate(int fd, int least = 0);  // close-on-exec; its number is no less than `least`
// poll(2) of one descriptor, until `deadline_ns` on the monotonic clock. 0: at the deadline; else what came.
int Poll(int fd, short events, int64_t deadline_ns);
// Whatever it returns but EBADF, the descriptor is closed: EINTR too, the others are about data of files. EBADF ends the
// process: somebody else has closed what is ours, and may next time meet a number that was given out anew.
void Close(int fd);

int MakeEpoll();
int EpollAdd(int epoll_fd, int fd, uint32_t events, uint64_t tag);
int EpollRemove(int epoll_fd, int fd);
int EpollWait(int epoll_fd, epoll_event* events, int capacity, int timeout_ms);  // -1: without end
int EpollWaitNs(int epoll_fd, epoll_event* events, int capacity, int64_t timeout_ns);

// Files. Each retries EINTR.
int OpenFile(const char* path, int flags, mode_t permissions);  // close-on-exec
ssize_t ReadAt(int fd, char* buffer, size_t size, uint64_t offset);
ssize_t ReadAtNow(int fd, char* buffer, size_t size, uint64_t offset);  // -EAGAIN: it would block
ssize_t WriteAt(int fd, const char* data, size_t size, uint64_t offset);
int SyncFile(int fd, bool with_metadata);
int SetFileSize(int fd, uint64_t size);
int StatFile(int fd, struct statx* result);
int StatPath(const char* path, bool follows_links, struct statx* result);
ssize_t ReadFolder(int fd, char* buffer, size_t size);  // linux_dirent64
int RenamePath(const char* from, const char* to);
int RemovePath(const char* path, bool is_folder);
int MakeFolder(const char* path, mode_t permissions);
// What close(2) has to say of data that was written before. The descriptor is closed; EBADF as for Close().
int CloseFile(int fd);

// io_uring(7).
int MakeRing(unsigned int entries, io_uring_params* params);
int SubmitToRing(int ring_fd, unsigned int count);  // how many; -EINTR: none
int RegisterWithRing(int ring_fd, unsigned int operation, void* argument, unsigned int count);
void* MapRing(int ring_fd, size_t size, uint64_t offset);  // null: no memory
void UnmapRing(void* address, size_t size);

int MakeEventFd();         // non-blocking
int AddToEventFd(int fd);  // -EAGAIN: it is full
int EmptyEventFd(int fd);  // -EAGAIN: it is empty

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_SYSCALLS_H_
