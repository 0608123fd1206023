// SPDX-License-Identifier: Apache-2.0
// Sends back what it is sent, a fiber for each connection:
//
//   bazel run -c opt //examples:echo_server -- --listen=127.0.0.1:7000
//   nc 127.0.0.1 7000
//
// Ends on SIGINT and SIGTERM.
#include <signal.h>
#include <sys/signalfd.h>

#include <cstddef>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "fiber/go.h"
#include "netpoll/error.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
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

int Serve(std::string_view address, int stop_signals) {
  auto listener = netpoll::TcpListener::Listen(address);
  if (!listener.ok()) {
    std::cerr << "echo_server: " << listener.status() << "\n";
    return netpoll::ErrnoOf(listener.status()) == 0 ? 2 : 1;
  }
  std::cout << "listening on " << listener->local().ToString() << std::endl;

  auto stopper = fiber::Spawn([&] {
    if (netpoll::WaitReadable(stop_signals).ok()) listener->Close();
  });
  for (;;) {
    auto stream = listener->Accept();
    if (!stream.ok()) return 0;  // stopped: Run() cancels the connections
    fiber::Go([stream = *std::move(stream)]() mutable { Echo(std::move(stream)); });
  }
}

// SIGINT and SIGTERM as a descriptor that becomes readable. REQUIRES: no other threads yet, they
// would take the signals.
int StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
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
  const int stop_signals = StopSignals();
  return sched::Run([&] { return Serve(address, stop_signals); });
}
