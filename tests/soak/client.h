// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SOAK_CLIENT_H_
#define WEFT_TESTS_SOAK_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "absl/status/status.h"
#include "netpoll/tcp.h"
#include "tests/soak/server.h"
#include "tests/soak/world.h"
#include "tools/loadgen/pattern.h"

namespace soak {

// Client is one connection to a Server, and one of many things that can happen to it. Every byte
// that comes back is compared with what was sent, and each end is the one that was to come.
//
// Thread safety: one fiber or thread.
class Client {
 public:
  Client(World& world, Server& server, const loadgen::Pattern& pattern, uint64_t seed)
      : world_(world), server_(server), pattern_(pattern), random_(seed) {}

  // By a fiber.
  void Run();

 private:
  // Each returns false once the connection has failed by the end of the server's listener, before
  // it was accepted.
  bool Talk();
  bool EchoInTurn();
  bool EchoAfterEnd();
  bool EchoMuch();
  bool MeetReset();
  bool TimeOut();
  bool BeCancelled();
  bool MoveDeadline();
  bool CloseUnderRead();
  bool FillUp();
  bool GoElsewhere();

  bool SayHello(Hello hello);
  bool Send(size_t bytes);
  // Reads and compares exactly `bytes`.
  bool Receive(size_t bytes);
  // To the end of what was sent, and of the stream.
  bool ReceiveToEnd();
  void Compare(const char* data, size_t size);
  void Reset();
  bool Done(const absl::Status& status, absl::StatusCode expected,
            std::source_location site = std::source_location::current());

  World& world_;
  Server& server_;
  const loadgen::Pattern& pattern_;
  Random random_;
  Server::Place place_ = {};
  netpoll::TcpStream stream_;
  int number_ = 0;
  // Bytes of the pattern so far.
  uint64_t sent_ = 0;
  uint64_t received_ = 0;
};

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_CLIENT_H_
