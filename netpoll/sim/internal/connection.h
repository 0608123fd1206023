// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_SIM_INTERNAL_CONNECTION_H_
#define WEFT_NETPOLL_SIM_INTERNAL_CONNECTION_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_block.h"
#include "fiber/internal/wait_queue.h"
#include "fiber/semaphore.h"
#include "netpoll/sim/internal/weather.h"
#include "netpoll/stream.h"

namespace netpoll::sim::internal {

// Connection is two flows of bytes between two ends, side 0 and side 1. All of MemoryStream is
// here.
//
// Whatever is sent has an instant at which it arrives: bytes, the end, a reset. Nothing happens by
// itself at that instant: who waits for it has a timer.
//
//   who waits                                    who changes something
//   look: under the lock, what there is          lock; change it; claim who is parked for it
//   nothing, and nothing new since: link, park   unlock; unpark them
//   woken, for whatever reason: look again
//
// One call a flow and direction is parked so; others queue for their turn before that, at a
// semaphore. Locked are a few lines that neither park nor allocate.
class Connection {
 public:
  // `address` is for messages.
  Connection(std::shared_ptr<Weather> weather, size_t buffer_bytes, std::string address);

  absl::StatusOr<size_t> Read(int side, std::span<char> buffer, fiber::Deadline deadline);
  IoResult Write(int side, std::string_view data, fiber::Deadline deadline);
  void SetReadDeadline(int side, fiber::Deadline deadline);
  void SetWriteDeadline(int side, fiber::Deadline deadline);
  absl::Status CloseWrite(int side);
  void Close(int side) { CloseEnd(side, /*is_reset=*/false); }
  void Reset(int side) { CloseEnd(side, /*is_reset=*/true); }
  void Vanish();

 private:
  static constexpr int64_t kNeverNs = fiber::internal::kNeverNs;

  struct Piece {
    std::string bytes;
    size_t taken = 0;  // of them, by readers
    int64_t arrives_ns = 0;
  };
  using Pieces = std::list<Piece>;  // so that no node is made or freed under the lock

  // What one side sends to the other.
  struct Flow {
    Pieces pieces;
    size_t held = 0;              // bytes of `pieces` that were not taken
    int64_t last_ns = 0;          // when the last of all that was sent arrives
    bool is_shut = false;         // CloseWrite() was called
    int64_t end_ns = kNeverNs;    // when the end arrives, if it was sent
    int64_t reset_ns = kNeverNs;  // likewise a reset
    fiber::internal::WaitQueue reader;
    fiber::internal::WaitQueue writer;
    fiber::Deadline read_deadline;
    fiber::Deadline write_deadline;
  };

  // What a call has to know; true when it looked.
  enum class Fate { kGoesOn, kClosed, kShut, kEnded, kReset };
  struct View {
    Fate fate = Fate::kGoesOn;
    size_t bytes = 0;            // that can be read, or written
    int64_t news_ns = kNeverNs;  // when something that was sent arrives
    fiber::Deadline deadline;    // the stream's
    uint64_t changes = 0;
  };

  Flow& SentBy(int side) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) { return flows_[side]; }
  Flow& SentTo(int side) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) { return flows_[1 - side]; }
  View LookToRead(int side);
  View LookToWrite(int side);
  bool IsClosed(int side);
  // Parks until somebody claims it or `view` is old; not OK: why it cannot go on.
  absl::Status Await(fiber::internal::Wait& wait, int side, bool is_reader, const View& view,
                     fiber::Deadline limit);
  size_t Take(int side, std::span<char> buffer);
  // False: it is no longer as it was seen, and nothing was sent.
  bool Send(int side, std::string_view data);
  void CloseEnd(int side, bool is_reset);
  // Resets the connection, as `side` finds now and the other end when it is told.
  void Fail(int side);
  absl::Status StatusOf(Fate fate, const char* operation) const;

  int64_t ArrivalLocked(Flow& flow, int64_t delay_ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void ResetLocked(Flow& flow, int64_t delay_ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // After any change: claims who is parked in this flow, for him to look again.
  void WakeLocked(Flow& flow, fiber::internal::ClaimedWaiters& claimed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void Unlock(fiber::internal::ClaimedWaiters& claimed) ABSL_UNLOCK_FUNCTION(lock_);

  const std::shared_ptr<Weather> weather_;
  const size_t buffer_bytes_;
  const std::string address_;
  fiber::Semaphore turns_[2][2] = {{fiber::Semaphore(1), fiber::Semaphore(1)},
                                   {fiber::Semaphore(1), fiber::Semaphore(1)}};  // side, is_reader

  fiber::internal::StateWord lock_;
  Flow flows_[2] ABSL_GUARDED_BY(lock_);
  bool is_closed_[2] ABSL_GUARDED_BY(lock_) = {false, false};
  bool is_vanished_ ABSL_GUARDED_BY(lock_) = false;
  uint64_t changes_ ABSL_GUARDED_BY(lock_) = 0;
};

}  // namespace netpoll::sim::internal

#endif  // WEFT_NETPOLL_SIM_INTERNAL_CONNECTION_H_
