// SPDX-License-Identifier: Apache-2.0
#include "netpoll/sim/internal/connection.h"

#include <errno.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "fiber/internal/context.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/sim/internal/turn.h"

namespace netpoll::sim::internal {

using fiber::Deadline;
using fiber::WaitReason;
using fiber::internal::ClaimedWaiters;
using fiber::internal::NowNs;
using fiber::internal::StateWord;
using fiber::internal::Wait;
using netpoll::internal::ClosedStatus;
using netpoll::internal::ErrnoStatus;

Connection::Connection(std::shared_ptr<Weather> weather, size_t buffer_bytes, std::string address)
    : weather_(std::move(weather)), buffer_bytes_(buffer_bytes), address_(std::move(address)) {}

// Looking. -------------------------------------------------------------------------------------

Connection::View Connection::LookToRead(int side) {
  const int64_t now = NowNs();
  View view;
  const uint64_t word = lock_.LockQueue();
  const Flow& flow = SentTo(side);
  view.deadline = flow.read_deadline;
  view.changes = changes_;
  for (const Piece& piece : flow.pieces) {
    if (piece.arrives_ns > now) {
      view.news_ns = piece.arrives_ns;
      break;
    }
    view.bytes += piece.bytes.size() - piece.taken;
  }
  if (is_closed_[side]) {
    view.fate = Fate::kClosed;
  } else if (view.bytes > 0) {
    view.fate = Fate::kGoesOn;
  } else if (std::min(flow.end_ns, flow.reset_ns) <= now) {
    view.fate = flow.end_ns <= flow.reset_ns ? Fate::kEnded : Fate::kReset;
  } else {
    view.news_ns = std::min({view.news_ns, flow.end_ns, flow.reset_ns});
  }
  lock_.UnlockQueue(word);
  return view;
}

Connection::View Connection::LookToWrite(int side) {
  const int64_t now = NowNs();
  View view;
  const uint64_t word = lock_.LockQueue();
  const Flow& flow = SentBy(side);
  view.deadline = flow.write_deadline;
  view.changes = changes_;
  view.news_ns = SentTo(side).reset_ns;
  view.bytes = buffer_bytes_ - flow.held;
  if (is_closed_[side]) {
    view.fate = Fate::kClosed;
  } else if (view.news_ns <= now) {
    view.fate = Fate::kReset;
  } else if (flow.is_shut) {
    view.fate = Fate::kShut;
  }
  lock_.UnlockQueue(word);
  return view;
}

bool Connection::IsClosed(int side) {
  const uint64_t word = lock_.LockQueue();
  const bool is_closed = is_closed_[side];
  lock_.UnlockQueue(word);
  return is_closed;
}

absl::Status Connection::StatusOf(Fate fate, const char* operation) const {
  switch (fate) {
    case Fate::kClosed:
      return ClosedStatus();
    case Fate::kShut:
      return ErrnoStatus(EPIPE, operation, address_);
    case Fate::kEnded:
      return absl::OutOfRangeError("end of stream");
    case Fate::kReset:
      return ErrnoStatus(ECONNRESET, operation, address_);
    case Fate::kGoesOn:
      break;
  }
  return absl::OkStatus();
}

absl::Status Connection::Await(Wait& wait, int side, bool is_reader, const View& view,
                               Deadline limit) {
  const uint64_t word = lock_.LockQueue();
  if (changes_ != view.changes) {
    lock_.UnlockQueue(word);
    return absl::OkStatus();
  }
  fiber::internal::WaitQueue& queue = is_reader ? SentTo(side).reader : SentBy(side).writer;
  const Deadline news = Deadline::AtNanos(view.news_ns);
  absl::Status status =
      fiber::internal::ParkInQueue(wait, lock_, word, queue, Deadline::Earlier(limit, news));
  if (absl::IsDeadlineExceeded(status) && news.is_past()) return absl::OkStatus();
  return status;
}

// Reading and writing. -------------------------------------------------------------------------

absl::StatusOr<size_t> Connection::Read(int side, std::span<char> buffer, Deadline deadline) {
  if (buffer.empty()) {
    if (IsClosed(side)) return ClosedStatus();
    return size_t{0};
  }
  Turn turn(turns_[side][1], deadline);
  if (!turn.status().ok()) return IsClosed(side) ? ClosedStatus() : turn.status();
  for (;;) {
    Wait wait(WaitReason::kRead, this);
    const View view = LookToRead(side);
    if (view.fate == Fate::kClosed) return ClosedStatus();
    const Deadline limit = Deadline::Earlier(deadline, view.deadline);
    if (absl::Status status = wait.Check(limit); !status.ok()) return status;
    if (view.fate != Fate::kGoesOn) return StatusOf(view.fate, "read from");
    if (view.bytes > 0) {
      const size_t size = weather_->ShortenRead(std::min(buffer.size(), view.bytes));
      if (const size_t taken = Take(side, buffer.first(size)); taken > 0) return taken;
      continue;  // closed meanwhile
    }
    absl::Status status = Await(wait, side, /*is_reader=*/true, view, limit);
    if (!status.ok()) return status;
  }
}

IoResult Connection::Write(int side, std::string_view data, Deadline deadline) {
  if (data.empty()) return {0, IsClosed(side) ? ClosedStatus() : absl::OkStatus()};
  Turn turn(turns_[side][0], deadline);
  if (!turn.status().ok()) return {0, IsClosed(side) ? ClosedStatus() : turn.status()};
  IoResult result;
  for (bool is_first = true;; is_first = false) {
    Wait wait(WaitReason::kWrite, this);
    const View view = LookToWrite(side);
    if (view.fate == Fate::kClosed) return {result.bytes, ClosedStatus()};
    const Deadline limit = Deadline::Earlier(deadline, view.deadline);
    if (result.status = wait.Check(limit); !result.ok()) return result;
    if (view.fate != Fate::kGoesOn) return {result.bytes, StatusOf(view.fate, "write to")};
    if (is_first && weather_->Strikes(&Faults::vanish)) Vanish();
    if (is_first && weather_->Strikes(&Faults::reset)) {
      Fail(side);
      continue;
    }
    if (view.bytes > 0) {
      const std::string_view part = data.substr(result.bytes, view.bytes);
      if (!Send(side, part)) continue;
      result.bytes += part.size();
      if (result.bytes == data.size()) return result;
      fiber::internal::SpendTurn();  // a reader that keeps up would keep this from ever waiting
      continue;
    }
    result.status = Await(wait, side, /*is_reader=*/false, view, limit);
    if (!result.ok()) return result;
  }
}

size_t Connection::Take(int side, std::span<char> buffer) {
  const int64_t now = NowNs();
  Pieces done;
  ClaimedWaiters claimed;
  size_t taken = 0;
  lock_.LockQueue();
  Flow& flow = SentTo(side);
  while (!is_closed_[side] && taken < buffer.size() && !flow.pieces.empty() &&
         flow.pieces.front().arrives_ns <= now) {
    Piece& piece = flow.pieces.front();
    const size_t size = std::min(buffer.size() - taken, piece.bytes.size() - piece.taken);
    memcpy(buffer.data() + taken, piece.bytes.data() + piece.taken, size);
    taken += size;
    piece.taken += size;
    if (piece.taken == piece.bytes.size()) {
      done.splice(done.end(), flow.pieces, flow.pieces.begin());
    }
  }
  flow.held -= taken;
  if (taken > 0) WakeLocked(flow, claimed);
  Unlock(claimed);
  return taken;
}

bool Connection::Send(int side, std::string_view data) {
  Pieces sent;
  sent.push_back({.bytes = std::string(data)});
  const int64_t delay_ns = weather_->DelayNs();
  const int64_t back_ns = weather_->DelayNs();
  ClaimedWaiters claimed;
  lock_.LockQueue();
  Flow& flow = SentBy(side);
  const bool is_sent = !is_closed_[side] && !flow.is_shut;
  if (is_sent) flow.held += data.size();
  if (is_sent && is_closed_[1 - side] && !is_vanished_) {
    // Nobody is there, which the peer's system says: until then they are on their way.
    const int64_t there_ns = ArrivalLocked(flow, delay_ns);
    ResetLocked(SentTo(side), there_ns - NowNs() + back_ns);
    WakeLocked(flow, claimed);
    WakeLocked(SentTo(side), claimed);
  } else if (is_sent) {
    sent.front().arrives_ns = ArrivalLocked(flow, delay_ns);
    flow.pieces.splice(flow.pieces.end(), sent);
    WakeLocked(flow, claimed);
  }
  Unlock(claimed);
  return is_sent;
}

// Changing. ------------------------------------------------------------------------------------

void Connection::SetReadDeadline(int side, Deadline deadline) {
  ClaimedWaiters claimed;
  lock_.LockQueue();
  SentTo(side).read_deadline = deadline;
  WakeLocked(SentTo(side), claimed);
  Unlock(claimed);
}

void Connection::SetWriteDeadline(int side, Deadline deadline) {
  ClaimedWaiters claimed;
  lock_.LockQueue();
  SentBy(side).write_deadline = deadline;
  WakeLocked(SentBy(side), claimed);
  Unlock(claimed);
}

absl::Status Connection::CloseWrite(int side) {
  const int64_t delay_ns = weather_->DelayNs();
  Fate fate = Fate::kGoesOn;
  ClaimedWaiters claimed;
  lock_.LockQueue();
  Flow& flow = SentBy(side);
  if (is_closed_[side]) {
    fate = Fate::kClosed;
  } else if (SentTo(side).reset_ns <= NowNs()) {
    fate = Fate::kReset;
  } else if (!flow.is_shut) {
    flow.is_shut = true;
    flow.end_ns = ArrivalLocked(flow, delay_ns);
    WakeLocked(flow, claimed);
  }
  Unlock(claimed);
  if (fate == Fate::kReset) return ErrnoStatus(ENOTCONN, "shutdown", address_);
  return StatusOf(fate, "shutdown");
}

void Connection::CloseEnd(int side, bool is_reset) {
  const int64_t delay_ns = weather_->DelayNs();
  Pieces unread;
  ClaimedWaiters claimed;
  lock_.LockQueue();
  if (!std::exchange(is_closed_[side], true)) {
    Flow& out = SentBy(side);
    Flow& in = SentTo(side);
    if (is_reset || in.held > 0) {
      ResetLocked(out, delay_ns);
    } else if (!out.is_shut) {
      out.end_ns = ArrivalLocked(out, delay_ns);
    }
    out.is_shut = true;
    unread.swap(in.pieces);
    if (!is_vanished_) in.held = 0;  // else nobody tells who sends that there is room
    WakeLocked(out, claimed);
    WakeLocked(in, claimed);
  }
  Unlock(claimed);
}

void Connection::Fail(int side) {
  const int64_t delay_ns = weather_->DelayNs();
  Pieces lost;
  ClaimedWaiters claimed;
  lock_.LockQueue();
  Flow& in = SentTo(side);
  const int64_t now = NowNs();
  while (!in.pieces.empty() && in.pieces.back().arrives_ns > now) {
    in.held -= in.pieces.back().bytes.size();
    lost.splice(lost.end(), in.pieces, std::prev(in.pieces.end()));
  }
  in.reset_ns = std::min(in.reset_ns, now);
  if (in.end_ns > now) in.end_ns = kNeverNs;
  ResetLocked(SentBy(side), delay_ns);
  WakeLocked(flows_[0], claimed);
  WakeLocked(flows_[1], claimed);
  Unlock(claimed);
}

void Connection::Vanish() {
  const int64_t now = NowNs();
  ClaimedWaiters claimed;
  lock_.LockQueue();
  is_vanished_ = true;
  for (Flow& flow : flows_) {
    const auto forget = [now](int64_t& arrives_ns) {
      if (arrives_ns > now) arrives_ns = kNeverNs;
    };
    for (Piece& piece : flow.pieces) forget(piece.arrives_ns);
    forget(flow.end_ns);
    forget(flow.reset_ns);
    WakeLocked(flow, claimed);
  }
  Unlock(claimed);
}

int64_t Connection::ArrivalLocked(Flow& flow, int64_t delay_ns) {
  if (is_vanished_) return kNeverNs;
  flow.last_ns = std::max(flow.last_ns, NowNs() + delay_ns);
  return flow.last_ns;
}

void Connection::ResetLocked(Flow& flow, int64_t delay_ns) {
  if (flow.reset_ns == kNeverNs) flow.reset_ns = ArrivalLocked(flow, delay_ns);
}

void Connection::WakeLocked(Flow& flow, ClaimedWaiters& claimed) {
  ++changes_;
  for (fiber::internal::WaitQueue* queue : {&flow.reader, &flow.writer}) {
    while (fiber::internal::Waiter* first = queue->first()) claimed.Claim(*queue, *first);
  }
}

void Connection::Unlock(ClaimedWaiters& claimed) {
  lock_.UnlockQueue(0);
  claimed.Unpark();
}

}  // namespace netpoll::sim::internal
