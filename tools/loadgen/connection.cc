// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "fiber/go.h"
#include "fiber/semaphore.h"

namespace loadgen {
namespace {

// What surely fits into the socket buffers between two ends.
constexpr size_t kInTurnBytes = size_t{64} << 10;
// Of a read; it lies on the fiber's stack.
constexpr size_t kReadBytes = size_t{16} << 10;

absl::Status Told(std::string_view what, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrFormat("%s: %s", what, status.message()));
}

}  // namespace

int64_t NowNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

absl::Status Connection::KeepBusy(const Load& load, Histogram& latencies) {
  return load.size * load.pipeline <= kInTurnBytes ? KeepBusyInTurn(load, latencies)
                                                   : KeepBusyAtOnce(load, latencies);
}

absl::Status Connection::KeepBusyInTurn(const Load& load, Histogram& latencies) {
  std::vector<int64_t> sent_at(load.pipeline);
  const uint64_t first = received_;
  uint64_t sent = 0;
  uint64_t echoed = 0;
  for (int64_t now = NowNanos();;) {
    if (now < load.end_ns) {
      const uint64_t room = load.pipeline - (sent - echoed);
      for (uint64_t i = 0; i < room; ++i) sent_at[sent++ % load.pipeline] = now;
      if (absl::Status status = Send(room * load.size, load.give_up); !status.ok()) return status;
    }
    if (sent == echoed) return absl::OkStatus();
    if (absl::Status status = ReceiveSome(sent_ - received_, load.give_up); !status.ok())
      return status;
    now = NowNanos();
    for (const uint64_t now_echoed = (received_ - first) / load.size; echoed < now_echoed;
         ++echoed) {
      latencies.Add(now - sent_at[echoed % load.pipeline]);
    }
  }
}

absl::Status Connection::KeepBusyAtOnce(const Load& load, Histogram& latencies) {
  std::vector<int64_t> sent_at(load.pipeline);
  fiber::Semaphore room(static_cast<int>(load.pipeline));
  fiber::Semaphore under_way(0);  // one more in the end, without a message
  std::atomic<uint64_t> sent{0};

  auto sender = fiber::Spawn([&] {
    absl::Status status;
    for (;;) {
      status = room.Acquire(1, load.give_up);
      const int64_t now = NowNanos();
      if (!status.ok() || now >= load.end_ns) break;
      sent_at[sent.load(std::memory_order_relaxed) % load.pipeline] = now;
      sent.fetch_add(1, std::memory_order_relaxed);
      under_way.Release();
      status = Send(load.size, load.give_up);
      if (!status.ok()) break;
    }
    under_way.Release();
    return status;
  });

  // A permit orders what it stands for: `sent` counts at least the messages whose permits were
  // taken.
  for (uint64_t echoed = 0;; ++echoed) {
    if (absl::Status status = under_way.Acquire(1, load.give_up); !status.ok()) return status;
    if (echoed == sent.load(std::memory_order_relaxed)) return sender.Join();
    if (absl::Status status = Receive(load.size, load.give_up); !status.ok()) return status;
    latencies.Add(NowNanos() - sent_at[echoed % load.pipeline]);
    room.Release();
  }
}

absl::Status Connection::EchoOnce(size_t size, fiber::Deadline deadline) {
  for (size_t left = size; left > 0;) {
    const size_t part = std::min(left, kInTurnBytes);
    if (absl::Status status = Send(part, deadline); !status.ok()) return status;
    if (absl::Status status = Receive(part, deadline); !status.ok()) return status;
    left -= part;
  }
  return absl::OkStatus();
}

absl::Status Connection::End(fiber::Deadline deadline) {
  if (absl::Status status = stream_.CloseWrite(); !status.ok()) return Told("shutdown", status);
  char buffer[kReadBytes];
  const absl::StatusOr<size_t> n = stream_.Read(buffer, deadline);
  if (absl::IsOutOfRange(n.status())) return absl::OkStatus();
  if (!n.ok()) return Told("read up to the end", n.status());
  return absl::DataLossError(absl::StrFormat("%d bytes or more came back that were not sent", *n));
}

absl::Status Connection::Reset() {
  const linger hard{1, 0};
  if (setsockopt(stream_.fd(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard) != 0) {
    return absl::InternalError("SO_LINGER was refused");
  }
  stream_.Close();
  return absl::OkStatus();
}

absl::Status Connection::Send(size_t bytes, fiber::Deadline deadline) {
  while (bytes > 0) {
    const std::string_view part = pattern_.Part(number_, sent_, std::min(bytes, Pattern::kMaxPart));
    const netpoll::IoResult written = stream_.Write(part, deadline);
    if (!written.ok()) return Told("write", written.status);
    sent_ += part.size();
    bytes -= part.size();
  }
  return absl::OkStatus();
}

absl::Status Connection::ReceiveSome(size_t bytes, fiber::Deadline deadline) {
  char buffer[kReadBytes];
  const absl::StatusOr<size_t> n =
      stream_.Read({buffer, std::min(bytes, sizeof(buffer))}, deadline);
  if (absl::IsOutOfRange(n.status())) {
    return absl::UnavailableError("read: the server closed the connection");
  }
  if (!n.ok()) return Told("read", n.status());
  const std::string_view wanted = pattern_.Part(number_, received_, *n);
  if (std::memcmp(buffer, wanted.data(), *n) != 0) {
    const size_t at = static_cast<size_t>(
        std::mismatch(wanted.begin(), wanted.end(), buffer).first - wanted.begin());
    return absl::DataLossError(absl::StrFormat(
        "wrong echo: byte %d came back as 0x%02x, not 0x%02x", received_ + at,
        static_cast<unsigned char>(buffer[at]), static_cast<unsigned char>(wanted[at])));
  }
  received_ += *n;
  return absl::OkStatus();
}

absl::Status Connection::Receive(size_t bytes, fiber::Deadline deadline) {
  for (const uint64_t end = received_ + bytes; received_ < end;) {
    if (absl::Status status = ReceiveSome(end - received_, deadline); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace loadgen
