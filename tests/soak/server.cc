// SPDX-License-Identifier: Apache-2.0
#include "tests/soak/server.h"

#include <sys/socket.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "tests/soak/tally.h"

namespace soak {
namespace {

// The client has ended, or has reset the connection.
bool IsOver(const absl::Status& status) {
  if (status.ok()) return false;
  if (!absl::IsOutOfRange(status)) ExpectCode(status, absl::StatusCode::kUnavailable);
  return true;
}

}  // namespace

void Server::Serve(uint64_t seed) {
  Random random(seed);
  while (!is_last_.load(std::memory_order_relaxed)) Listen(random);
  ExpectCode(handlers_.Wait(), absl::StatusCode::kOk);
}

Server::Place Server::place() {
  const fiber::MutexLock hold(mutex_);
  return {address_, generation_.load(std::memory_order_relaxed)};
}

// One listener's life.
void Server::Listen(Random& random) {
  // Many addresses: for each there are all ports, even if some linger after earlier connections.
  absl::StatusOr<netpoll::TcpListener> listener =
      netpoll::TcpListener::Listen(absl::StrCat("127.0.0.", random.Between(1, 250), ":0"));
  ExpectCode(listener.status(), absl::StatusCode::kOk);
  {
    const fiber::MutexLock hold(mutex_);
    address_ = listener->local();
  }
  Count(Op::kListener);

  std::vector<fiber::JoinHandle<void>> acceptors;
  const int count = random.Between(1, 3);
  for (int i = 0; i < count; ++i) {
    acceptors.push_back(fiber::Spawn(
        [this, &listener = *listener, seed = random.Next()] { Accept(listener, seed); }));
  }
  const fiber::Deadline end = absl::Milliseconds(random.Between(1, 400));
  while (!is_last_.load(std::memory_order_relaxed) && !end.is_past()) {
    ExpectCode(fiber::Sleep(absl::Milliseconds(5)), absl::StatusCode::kOk);
  }

  {
    const fiber::MutexLock hold(mutex_);
    address_ = netpoll::Address();
    generation_.fetch_add(1, std::memory_order_release);  // order: generation
  }
  if (random.OneIn(2)) {
    for (auto& acceptor : acceptors) acceptor.Cancel();
    Count(Op::kCancelledUnder);
  } else {
    listener->Close();
    Count(Op::kClosedUnder);
  }
  for (auto& acceptor : acceptors) acceptor.Join();
}

void Server::Accept(netpoll::TcpListener& listener, uint64_t seed) {
  Random random(seed);
  for (;;) {
    const fiber::Deadline deadline =
        random.OneIn(2) ? fiber::Deadline::Never() : random.ShortTime();
    absl::StatusOr<netpoll::TcpStream> stream = listener.Accept(deadline);
    if (stream.ok()) {
      Count(Op::kAccept);
      handlers_.Add();
      fiber::Go([this, stream = *std::move(stream)]() mutable {
        Handle(stream);
        stream.Close();
        handlers_.Done();
      });
    } else if (absl::IsDeadlineExceeded(stream.status())) {
      Count(Op::kTimeout);
    } else {
      if (!absl::IsCancelled(stream.status())) {
        ExpectCode(stream.status(), absl::StatusCode::kFailedPrecondition);
      }
      return;
    }
  }
}

void Server::Handle(netpoll::TcpStream& stream) {
  Hello hello;
  if (!netpoll::ReadFull(stream, {reinterpret_cast<char*>(&hello), sizeof hello}).ok()) return;
  if (hello.wish == Hello::kEchoAndReset) return EchoAndReset(stream, hello.bytes);
  std::string all;
  char buffer[8192];
  for (;;) {
    const absl::StatusOr<size_t> n = stream.Read(buffer);
    if (absl::IsOutOfRange(n.status())) break;
    if (IsOver(n.status())) return;
    if (hello.wish == Hello::kEchoAfterEnd) {
      all.append(buffer, *n);
    } else if (IsOver(stream.Write({buffer, *n}).status)) {
      return;
    }
  }
  (void)stream.Write(all);  // the client may be gone
}

void Server::EchoAndReset(netpoll::TcpStream& stream, size_t bytes) {
  char buffer[8192];
  while (bytes > 0) {
    const absl::StatusOr<size_t> n = stream.Read({buffer, std::min(bytes, sizeof buffer)});
    if (IsOver(n.status()) || IsOver(stream.Write({buffer, *n}).status)) return;
    bytes -= *n;
  }
  const linger hard{1, 0};
  Expect(setsockopt(stream.fd(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0, "SO_LINGER");
  Count(Op::kReset);
}

}  // namespace soak
