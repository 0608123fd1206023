// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/client.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "netpoll/error.h"
#include "netpoll/tcp.h"
#include "tools/loadgen/for_each.h"

namespace loadgen {
namespace {

// A backlog may hold no more than that; a handshake that finds it full is tried again a second
// later.
constexpr int kHandshakesAtOnce = 128;
constexpr absl::Duration kHandshakePatience = absl::Seconds(20);
constexpr absl::Duration kEchoPatience = absl::Seconds(10);
constexpr int kErrorsSaid = 10;
// A server that refuses so many will refuse the others too.
constexpr int kErrorsBeforeGivingUp = 100;

void PrintLine(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

}  // namespace

Client::Client(const Options& options)
    : options_(options), connections_(static_cast<size_t>(options.connections)) {}

int Client::Run() {
  OpenAll();
  const uint64_t echoes_in_time = KeepBusy();
  const int idle_alive = ProveIdleAlive();
  EndAll();
  Summarize(echoes_in_time, idle_alive);
  return errors() == 0 && CountOpen() == options_.connections ? 0 : 1;
}

void Client::OpenAll() {
  ForEach(0, options_.connections, kHandshakesAtOnce, [this](int number) {
    if (errors() < kErrorsBeforeGivingUp) Open(number);
  });
  PrintLine(absl::StrFormat("open connections=%d", CountOpen()));
}

void Client::Open(int number) {
  absl::StatusOr<netpoll::TcpStream> stream =
      netpoll::TcpStream::Connect(options_.target, kHandshakePatience);
  if (!stream.ok()) return Lose(number, stream.status());
  connections_[static_cast<size_t>(number)] =
      std::make_unique<Connection>(number, *std::move(stream), pattern_);
}

uint64_t Client::KeepBusy() {
  if (options_.busy == 0) return 0;
  const Load load = {.size = options_.size,
                     .pipeline = static_cast<uint64_t>(options_.pipeline),
                     .end_ns = NowNanos() + absl::ToInt64Nanoseconds(options_.time),
                     .give_up = options_.time + kEchoPatience};
  auto progress = fiber::Spawn([this] { return ReportProgress(); });
  ForEach(0, options_.busy, options_.busy, [&](int number) {
    const auto& connection = connections_[static_cast<size_t>(number)];
    if (connection == nullptr) return;
    const absl::Status status = connection->KeepBusy(load, latencies_);
    if (!status.ok()) Lose(number, status);
  });
  return progress.Join();
}

uint64_t Client::ReportProgress() {
  const absl::Duration start = fiber::Now();
  LatencyCounts before;
  for (int second = 1;; ++second) {
    const absl::Duration time = std::min(absl::Seconds(second), options_.time);
    if (!fiber::Sleep(start + time - fiber::Now()).ok()) return before.total();
    const LatencyCounts now = latencies_.Snapshot();
    if (time < absl::Seconds(second)) return now.total();  // a rest is no second
    const LatencyCounts interval = now.Since(before);
    PrintLine(absl::StrFormat("t=%ds rps=%d p50_us=%.1f p99_us=%.1f errors=%d", second,
                              interval.total(), interval.Micros(0.5), interval.Micros(0.99),
                              errors()));
    if (time == options_.time) return now.total();
    before = now;
  }
}

int Client::ProveIdleAlive() {
  std::atomic<int> alive{0};
  ForEach(options_.busy, options_.connections, kHandshakesAtOnce, [&](int number) {
    const auto& connection = connections_[static_cast<size_t>(number)];
    if (connection == nullptr) return;
    const absl::Status status = connection->EchoOnce(options_.size, kEchoPatience);
    if (status.ok()) {
      alive.fetch_add(1, std::memory_order_relaxed);
    } else {
      Lose(number, status);
    }
  });
  return alive.load(std::memory_order_relaxed);
}

void Client::EndAll() {
  ForEach(0, options_.connections, kHandshakesAtOnce, [&](int number) {
    const auto& connection = connections_[static_cast<size_t>(number)];
    if (connection == nullptr) return;
    const absl::Status status = connection->End(kEchoPatience);
    if (!status.ok()) Lose(number, status);
  });
}

void Client::Summarize(uint64_t echoes_in_time, int idle_alive) const {
  const LatencyCounts all = latencies_.Snapshot();
  const double most = latencies_.max_micros();
  const auto micros = [&](double quantile) { return std::min(all.Micros(quantile), most); };
  PrintLine(absl::StrFormat(
      "connections=%d rps=%.0f p50_us=%.1f p99_us=%.1f p999_us=%.1f max_us=%.1f idle_alive=%d/%d "
      "errors=%d echoes=%d",
      CountOpen(), static_cast<double>(echoes_in_time) / absl::ToDoubleSeconds(options_.time),
      micros(0.5), micros(0.99), micros(0.999), most, idle_alive,
      options_.connections - options_.busy, errors(), all.total()));
}

void Client::Lose(int number, const absl::Status& status) {
  const int errors_before = errors_.fetch_add(1, std::memory_order_relaxed);
  connections_[static_cast<size_t>(number)] = nullptr;
  if (errors_before > kErrorsSaid) return;
  std::string line = errors_before == kErrorsSaid
                         ? "loadgen: and more errors"
                         : absl::StrFormat("loadgen: connection %d: %s", number, status.ToString());
  const int error = netpoll::ErrnoOf(status);
  if (errors_before < kErrorsSaid && error != 0) absl::StrAppendFormat(&line, " (errno %d)", error);
  std::fprintf(stderr, "%s\n", line.c_str());
}

int Client::CountOpen() const {
  return static_cast<int>(std::count_if(connections_.begin(), connections_.end(),
                                        [](const auto& open) { return open != nullptr; }));
}

}  // namespace loadgen
