// SPDX-License-Identifier: Apache-2.0
//
// A network in memory: what is written against Stream and Listener is tested without sockets, on
// the simulated clock or on a real one, and things go wrong as a seed says.
//
//   netpoll::sim::Network network({.faults = {.max_delay = absl::Milliseconds(50), .short_read = 0.5}});
//   auto listener = network.Listen("server:7000");
//   auto server = fiber::Spawn([&] { return Serve(*listener); });
//   auto stream = network.Connect("server:7000", absl::Seconds(1));
//   if (!stream.ok()) return stream.status();
//   …
//   listener->Close();
#ifndef WEFT_NETPOLL_SIM_NETWORK_H_
#define WEFT_NETPOLL_SIM_NETWORK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "netpoll/stream.h"

namespace netpoll::sim {

namespace internal {
class Backlog;
class Connection;
struct NetworkState;
}  // namespace internal

// Faults says what goes wrong, and how often: probabilities from 0, never, to 1.
struct Faults {
  // What is sent arrives no earlier than after min_delay, mostly no later than after max_delay, and
  // never before what was sent earlier. Of connecting: there and back.
  absl::Duration min_delay = absl::ZeroDuration();
  absl::Duration max_delay = absl::ZeroDuration();
  double short_read = 0;   // that a Read gives less than there is
  double reset = 0;        // that a Write finds the connection reset; so does the peer
  double vanish = 0;       // that at a Write the way vanishes: see MemoryStream::Vanish()
  double refuse = 0;       // that a Connect is refused: kUnavailable, ECONNREFUSED
  double unreachable = 0;  // that a Connect finds no way: kUnavailable, EHOSTUNREACH
};

// NetworkOptions describes a network.
struct NetworkOptions {
  // Of delays and faults. 0: that of the simulation's schedule, so that what goes wrong differs
  // from schedule to schedule and replays with it; 1 outside of one.
  uint64_t seed = 0;
  size_t buffer_bytes = 64 << 10;  // that one direction of a connection takes without a reader
  int backlog = 128;               // connections that wait to be accepted; others wait to connect
  Faults faults = {};
};

// MemoryStream is one end of a connection in memory. It does what Stream says, as TcpStream does.
// Destroying it closes it.
//
// Closing one end with bytes unread resets the connection, and so does writing to an end that is
// closed: later calls of the other end say kUnavailable. What had arrived before can be read.
//
// Thread safety: as Stream. Moving it is like destroying it: no other call may be under way.
class MemoryStream final : public Stream {
 public:
  // Closed: every call fails with kFailedPrecondition.
  MemoryStream() = default;
  MemoryStream(MemoryStream&& other) noexcept = default;
  MemoryStream& operator=(MemoryStream&& other) noexcept;
  // Close(). Never blocks.
  ~MemoryStream() override;

  // Close(), but the peer gets a reset instead of the end, as when a process crashes. Never blocks.
  void Reset();

  // The way between the ends vanishes without a word, as when a machine loses power: nothing
  // arrives any more at either, no end and no reset. Who reads waits until its deadline; what is
  // written is taken until the buffer is full. Never blocks.
  void Vanish();

 private:
  friend class MemoryListener;
  friend class Network;
  MemoryStream(std::shared_ptr<internal::Connection> connection, int side)
      : connection_(std::move(connection)), side_(side) {}

  absl::StatusOr<size_t> DoRead(std::span<char> buffer, fiber::Deadline deadline) override;
  IoResult DoWrite(std::string_view data, fiber::Deadline deadline) override;
  void DoSetReadDeadline(fiber::Deadline deadline) override;
  void DoSetWriteDeadline(fiber::Deadline deadline) override;
  absl::Status DoCloseWrite() override;
  void DoClose() override;

  std::shared_ptr<internal::Connection> connection_;  // null: default-made or moved from
  int side_ = 0;                                      // which end it is
};

// MemoryPair is the two ends of one connection.
struct MemoryPair {
  MemoryStream client;
  MemoryStream server;
};

// MemoryListener is where a Network's connections to one address come out. Destroying it closes it.
//
// Thread safety: as Listener. Moving it is like destroying it: no other call may be under way.
class MemoryListener final : public Listener {
 public:
  // Closed: every call fails with kFailedPrecondition.
  MemoryListener() = default;
  MemoryListener(MemoryListener&& other) noexcept = default;
  MemoryListener& operator=(MemoryListener&& other) noexcept;
  // Close(). Never blocks.
  ~MemoryListener() override;

  // The next connection. Parks the fiber while there is none; blocks the thread when called from a
  // plain one. kDeadlineExceeded, kCancelled: none was taken; kFailedPrecondition: closed.
  absl::StatusOr<MemoryStream> Accept(fiber::Deadline deadline = {});

 private:
  friend class Network;
  explicit MemoryListener(std::shared_ptr<internal::Backlog> backlog)
      : backlog_(std::move(backlog)) {}

  absl::StatusOr<std::unique_ptr<Stream>> DoAcceptStream(fiber::Deadline deadline) override;
  // Connections that were not accepted are reset.
  void DoClose() override;

  std::shared_ptr<internal::Backlog> backlog_;  // null: default-made or moved from
};

// Network is who listens where. Streams and listeners may outlive it. Networks know nothing of each
// other, nor of the machine's.
//
// Thread safety: any fiber, any thread; of one clock, the simulated or the real one.
class Network {
 public:
  // Ends the process if an option makes no sense. Never blocks.
  explicit Network(NetworkOptions options = {});

  // Listens at `address`, which may be any text. Never blocks. kAlreadyExists: somebody does;
  // kInvalidArgument: it is empty.
  absl::StatusOr<MemoryListener> Listen(std::string_view address);

  // Connects to who listens at `address`, which need not have accepted by then. Parks the fiber
  // until the answer is there, and while the backlog is full; blocks the thread when called from a
  // plain one. kUnavailable: nobody listens there (ErrnoOf() is ECONNREFUSED), or Faults;
  // kDeadlineExceeded, kCancelled: there is no connection.
  absl::StatusOr<MemoryStream> Connect(std::string_view address, fiber::Deadline deadline = {});

  // A connection without a listener. Never blocks.
  MemoryPair Pair();

  // What goes wrong from now on, in connections that are there too. Never blocks.
  void SetFaults(const Faults& faults);

 private:
  std::shared_ptr<internal::NetworkState> state_;
};

}  // namespace netpoll::sim

#endif  // WEFT_NETPOLL_SIM_NETWORK_H_
