// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_CONNECTION_H_
#define WEFT_TOOLS_LOADGEN_CONNECTION_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "netpoll/tcp.h"
#include "tools/loadgen/histogram.h"
#include "tools/loadgen/pattern.h"

namespace loadgen {

// Nanoseconds on the machine's monotonic clock.
int64_t NowNanos();

// Load says what a busy connection does.
struct Load {
  size_t size = 0;          // of a message
  uint64_t pipeline = 1;    // messages under way
  int64_t end_ns = 0;       // no new messages after that
  fiber::Deadline give_up;  // no echo is waited for after that
};

// Connection is a connection to an echo server: it sends its pattern and checks that the same comes
// back.
//
// Thread safety: one fiber at a time; a failed call leaves it of no more use.
class Connection {
 public:
  Connection(int number, netpoll::TcpStream stream, const Pattern& pattern)
      : number_(number), stream_(std::move(stream)), pattern_(pattern) {}

  // Keeps load.pipeline messages under way until load.end_ns, then waits for the last echoes.
  // Latencies are from before a message is sent to its last byte's return. kDataLoss: other bytes
  // came back; kUnavailable: the connection broke, or the server closed it. Parks the fiber.
  absl::Status KeepBusy(const Load& load, Histogram& latencies);

  // One message and its echo. Parks the fiber.
  absl::Status EchoOnce(size_t size, fiber::Deadline deadline);

  // Ends this side's flow, and waits for the server to end its own. kDataLoss: more came back than
  // was sent. Parks the fiber. The last call.
  absl::Status End(fiber::Deadline deadline);

  // Ends both flows so that the server is told of a reset. Never blocks. The last call.
  absl::Status Reset();

  uint64_t bytes_received() const { return received_; }

 private:
  // One fiber sends and receives in turn: fast, but each message must fit into the buffers on the
  // way, for a server that cannot send stops receiving.
  absl::Status KeepBusyInTurn(const Load& load, Histogram& latencies);
  // A second fiber sends.
  absl::Status KeepBusyAtOnce(const Load& load, Histogram& latencies);

  absl::Status Send(size_t bytes, fiber::Deadline deadline);
  // Receives and checks what has come, at most `bytes` of it.
  absl::Status ReceiveSome(size_t bytes, fiber::Deadline deadline);
  absl::Status Receive(size_t bytes, fiber::Deadline deadline);

  const int number_;
  netpoll::TcpStream stream_;
  const Pattern& pattern_;
  // Bytes of the pattern so far.
  uint64_t sent_ = 0;
  uint64_t received_ = 0;
};

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_CONNECTION_H_
