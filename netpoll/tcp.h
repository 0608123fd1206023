// SPDX-License-Identifier: Apache-2.0
//
// TCP.
//
//   absl::StatusOr<netpoll::TcpListener> listener = netpoll::TcpListener::Listen("127.0.0.1:7000");
//   if (!listener.ok()) return listener.status();
//   for (;;) {
//     absl::StatusOr<netpoll::TcpStream> stream = listener->Accept();
//     if (!stream.ok()) return stream.status();
//     fiber::Go([stream = *std::move(stream)]() mutable {
//       char buffer[4096];
//       for (;;) {
//         absl::StatusOr<size_t> n = stream.Read(buffer);
//         if (!n.ok()) return;                                    // the end, a reset, a cancel
//         if (!stream.Write({buffer, *n}).ok()) return;
//       }
//     });
//   }
//
// A socket belongs to the runtime whose fiber made it: that runtime's workers watch it. Fibers of other runtimes and
// plain threads may use it all the same. When its runtime has ended, what would have to wait for it fails with
// kFailedPrecondition; what is there can be read all the same, and closing it still closes it. A plain thread cannot make one (kFailedPrecondition), but for
// accepting from a listener: then the stream belongs to the listener's runtime.
#ifndef WEFT_NETPOLL_TCP_H_
#define WEFT_NETPOLL_TCP_H_

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "netpoll/address.h"
#include "netpoll/stream.h"

namespace netpoll {

namespace internal {
class Descriptor;
struct DescriptorOf;
}

// TcpStream is a connected TCP socket, or any other stream socket that was adopted. Small packets go out at once (TCP_NODELAY). Destroying it closes
// it, without waiting for what is still on its way out: SO_LINGER is left as the system has it.
//
//   absl::StatusOr<netpoll::TcpStream> stream = netpoll::TcpStream::Connect("127.0.0.1:7000", absl::Seconds(1));
//   if (!stream.ok()) return stream.status();
//   netpoll::IoResult sent = stream->Write("hello\n");
//
// Thread safety: as Stream. Moving it is like destroying it: no other call may be under way.
class TcpStream final : public Stream {
 public:
  // Connects to `host_port`: an address as Address::Parse reads it, or a name ("localhost:80", "example.com:https"), which
  // Resolve() looks up (resolve.h). A name's addresses are tried in turn, families alternating, the next one 250 ms after the
  // last or as soon as that has failed; the first that answers is taken (RFC 8305), and nothing is left of the others. Parks
  // the fiber until the peer has answered. kUnavailable: refused or unreachable, ErrnoOf() says which; or no name server
  // answers; kNotFound: there is no such name; kDeadlineExceeded, kCancelled; kInvalidArgument: neither an address nor a
  // name, no such service, or this host has no such family (EAFNOSUPPORT); kResourceExhausted: descriptors, ports, memory, epoll
  // watches: the message names the limit; of several addresses none of which answers, the code and errno of the first that failed,
  // and a message of all; kFailedPrecondition: called from a plain thread, or by a fiber of a simulation, which has no sockets. With a
  // name, throws std::bad_alloc.
  static absl::StatusOr<TcpStream> Connect(std::string_view host_port, fiber::Deadline deadline = {});
  static absl::StatusOr<TcpStream> Connect(const Address& address, fiber::Deadline deadline = {});

  // Takes over a connected stream socket that was made elsewhere (a unix socket, an inherited one) and makes it
  // non-blocking. It stays the caller's on an error. Never blocks. kInvalidArgument: not a stream socket;
  // kAlreadyExists: a stream of this runtime has it; kResourceExhausted: epoll watches, memory; kFailedPrecondition:
  // called from a plain thread, or in a simulation. That it is not connected, or no longer, shows when it is read or
  // written (kUnavailable).
  static absl::StatusOr<TcpStream> Adopt(int fd);

  // Closed: every call fails with kFailedPrecondition.
  TcpStream() = default;
  TcpStream(TcpStream&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  // Close() of what it had. Never blocks.
  TcpStream& operator=(TcpStream&& other) noexcept;
  // Close(). Never blocks.
  ~TcpStream() override;

  // Write() of several pieces, as if they were one. Parks the fiber while the peer does not keep up; blocks the thread
  // when called from a plain one.
  IoResult Writev(std::span<const iovec> pieces, fiber::Deadline deadline = {});

  // This end's address and the peer's; an empty Address after Close(), or once the peer is gone. Never blocks.
  Address local() const;
  Address peer() const;

  // The descriptor, for socket options; -1 after Close(). Whoever reads or writes it directly breaks the stream's idea
  // of what is left to read. Never blocks.
  int fd() const;

  // Gives up the descriptor, which is then the caller's to close, and non-blocking; -1 after Close(). Never blocks.
  // REQUIRES: no other call on the stream is under way.
  int Release() &&;

 private:
  friend class TcpListener;
  friend struct internal::DescriptorOf;
  explicit TcpStream(internal::Descriptor* descriptor) : descriptor_(descriptor) {}

  absl::StatusOr<size_t> DoRead(std::span<char> buffer, fiber::Deadline deadline) override;
  IoResult DoWrite(std::string_view data, fiber::Deadline deadline) override;
  void DoSetReadDeadline(fiber::Deadline deadline) override;
  void DoSetWriteDeadline(fiber::Deadline deadline) override;
  absl::Status DoCloseWrite() override;
  void DoClose() override;

  internal::Descriptor* descriptor_ = nullptr;  // null: default-made or moved from
};

// ListenOptions says how a TcpListener listens.
struct ListenOptions {
  int backlog = 4096;       // connections that wait to be accepted; the kernel caps it at net.core.somaxconn
  bool reuse_port = false;  // SO_REUSEPORT: several listeners share the address, the kernel spreads connections
  bool ipv6_only = false;   // an IPv6 listener takes no IPv4 connections
};

// TcpListener is a listening TCP socket. Several fibers may accept from it at once.
//
// When the process runs out of descriptors, Accept() waits until some come back instead of failing: nothing that the
// kernel has accepted is dropped, and one line in the log names the limit.
class TcpListener final : public Listener {
 public:
  // Listens on `address`, as Address::Parse reads it; port 0 is a free one, which local() tells. Never blocks.
  // kInvalidArgument: not an address, not this machine's, not permitted: ErrnoOf() says which; kAlreadyExists: somebody has
  // the address; kResourceExhausted: descriptors, memory, epoll watches; kFailedPrecondition: called from a plain thread,
  // or by a fiber of a simulation, which has no sockets.
  static absl::StatusOr<TcpListener> Listen(std::string_view address, ListenOptions options = {});
  static absl::StatusOr<TcpListener> Listen(const Address& address, ListenOptions options = {});

  // Closed: every call fails with kFailedPrecondition.
  TcpListener() = default;
  TcpListener(TcpListener&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  // Close() of what it had. Never blocks.
  TcpListener& operator=(TcpListener&& other) noexcept;
  // Close(). Never blocks.
  ~TcpListener() override;

  // The next connection. Parks the fiber while there is none; blocks the thread when called from a plain one.
  // kDeadlineExceeded, kCancelled: none was taken; kFailedPrecondition: closed here, or the runtime has ended;
  // kInvalidArgument: not permitted (EPERM, by a security policy).
  absl::StatusOr<TcpStream> Accept(fiber::Deadline deadline = {});

  // Where it listens; an empty Address after Close(). Never blocks.
  Address local() const;

  // The descriptor, for socket options; -1 after Close(). Never blocks.
  int fd() const;

 private:
  friend struct internal::DescriptorOf;
  explicit TcpListener(internal::Descriptor* descriptor) : descriptor_(descriptor) {}

  absl::StatusOr<std::unique_ptr<Stream>> DoAcceptStream(fiber::Deadline deadline) override;
  void DoClose() override;

  internal::Descriptor* descriptor_ = nullptr;  // null: default-made or moved from
};

}  // namespace netpoll

#endif  // WEFT_NETPOLL_TCP_H_
