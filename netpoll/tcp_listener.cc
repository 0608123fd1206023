// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/context.h"
#include "fiber/internal/thread_state.h"
#include "fiber/wait_reason.h"
#include "netpoll/error.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/scoped_fd.h"
#include "netpoll/internal/socket.h"
#include "netpoll/internal/syscalls.h"
#include "netpoll/tcp.h"

namespace netpoll {

using fiber::Deadline;
using fiber::WaitReason;
using internal::ClosedStatus;
using internal::Descriptor;
using internal::Direction;
using internal::ErrnoStatus;
using internal::FlowLock;
using internal::Poller;
using internal::ScopedFd;

namespace {

// The accepting side cannot go on for a while: says so, at most every ten seconds.
void LogExhaustion(int fd, const absl::Status& status) {
  constexpr int64_t kEveryNs = 10'000'000'000;
  static fiber::internal::Atomic<int64_t> next_ns{0};
  const int64_t now = fiber::internal::MonotonicNs();
  int64_t next = next_ns.load(std::memory_order_relaxed);
  if (now < next ||
      !next_ns.compare_exchange_strong(next, now + kEveryNs, std::memory_order_relaxed)) {
    return;
  }
  fiber::internal::LogLine("listener %s: new connections wait until there are resources again: %s",
                           internal::LocalOf(fd).ToString().c_str(),
                           std::string(status.message()).c_str());
}

// What accept(2) says of a connection that came to nothing: the next one may be better.
bool IsAboutOneConnection(int error) {
  switch (error) {
    case ECONNABORTED:
    case ECONNRESET:
    case EPROTO:
    case ENETDOWN:
    case ENETUNREACH:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENONET:
    case EOPNOTSUPP:
    case ETIMEDOUT: return true;
    default: return false;
  }
}

Poller& PollerFor(Descriptor& listener) {
  if (fiber::internal::ThisThread().current == nullptr) return listener.poller();
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  return poller.ok() ? **poller : listener.poller();
}

// An accepted descriptor, now or earlier; -errno.
int TakeConnection(Descriptor& listener) {
  int& pending = listener.pending_fd();
  return pending >= 0 ? std::exchange(pending, -1) : internal::Accept(listener.fd());
}

absl::StatusOr<Descriptor*> AcceptDescriptor(Descriptor& listener, Deadline deadline) {
  FlowLock lock(listener, Direction::kRead, WaitReason::kAccept, deadline);
  if (!lock.status().ok()) return lock.status();
  constexpr absl::Duration kFirstPause = absl::Milliseconds(10);
  constexpr absl::Duration kLongestPause = absl::Milliseconds(100);
  absl::Duration pause = kFirstPause;
  for (;;) {
    lock.flow().slot.ClearReady();
    ScopedFd connection(TakeConnection(listener));
    const int fd = connection.get();
    absl::Status status;
    if (fd >= 0) {
      absl::StatusOr<Descriptor*> accepted =
          Descriptor::Create(PollerFor(listener), fd, true);
      if (accepted.ok()) {
        (void)connection.Take();
        return accepted;
      }
      status = accepted.status();
      if (!internal::IsExhaustion(ErrnoOf(status))) return status;
      listener.pending_fd() = connection.Take();
    } else if (fd == -EAGAIN) {
      if (status = lock.Await(); !status.ok()) return status;
      continue;
    } else if (IsAboutOneConnection(-fd)) {
      fiber::internal::SpendTurn();  // the flow stays locked, as while the call waits
      if (status = lock.Check(); !status.ok()) return status;
      continue;
    } else {
      status = ErrnoStatus(-fd, "accept on", internal::LocalOf(listener.fd()).ToString());
      if (!internal::IsExhaustion(-fd)) return status;
    }
    // Out of something that others may give back. The kernel keeps what waits to be accepted, and brings no edge for it.
    LogExhaustion(listener.fd(), status);
    if (status = lock.Pause(pause); !status.ok()) return status;
    pause = std::min(2 * pause, kLongestPause);
  }
}

absl::Status SetUp(int fd, const Address& address, const ListenOptions& options) {
  const auto set = [&](int level, int name, int value, const char* what) {
    const int error = internal::SetOption(fd, level, name, value);
    return error < 0 ? ErrnoStatus(-error, what) : absl::OkStatus();
  };
  // A port whose old connections linger in TIME_WAIT is no less free.
  absl::Status status = set(SOL_SOCKET, SO_REUSEADDR, 1, "set SO_REUSEADDR");
  // Accepted sockets inherit it.
  status.Update(set(IPPROTO_TCP, TCP_NODELAY, 1, "set TCP_NODELAY"));
  if (options.reuse_port) status.Update(set(SOL_SOCKET, SO_REUSEPORT, 1, "set SO_REUSEPORT"));
  if (address.family() == AF_INET6) {
    status.Update(set(IPPROTO_IPV6, IPV6_V6ONLY, options.ipv6_only ? 1 : 0, "set IPV6_V6ONLY"));
  }
  if (!status.ok()) return status;
  if (const int error = internal::Bind(fd, address.data(), address.size()); error < 0) {
    return ErrnoStatus(-error, "listen on", address.ToString());
  }
  if (const int error = internal::Listen(fd, options.backlog); error < 0) {
    return ErrnoStatus(-error, "listen on", address.ToString());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TcpListener> TcpListener::Listen(std::string_view address, ListenOptions options) {
  absl::StatusOr<Address> parsed = Address::Parse(address);
  if (!parsed.ok()) return parsed.status();
  return Listen(*parsed, options);
}

absl::StatusOr<TcpListener> TcpListener::Listen(const Address& address, ListenOptions options) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  const int fd = internal::Socket(address.family());
  if (fd < 0) return ErrnoStatus(-fd, "socket for", address.ToString());
  absl::Status status = SetUp(fd, address, options);
  if (status.ok()) {
    absl::StatusOr<Descriptor*> descriptor = Descriptor::Create(**poller, fd, true);
    if (descriptor.ok()) return TcpListener(*descriptor);
    status = descriptor.status();
  }
  internal::Close(fd);
  return status;
}

TcpListener& TcpListener::operator=(TcpListener&& other) noexcept {
  if (this != &other) {
    if (descriptor_ != nullptr) descriptor_->Drop();
    descriptor_ = std::exchange(other.descriptor_, nullptr);
  }
  return *this;
}

TcpListener::~TcpListener() {
  if (descriptor_ != nullptr) descriptor_->Drop();
}

absl::StatusOr<TcpStream> TcpListener::Accept(Deadline deadline) {
  if (descriptor_ == nullptr) return ClosedStatus();
  absl::StatusOr<Descriptor*> accepted = AcceptDescriptor(*descriptor_, deadline);
  fiber::internal::SpendTurn();
  if (!accepted.ok()) return accepted.status();
  return TcpStream(*accepted);
}

absl::StatusOr<std::unique_ptr<Stream>> TcpListener::DoAcceptStream(Deadline deadline) {
  absl::StatusOr<TcpStream> stream = Accept(deadline);
  if (!stream.ok()) return stream.status();
  return std::make_unique<TcpStream>(*std::move(stream));
}

void TcpListener::DoClose() {
  if (descriptor_ != nullptr) descriptor_->Close();
}

Address TcpListener::local() const { return internal::LocalAddress(descriptor_); }

int TcpListener::fd() const { return descriptor_ == nullptr ? -1 : descriptor_->OpenFd(); }

}  // namespace netpoll
