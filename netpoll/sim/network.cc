// SPDX-License-Identifier: Apache-2.0
#include "netpoll/sim/network.h"

#include <errno.h>

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "fiber/internal/context.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/sim/internal/backlog.h"
#include "netpoll/sim/internal/connection.h"
#include "netpoll/sim/internal/weather.h"

namespace netpoll::sim {

using fiber::Deadline;
using fiber::internal::SpendTurn;
using internal::Backlog;
using internal::Connection;
using netpoll::internal::ClosedStatus;
using netpoll::internal::ErrnoStatus;

namespace internal {

struct NetworkState {
  explicit NetworkState(const NetworkOptions& with)
      : options(with), weather(std::make_shared<Weather>(SeedOf(with), with.faults)) {}

  static uint64_t SeedOf(const NetworkOptions& options) {
    if (options.seed != 0) return options.seed;
    const uint64_t seed = fiber::sim::CurrentSeed();
    return seed == 0 ? 1 : seed;
  }

  const NetworkOptions options;
  const std::shared_ptr<Weather> weather;
  fiber::internal::BlockingMutex mutex;                                    // across no switch
  std::map<std::string, std::shared_ptr<Backlog>, std::less<>> listening;  // guarded by mutex
};

}  // namespace internal

// Streams. ---------------------------------------------------------------------------------------

MemoryStream& MemoryStream::operator=(MemoryStream&& other) noexcept {
  if (this != &other) {
    DoClose();
    connection_ = std::move(other.connection_);
    side_ = other.side_;
  }
  return *this;
}

MemoryStream::~MemoryStream() { DoClose(); }

void MemoryStream::Reset() {
  if (connection_ != nullptr) connection_->Reset(side_);
}

void MemoryStream::Vanish() {
  if (connection_ != nullptr) connection_->Vanish();
}

absl::StatusOr<size_t> MemoryStream::DoRead(std::span<char> buffer, Deadline deadline) {
  if (connection_ == nullptr) return ClosedStatus();
  absl::StatusOr<size_t> n = connection_->Read(side_, buffer, deadline);
  SpendTurn();
  return n;
}

IoResult MemoryStream::DoWrite(std::string_view data, Deadline deadline) {
  if (connection_ == nullptr) return {0, ClosedStatus()};
  IoResult result = connection_->Write(side_, data, deadline);
  SpendTurn();
  return result;
}

void MemoryStream::DoSetReadDeadline(Deadline deadline) {
  if (connection_ != nullptr) connection_->SetReadDeadline(side_, deadline);
}

void MemoryStream::DoSetWriteDeadline(Deadline deadline) {
  if (connection_ != nullptr) connection_->SetWriteDeadline(side_, deadline);
}

absl::Status MemoryStream::DoCloseWrite() {
  return connection_ == nullptr ? ClosedStatus() : connection_->CloseWrite(side_);
}

void MemoryStream::DoClose() {
  if (connection_ != nullptr) connection_->Close(side_);
}

// Listeners. -------------------------------------------------------------------------------------

MemoryListener& MemoryListener::operator=(MemoryListener&& other) noexcept {
  if (this != &other) {
    DoClose();
    backlog_ = std::move(other.backlog_);
  }
  return *this;
}

MemoryListener::~MemoryListener() { DoClose(); }

absl::StatusOr<MemoryStream> MemoryListener::Accept(Deadline deadline) {
  if (backlog_ == nullptr) return ClosedStatus();
  absl::StatusOr<std::shared_ptr<Connection>> accepted = backlog_->Accept(deadline);
  SpendTurn();
  if (!accepted.ok()) return accepted.status();
  return MemoryStream(*std::move(accepted), 1);
}

absl::StatusOr<std::unique_ptr<Stream>> MemoryListener::DoAcceptStream(Deadline deadline) {
  absl::StatusOr<MemoryStream> stream = Accept(deadline);
  if (!stream.ok()) return stream.status();
  return std::make_unique<MemoryStream>(*std::move(stream));
}

void MemoryListener::DoClose() {
  if (backlog_ != nullptr) backlog_->Close();
}

// The network. -----------------------------------------------------------------------------------

Network::Network(NetworkOptions options) {
  if (options.buffer_bytes == 0 || options.backlog < 1) {
    fiber::internal::Fatal(
        "netpoll::sim::NetworkOptions: a buffer of %zu bytes and a backlog of %d: there must be "
        "some",
        options.buffer_bytes, options.backlog);
  }
  state_ = std::make_shared<internal::NetworkState>(options);
}

absl::StatusOr<MemoryListener> Network::Listen(std::string_view address) {
  if (address.empty()) return absl::InvalidArgumentError("an empty address");
  auto backlog = std::make_shared<Backlog>(state_->options.backlog);
  std::shared_ptr<Backlog> before;
  {
    std::lock_guard hold(state_->mutex);
    auto [at, is_new] = state_->listening.try_emplace(std::string(address));
    before = at->second;
    if (is_new) at->second = backlog;
  }
  if (before == nullptr) return MemoryListener(std::move(backlog));
  if (before->is_closed()) {
    std::lock_guard hold(state_->mutex);
    std::shared_ptr<Backlog>& there = state_->listening[std::string(address)];
    if (there == before) {
      there = backlog;
      return MemoryListener(std::move(backlog));
    }
  }
  return ErrnoStatus(EADDRINUSE, "listen on", address);
}

absl::StatusOr<MemoryStream> Network::Connect(std::string_view address, Deadline deadline) {
  internal::Weather& weather = *state_->weather;
  if (absl::Status status = fiber::CheckCancelled(); !status.ok()) return status;
  if (deadline.is_past()) return absl::DeadlineExceededError("deadline exceeded");
  const int64_t answer_ns =
      fiber::internal::NowNs() + weather.DelayNs() + weather.DelayNs();  // there and back
  const Deadline answer = Deadline::AtNanos(answer_ns);
  if (absl::Status status = fiber::Sleep(Deadline::Earlier(deadline, answer)); !status.ok()) {
    return status;
  }
  if (deadline < answer) return absl::DeadlineExceededError("deadline exceeded");
  if (weather.Strikes(&Faults::unreachable))
    return ErrnoStatus(EHOSTUNREACH, "connect to", address);
  std::shared_ptr<Backlog> backlog;
  {
    std::lock_guard hold(state_->mutex);
    const auto at = state_->listening.find(address);
    if (at != state_->listening.end()) backlog = at->second;
  }
  if (backlog == nullptr || weather.Strikes(&Faults::refuse)) {
    return ErrnoStatus(ECONNREFUSED, "connect to", address);
  }
  auto connection = std::make_shared<Connection>(state_->weather, state_->options.buffer_bytes,
                                                 std::string(address));
  absl::Status status = backlog->Offer(connection, address, deadline);
  SpendTurn();
  if (!status.ok()) return status;
  return MemoryStream(std::move(connection), 0);
}

MemoryPair Network::Pair() {
  auto connection =
      std::make_shared<Connection>(state_->weather, state_->options.buffer_bytes, "the other end");
  MemoryStream client(connection, 0);
  return {std::move(client), MemoryStream(std::move(connection), 1)};
}

void Network::SetFaults(const Faults& faults) { state_->weather->Set(faults); }

}  // namespace netpoll::sim
