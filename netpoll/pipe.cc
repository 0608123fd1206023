// SPDX-License-Identifier: Apache-2.0
#include "netpoll/pipe.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <algorithm>

#include "fiber/internal/context.h"
#include "fiber/internal/thread_state.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/scoped_fd.h"
#include "netpoll/internal/syscalls.h"
#include "netpoll/internal/transfer.h"

namespace netpoll {

using fiber::Deadline;
using fiber::internal::SpendTurn;
using internal::ClosedStatus;
using internal::Descriptor;
using internal::Direction;
using internal::ErrnoStatus;
using internal::kMostAtOnce;
using internal::Poller;
using internal::ScopedFd;

namespace {

const char* PipeText(int) { return "a pipe"; }

// A write without SIGPIPE, for threads that may not block it: send() has MSG_NOSIGNAL for that, write() has nothing. The
// signal comes to the thread that writes, so it is blocked, and taken back if it was not pending already.
ssize_t WriteOnPlainThread(int fd, const char* data, size_t size) {
  sigset_t pipe_signal;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);  // cannot fail with these arguments
  sigset_t pending;
  const bool was_pending = sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1;
  const ssize_t n = internal::WritePipe(fd, data, size);
  if (n == -EPIPE && !was_pending) {
    const timespec now{};
    while (sigtimedwait(&pipe_signal, nullptr, &now) < 0 && errno == EINTR) {
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return n;
}

// Whatever thread a fiber is on, it blocks SIGPIPE; one that stays pending there does no harm.
ssize_t WriteQuietly(int fd, const char* data, size_t size) {
  return fiber::internal::ThisThread().current != nullptr ? internal::WritePipe(fd, data, size)
                                                          : WriteOnPlainThread(fd, data, size);
}

}  // namespace

absl::StatusOr<PipeStream> PipeStream::Adopt(int fd) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  if (const int error = internal::MakeNonBlocking(fd); error < 0) {
    return ErrnoStatus(-error, "adopt a descriptor");
  }
  absl::StatusOr<Descriptor*> descriptor = Descriptor::Create(**poller, fd, false);
  if (!descriptor.ok()) return descriptor.status();
  return PipeStream(*descriptor);
}

PipeStream& PipeStream::operator=(PipeStream&& other) noexcept {
  if (this != &other) {
    if (descriptor_ != nullptr) descriptor_->Drop();
    descriptor_ = std::exchange(other.descriptor_, nullptr);
  }
  return *this;
}

PipeStream::~PipeStream() {
  if (descriptor_ != nullptr) descriptor_->Drop();
}

absl::StatusOr<size_t> PipeStream::DoRead(std::span<char> buffer, Deadline deadline) {
  absl::StatusOr<size_t> n =
      internal::ReadSome(descriptor_, buffer, deadline, &internal::ReadPipe, &PipeText);
  SpendTurn();
  return n;
}

IoResult PipeStream::DoWrite(std::string_view data, Deadline deadline) {
  const auto write_rest = [data](int fd, size_t done) {
    return WriteQuietly(fd, data.data() + done, std::min(data.size() - done, kMostAtOnce));
  };
  IoResult result = internal::WriteAll(descriptor_, data.size(), deadline, write_rest, &PipeText);
  SpendTurn();
  return result;
}

void PipeStream::DoSetReadDeadline(Deadline deadline) {
  if (descriptor_ != nullptr) descriptor_->SetDeadline(Direction::kRead, deadline);
}

void PipeStream::DoSetWriteDeadline(Deadline deadline) {
  if (descriptor_ != nullptr) descriptor_->SetDeadline(Direction::kWrite, deadline);
}

absl::Status PipeStream::DoCloseWrite() {
  if (descriptor_ == nullptr || !descriptor_->TryRef()) return ClosedStatus();
  const int flags = internal::GetFlags(descriptor_->fd());
  descriptor_->Unref();
  if (flags < 0) return ErrnoStatus(-flags, "fcntl");
  switch (flags & O_ACCMODE) {
    case O_RDONLY: return absl::OkStatus();
    case O_WRONLY: descriptor_->Close(); return absl::OkStatus();
    default: return ErrnoStatus(EOPNOTSUPP, "end what is written to", "a descriptor with one flow for both ways");
  }
}

void PipeStream::DoClose() {
  if (descriptor_ != nullptr) descriptor_->Close();
}

int PipeStream::fd() const { return descriptor_ == nullptr ? -1 : descriptor_->OpenFd(); }

int PipeStream::Release() && {
  if (descriptor_ == nullptr) return -1;
  const int fd = descriptor_->Release();
  std::exchange(descriptor_, nullptr)->Drop();
  return fd;
}

absl::StatusOr<Pipe> Pipe::Create() {
  // Before there is anything to give back.
  if (absl::StatusOr<Poller*> poller = Poller::OfCaller(); !poller.ok()) return poller.status();
  int fds[2];
  if (const int error = internal::MakePipe(fds); error < 0) return ErrnoStatus(-error, "pipe");
  ScopedFd reader(fds[0]);
  ScopedFd writer(fds[1]);
  absl::StatusOr<PipeStream> reading = PipeStream::Adopt(reader.get());
  if (!reading.ok()) return reading.status();
  (void)reader.Take();
  absl::StatusOr<PipeStream> writing = PipeStream::Adopt(writer.get());
  if (!writing.ok()) return writing.status();
  (void)writer.Take();
  return Pipe{*std::move(reading), *std::move(writing)};
}

}  // namespace netpoll
