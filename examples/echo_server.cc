// SPDX-License-Identifier: Apache-2.0
// Sends back what it is sent, a fiber for each connection:
//
//   bazel run -c opt //examples:echo_server -- --listen=127.0.0.1:7000
//   nc 127.0.0.1 7000
//
// Ends on SIGINT and SIGTERM.
#include <signal.h>

#include <cstddef>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/go.h"
#include "netpoll/error.h"
#include "netpoll/signals.h"
#include "netpoll/tcp.h"
#include "sched/run.h"

namespace {

void Echo(netpoll::TcpStream stream) {
  char buffer[4096];
  for (;;) {
    absl::StatusOr<size_t> n = stream.Read(buffer);
    if (!n.ok()) return;  // the end, a reset, a cancel
    if (!stream.Write({buffer, *n}).ok()) return;
  }
}

int Serve(std::string_view address) {
  auto listener = netpoll::TcpListener::Listen(address);
  if (!listener.ok()) {
    std::cerr << "echo_server: " << listener.status() << "\n";
    return netpoll::ErrnoOf(listener.status()) == 0 ? 2 : 1;
  }
  netpoll::Signals stop({SIGINT, SIGTERM});
  const auto stopper = fiber::Spawn([&] {
    if (stop.received().Receive().ok()) listener->Close();
  });
  std::cout << "listening on " << listener->local().ToString() << std::endl;

  for (;;) {
    auto stream = listener->Accept();
    if (!stream.ok()) {
      if (absl::IsFailedPrecondition(stream.status())) return 0;  // closed; Run() cancels the connections
      std::cerr << "echo_server: " << stream.status() << "\n";
      return 1;
    }
    fiber::Go([stream = *std::move(stream)]() mutable { Echo(std::move(stream)); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view address = "127.0.0.1:7000";
  constexpr std::string_view kListen = "--listen=";
  for (int i = 1; i < argc; ++i) {
    std::string_view argument = argv[i];
    if (!argument.starts_with(kListen)) {
      std::cerr << "usage: echo_server [--listen=ADDRESS:PORT]    port 0: a free one\n";
      return 2;
    }
    address = argument.substr(kListen.size());
  }
  return sched::Run([&] { return Serve(address); });
}
