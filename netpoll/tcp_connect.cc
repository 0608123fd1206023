// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "fiber/internal/context.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/connect_to_any.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/host_name.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/scoped_fd.h"
#include "netpoll/internal/socket.h"
#include "netpoll/internal/syscalls.h"
#include "netpoll/resolve.h"
#include "netpoll/tcp.h"

namespace netpoll {

using fiber::Deadline;
using fiber::WaitReason;
using internal::Descriptor;
using internal::Direction;
using internal::ErrnoStatus;
using internal::FlowLock;
using internal::HostAndService;
using internal::Poller;
using internal::ScopedFd;

namespace {

absl::Status ConnectStatus(int error, const Address& address) {
  const std::string text = address.ToString();
  switch (error) {
    case EADDRNOTAVAIL:
      return ErrnoStatus(absl::StatusCode::kResourceExhausted, error, "connect to", text,
                         " (net.ipv4.ip_local_port_range: no free port on this side, raise it with sysctl; or no "
                         "local address of this kind)");
    case EACCES:
    case EPERM: return ErrnoStatus(absl::StatusCode::kUnavailable, error, "connect to", text, "");
    default: return ErrnoStatus(error, "connect to", text);
  }
}

// Waits until the connection is there.
absl::Status FinishConnecting(Descriptor& descriptor, const Address& address, Deadline deadline) {
  FlowLock lock(descriptor, Direction::kWrite, WaitReason::kConnect, deadline);
  if (!lock.status().ok()) return lock.status();
  for (;;) {
    lock.flow().slot.ClearReady();
    const int error = internal::GetOption(descriptor.fd(), SOL_SOCKET, SO_ERROR);
    if (error != 0) return ConnectStatus(error < 0 ? -error : error, address);
    sockaddr_storage peer;
    socklen_t size;
    const int result = internal::GetPeer(descriptor.fd(), &peer, &size);
    if (result == 0) return absl::OkStatus();
    if (result != -ENOTCONN) return ConnectStatus(-result, address);
    if (absl::Status status = lock.Await(); !status.ok()) return status;
  }
}

// The kernel may pick for this end the very port that is connected to; TCP then connects the socket to itself. The peer is
// asked for, since `address` may be a wildcard.
bool IsConnectedToItself(int fd, const Address& address) {
  const Address local = internal::LocalOf(fd);
  return local.port() == address.port() && local == internal::PeerOf(fd);
}

}  // namespace

absl::StatusOr<TcpStream> TcpStream::Connect(std::string_view host_port, Deadline deadline) {
  absl::StatusOr<Address> address = Address::Parse(host_port);
  if (address.ok()) return Connect(*address, deadline);
  const std::optional<HostAndService> name = internal::SplitHostName(host_port);
  if (!name.has_value()) return address.status();
  // Before anybody is asked.
  if (absl::StatusOr<Poller*> poller = Poller::OfCaller(); !poller.ok()) return poller.status();
  absl::StatusOr<std::vector<Address>> found = Resolve(name->host, name->service, deadline);
  if (!found.ok()) return found.status();
  return internal::ConnectToAny(host_port, *std::move(found), deadline);
}

absl::StatusOr<TcpStream> TcpStream::Connect(const Address& address, Deadline deadline) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  fiber::internal::SpendTurn();  // connecting to this machine never waits
  constexpr int kTries = 3;
  for (int i = 1;; ++i) {
    if (absl::Status status = fiber::CheckCancelled(); !status.ok()) return status;
    if (deadline.is_past()) return absl::DeadlineExceededError("deadline exceeded");
    ScopedFd fd(internal::Socket(address.family()));
    if (fd.get() < 0) return ErrnoStatus(-fd.get(), "socket for", address.ToString());
    if (const int error = internal::SetOption(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1); error < 0) {
      return ErrnoStatus(-error, "set TCP_NODELAY");
    }
    // Before it is watched: an unconnected socket counts as hung up.
    const int result = internal::Connect(fd.get(), address.data(), address.size());
    // Interrupted, it goes on in the background like any other.
    const bool is_pending = result == -EINPROGRESS || result == -EINTR;
    if (result < 0 && !is_pending) return ConnectStatus(-result, address);
    absl::StatusOr<Descriptor*> descriptor = Descriptor::Create(**poller, fd.get(), true);
    if (!descriptor.ok()) return descriptor.status();
    (void)fd.Take();
    TcpStream stream(*descriptor);
    if (is_pending) {
      absl::Status status = FinishConnecting(**descriptor, address, deadline);
      if (!status.ok()) return status;
    }
    if (!IsConnectedToItself((*descriptor)->fd(), address)) return stream;
    if (i == kTries) return ConnectStatus(ECONNREFUSED, address);
  }
}

}  // namespace netpoll
