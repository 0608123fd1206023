// SPDX-License-Identifier: Apache-2.0
#include "netpoll/tcp.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <string>

#include "fiber/internal/context.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/socket.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll {

using fiber::Deadline;
using fiber::WaitReason;
using fiber::internal::SpendTurn;
using internal::ClosedStatus;
using internal::Descriptor;
using internal::Direction;
using internal::ErrnoStatus;
using internal::FlowLock;
using internal::Poller;

namespace {

// What one system call is given at most. While the other end keeps up the kernel goes on and on, without end for all that
// a worker, a deadline or Close() can do.
constexpr size_t kMostAtOnce = size_t{256} << 10;

// Writes `total` bytes. `send_rest(done)` is one system call for what is left after `done` bytes.
template <class SendRest>
IoResult WriteAll(Descriptor* descriptor, size_t total, Deadline deadline, SendRest send_rest) {
  if (descriptor == nullptr) return {0, ClosedStatus()};
  if (total == 0) return {0, descriptor->is_closing() ? ClosedStatus() : absl::OkStatus()};
  FlowLock lock(*descriptor, Direction::kWrite, WaitReason::kWrite, deadline);
  IoResult result{0, lock.status()};
  if (!result.ok()) return result;
  const int fd = descriptor->fd();
  for (;;) {
    const ssize_t n = send_rest(fd, result.bytes);
    if (n >= 0) {
      result.bytes += static_cast<size_t>(n);
      if (result.bytes == total) return result;
      // A peer that keeps up would keep this call from ever waiting, where it lets others run and looks at these. The flow
      // stays locked, as it does while the call waits.
      SpendTurn();
      if (result.status = lock.Check(); !result.ok()) return result;
      continue;
    }
    if (n != -EAGAIN) {
      result.status = ErrnoStatus(static_cast<int>(-n), "write to", internal::PeerText(fd));
      return result;
    }
    // Old news, in most cases: clearing it before every write would cost all of those that succeed.
    if (lock.flow().slot.is_ready()) {
      lock.flow().slot.ClearReady();
      continue;
    }
    result.status = lock.Await();
    if (!result.ok()) return result;
  }
}

absl::StatusOr<size_t> ReadSome(Descriptor* descriptor, std::span<char> buffer, Deadline deadline) {
  if (descriptor == nullptr) return ClosedStatus();
  if (buffer.empty()) {
    if (descriptor->is_closing()) return ClosedStatus();
    return size_t{0};
  }
  FlowLock lock(*descriptor, Direction::kRead, WaitReason::kRead, deadline);
  if (!lock.status().ok()) return lock.status();
  internal::Flow& flow = lock.flow();
  const int fd = descriptor->fd();
  const size_t size = std::min(buffer.size(), kMostAtOnce);
  bool is_last_try = false;
  for (;;) {
    // Drained, and no news since: the system call would find nothing. Nobody brings news of an orphan.
    if (!flow.is_drained || flow.slot.is_ready() || descriptor->is_orphan()) {
      flow.slot.ClearReady();
      flow.is_drained = false;
      const ssize_t n = internal::Receive(fd, buffer.data(), size);
      if (n > 0) {
        // What comes after this call is an edge of its own. What came with it is not: hence the sticky bits.
        flow.is_drained = static_cast<size_t>(n) < size && descriptor->short_read_drains();
        return static_cast<size_t>(n);
      }
      if (n == 0) return absl::OutOfRangeError("end of stream");
      if (n != -EAGAIN) {
        return ErrnoStatus(static_cast<int>(-n), "read from", internal::PeerText(fd));
      }
      flow.is_drained = true;
    }
    absl::Status status = lock.Await();
    if (status.ok()) continue;
    // Orphaned meanwhile: there may have been news that nobody came to tell.
    if (!absl::IsFailedPrecondition(status) || !lock.has_lock() || is_last_try) return status;
    is_last_try = true;
  }
}

}  // namespace

absl::StatusOr<TcpStream> TcpStream::Adopt(int fd) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  const int type = internal::GetOption(fd, SOL_SOCKET, SO_TYPE);
  if (type < 0) return ErrnoStatus(-type, "adopt a descriptor");
  if (type != SOCK_STREAM) return ErrnoStatus(EPROTOTYPE, "adopt a descriptor");
  if (const int error = internal::MakeNonBlocking(fd); error < 0) {
    return ErrnoStatus(-error, "adopt a descriptor");
  }
  const int protocol = internal::GetOption(fd, SOL_SOCKET, SO_PROTOCOL);
  if (protocol < 0) return ErrnoStatus(-protocol, "adopt a descriptor");
  const bool is_tcp = protocol == IPPROTO_TCP;
  if (is_tcp) {
    if (const int error = internal::SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1); error < 0) {
      return ErrnoStatus(-error, "set TCP_NODELAY");
    }
  }
  absl::StatusOr<Descriptor*> descriptor = Descriptor::Create(**poller, fd, is_tcp);
  if (!descriptor.ok()) return descriptor.status();
  return TcpStream(*descriptor);
}

TcpStream& TcpStream::operator=(TcpStream&& other) noexcept {
  if (this != &other) {
    if (descriptor_ != nullptr) descriptor_->Drop();
    descriptor_ = std::exchange(other.descriptor_, nullptr);
  }
  return *this;
}

TcpStream::~TcpStream() {
  if (descriptor_ != nullptr) descriptor_->Drop();
}

absl::StatusOr<size_t> TcpStream::DoRead(std::span<char> buffer, Deadline deadline) {
  absl::StatusOr<size_t> n = ReadSome(descriptor_, buffer, deadline);
  SpendTurn();
  return n;
}

IoResult TcpStream::DoWrite(std::string_view data, Deadline deadline) {
  IoResult result = WriteAll(descriptor_, data.size(), deadline, [data](int fd, size_t done) {
    return internal::Send(fd, data.data() + done, std::min(data.size() - done, kMostAtOnce));
  });
  SpendTurn();
  return result;
}

IoResult TcpStream::Writev(std::span<const iovec> pieces, Deadline deadline) {
  size_t total = 0;
  for (const iovec& piece : pieces) total += piece.iov_len;
  size_t index = 0;   // of the piece in which...
  size_t before = 0;  // ...what comes next is: bytes in earlier pieces
  IoResult result = WriteAll(descriptor_, total, deadline, [&](int fd, size_t done) {
    while (done - before >= pieces[index].iov_len) before += pieces[index++].iov_len;
    constexpr size_t kMostPieces = 64;
    iovec batch[kMostPieces];
    size_t count = 0;
    size_t bytes = 0;
    size_t skip = done - before;
    for (size_t i = index; i < pieces.size() && count < kMostPieces && bytes < kMostAtOnce; ++i) {
      const size_t length = std::min(pieces[i].iov_len - skip, kMostAtOnce - bytes);
      batch[count++] = {static_cast<char*>(pieces[i].iov_base) + skip, length};
      bytes += length;
      skip = 0;
    }
    return internal::SendPieces(fd, batch, count);
  });
  SpendTurn();
  return result;
}

void TcpStream::DoSetReadDeadline(Deadline deadline) {
  if (descriptor_ != nullptr) descriptor_->SetDeadline(Direction::kRead, deadline);
}

void TcpStream::DoSetWriteDeadline(Deadline deadline) {
  if (descriptor_ != nullptr) descriptor_->SetDeadline(Direction::kWrite, deadline);
}

absl::Status TcpStream::DoCloseWrite() {
  if (descriptor_ == nullptr || !descriptor_->TryRef()) return ClosedStatus();
  const int error = internal::Shutdown(descriptor_->fd(), SHUT_WR);
  absl::Status status;
  if (error < 0) status = ErrnoStatus(-error, "shutdown", internal::PeerText(descriptor_->fd()));
  descriptor_->Unref();
  return status;
}

void TcpStream::DoClose() {
  if (descriptor_ != nullptr) descriptor_->Close();
}

Address TcpStream::local() const { return internal::LocalAddress(descriptor_); }

Address TcpStream::peer() const {
  if (descriptor_ == nullptr || !descriptor_->TryRef()) return Address();
  Address address = internal::PeerOf(descriptor_->fd());
  descriptor_->Unref();
  return address;
}

int TcpStream::fd() const { return descriptor_ == nullptr ? -1 : descriptor_->OpenFd(); }

int TcpStream::Release() && {
  if (descriptor_ == nullptr) return -1;
  const int fd = descriptor_->Release();
  std::exchange(descriptor_, nullptr)->Drop();
  return fd;
}

}  // namespace netpoll
