// SPDX-License-Identifier: Apache-2.0
#include "netpoll/tcp.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <string>

#include "fiber/internal/context.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/socket.h"
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

namespace {

// Reference gives one back, whatever is thrown meanwhile.
struct Reference {
  Descriptor& descriptor;
  ~Reference() { descriptor.Unref(); }
};

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
  absl::StatusOr<size_t> n =
      internal::ReadSome(descriptor_, buffer, deadline, &internal::Receive, &internal::PeerText);
  SpendTurn();
  return n;
}

IoResult TcpStream::DoWrite(std::string_view data, Deadline deadline) {
  const auto send_rest = [data](int fd, size_t done) {
    return internal::Send(fd, data.data() + done, std::min(data.size() - done, kMostAtOnce));
  };
  IoResult result =
      internal::WriteAll(descriptor_, data.size(), deadline, send_rest, &internal::PeerText);
  SpendTurn();
  return result;
}

IoResult TcpStream::Writev(std::span<const iovec> pieces, Deadline deadline) {
  size_t total = 0;
  for (const iovec& piece : pieces) total += piece.iov_len;
  size_t index = 0;   // of the piece in which...
  size_t before = 0;  // ...what comes next is: bytes in earlier pieces
  const auto send_rest = [&](int fd, size_t done) {
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
  };
  IoResult result = internal::WriteAll(descriptor_, total, deadline, send_rest, &internal::PeerText);
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
  const Reference reference{*descriptor_};
  const int error = internal::Shutdown(descriptor_->fd(), SHUT_WR);
  // A unix socket's epoll tells nobody of that who waits for room: he finds out by trying.
  if (error == 0) descriptor_->flow(Direction::kWrite).slot.MarkReady();
  if (error < 0) return ErrnoStatus(-error, "shutdown", internal::PeerText(descriptor_->fd()));
  return absl::OkStatus();
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
