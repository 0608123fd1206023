// SPDX-License-Identifier: Apache-2.0
#include "tests/soak/client.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "fiber/event.h"

namespace soak {
namespace {

constexpr absl::StatusCode kOk = absl::StatusCode::kOk;
constexpr size_t kMost = size_t{16} << 10;  // of what is sent before it is read
constexpr absl::Duration kPatience = absl::Seconds(50);

}  // namespace

void Client::Run() {
  number_ = random_.Between(0, 1'000'000);
  place_ = server_.place();
  if (place_.address == netpoll::Address()) return Pause(random_);
  const bool has_time = !random_.OneIn(8);
  absl::StatusOr<netpoll::TcpStream> stream =
      netpoll::TcpStream::Connect(place_.address, has_time ? kPatience : random_.ShortTime());
  if (!has_time && absl::IsDeadlineExceeded(stream.status())) return Count(Op::kTimeout);
  if (!Done(stream.status(), kOk)) return Count(Op::kRefused);
  stream_ = *std::move(stream);
  Count(Op::kConnect);
  if (!Talk()) Count(Op::kRefused);
  Count(Op::kKilobytes, received_ >> 10);
}

// What was to come, or the server's listener has ended before the connection was accepted.
bool Client::Done(const absl::Status& status, absl::StatusCode expected,
                  std::source_location site) {
  if (status.code() == expected) return true;
  const bool is_broken = absl::IsUnavailable(status) || absl::IsOutOfRange(status);
  if (!is_broken || received_ != 0 || server_.is_at(place_)) ExpectCode(status, expected, site);
  return false;
}

bool Client::Talk() {
  switch (random_.Below(12)) {
    case 0:
      return EchoAfterEnd();
    case 1:
      return EchoMuch();
    case 2:
      return MeetReset();
    case 3:
      return TimeOut() && EchoInTurn();
    case 4:
      return BeCancelled() && EchoInTurn();
    case 5:
      return MoveDeadline() && EchoInTurn();
    case 6:
      return CloseUnderRead();
    case 7:
      return FillUp();
    case 8:
      return GoElsewhere();
    default:
      return SayHello({}) && EchoInTurn();
  }
}

bool Client::SayHello(Hello hello) {
  return Done(
      stream_.Write({reinterpret_cast<const char*>(&hello), sizeof hello}, kPatience).status, kOk);
}

bool Client::Send(size_t bytes) {
  while (bytes > 0) {
    const std::string_view part =
        pattern_.Part(number_, sent_, std::min(bytes, loadgen::Pattern::kMaxPart));
    const netpoll::IoResult written = stream_.Write(part, kPatience);
    if (!Done(written.status, kOk)) return false;
    sent_ += part.size();
    bytes -= part.size();
  }
  return true;
}

void Client::Compare(const char* data, size_t size) {
  Expect(std::memcmp(data, pattern_.Part(number_, received_, size).data(), size) == 0,
         "wrong bytes");
  received_ += size;
}

bool Client::Receive(size_t bytes) {
  char buffer[4096];
  while (bytes > 0) {
    const absl::StatusOr<size_t> n =
        stream_.Read({buffer, std::min(bytes, sizeof buffer)}, kPatience);
    if (!Done(n.status(), kOk)) return false;
    Compare(buffer, *n);
    bytes -= *n;
  }
  return true;
}

bool Client::ReceiveToEnd() {
  char buffer[4096];
  for (;;) {
    const absl::StatusOr<size_t> n = stream_.Read(buffer, kPatience);
    if (n.ok()) {
      Expect(received_ + *n <= sent_, "more came back than was sent");
      Compare(buffer, *n);
      continue;
    }
    if (!Done(n.status(), absl::StatusCode::kOutOfRange)) return false;
    // Before it was accepted the listener's end may look like the server's.
    if (sent_ != 0 && received_ == 0 && !server_.is_at(place_)) return false;
    Expect(received_ == sent_, "less came back than was sent");
    return true;
  }
}

void Client::Reset() {
  const linger hard{1, 0};
  Expect(setsockopt(stream_.fd(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0, "SO_LINGER");
  stream_.Close();
  Count(Op::kReset);
}

// Ends by a half-close, a close or a reset.
bool Client::EchoInTurn() {
  for (int i = random_.Between(1, 8); i > 0; --i) {
    const size_t bytes = random_.Below(kMost) + 1;
    if (!Send(bytes)) return false;
    if (random_.OneIn(8)) Pause(random_);
    if (random_.OneIn(16)) break;  // unread
    if (!Receive(bytes)) return false;
    Count(Op::kEcho);
  }
  switch (random_.Below(4)) {
    case 0:
      Reset();
      return true;
    case 1:
      stream_.Close();
      return true;
    default:
      return Done(stream_.CloseWrite(), kOk) && ReceiveToEnd();
  }
}

bool Client::EchoAfterEnd() {
  if (!SayHello({.wish = Hello::kEchoAfterEnd})) return false;
  if (!Send(random_.Below(4 * kMost) + 1) || !Done(stream_.CloseWrite(), kOk)) return false;
  Count(Op::kHalfClose);
  return ReceiveToEnd();
}

// More than the sockets hold: one fiber writes while this one reads.
bool Client::EchoMuch() {
  if (!SayHello({})) return false;
  const size_t bytes = random_.Below(size_t{1} << (12 + random_.Below(9))) + 1;
  // Of its own, since sent_ is read here meanwhile.
  auto writer = fiber::Spawn([this, bytes] {
    for (uint64_t at = 0; at < bytes;) {
      const size_t size = std::min<size_t>(bytes - at, loadgen::Pattern::kMaxPart);
      const netpoll::IoResult written = stream_.Write(pattern_.Part(number_, at, size), kPatience);
      if (!written.ok()) return written.status;
      at += size;
    }
    return stream_.CloseWrite();
  });
  sent_ = bytes;
  const bool is_whole = ReceiveToEnd();
  const absl::Status status = writer.Join();
  return is_whole && Done(status, kOk);
}

bool Client::MeetReset() {
  const size_t bytes = random_.Below(kMost) + 1;
  if (!SayHello({.wish = Hello::kEchoAndReset, .bytes = static_cast<uint32_t>(bytes)}))
    return false;
  if (!Send(bytes)) return false;
  char buffer[4096];
  for (;;) {
    const absl::StatusOr<size_t> n = stream_.Read(buffer, kPatience);
    if (n.ok()) {
      Compare(buffer, *n);
      continue;
    }
    if (!Done(n.status(), absl::StatusCode::kUnavailable)) return false;
    Count(Op::kPeerReset);
    return true;
  }
}

bool Client::TimeOut() {
  if (!SayHello({})) return false;
  char buffer[1];
  const absl::StatusOr<size_t> n = stream_.Read(buffer, random_.ShortTime());
  Count(Op::kTimeout);
  return Done(n.status(), absl::StatusCode::kDeadlineExceeded);
}

bool Client::BeCancelled() {
  if (!SayHello({})) return false;
  auto reader = fiber::Spawn([this] {
    char buffer[1];
    return stream_.Read(buffer, kPatience).status();
  });
  Pause(random_);
  reader.Cancel();
  Count(Op::kCancelledUnder);
  return Done(reader.Join(), absl::StatusCode::kCancelled);
}

bool Client::MoveDeadline() {
  if (!SayHello({})) return false;
  auto reader = fiber::Spawn([this] {
    char buffer[1];
    return stream_.Read(buffer, kPatience).status();
  });
  Pause(random_);
  stream_.SetReadDeadline(random_.ShortTime());
  const absl::Status status = reader.Join();
  stream_.SetReadDeadline(fiber::Deadline::Never());
  Count(Op::kDeadlineMoved);
  return Done(status, absl::StatusCode::kDeadlineExceeded);
}

bool Client::CloseUnderRead() {
  if (!SayHello({})) return false;
  auto reader = fiber::Spawn([this] {
    char buffer[1];
    return stream_.Read(buffer, kPatience).status();
  });
  Pause(random_);
  stream_.Close();
  Count(Op::kClosedUnder);
  return Done(reader.Join(), absl::StatusCode::kFailedPrecondition);
}

// Writes what nobody reads, until the way is full.
bool Client::FillUp() {
  static const std::string* const much = new std::string(size_t{24} << 20, 'x');
  if (!SayHello({})) return false;
  if (random_.OneIn(2)) {
    const netpoll::IoResult written =
        stream_.Write(*much, absl::Milliseconds(random_.Between(1, 20)));
    Expect(written.ok() || written.bytes < much->size(), "an error after all was written");
    Count(Op::kTimeout);
    if (written.ok()) return true;
    return Done(written.status, absl::StatusCode::kDeadlineExceeded);
  }
  auto writer = fiber::Spawn([this] { return stream_.Write(*much, kPatience).status; });
  if (random_.OneIn(2)) (void)fiber::Sleep(absl::Milliseconds(5));
  stream_.Close();
  Count(Op::kClosedUnder);
  return Done(writer.Join(), absl::StatusCode::kFailedPrecondition);
}

// The connection is used where it was not made: by a fiber of any runtime, or by a plain thread.
bool Client::GoElsewhere() {
  if (!SayHello({})) return false;
  Count(Op::kElsewhere);
  if (!random_.OneIn(8))
    return world_.AnyRuntime(random_).Spawn([this] { return EchoInTurn(); }).Join();
  bool is_done = false;
  fiber::Event end;
  std::thread thread([&] {
    is_done = EchoInTurn();
    end.Set();
  });
  ExpectCode(end.Wait(), kOk);
  thread.join();
  return is_done;
}

}  // namespace soak
