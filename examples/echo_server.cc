// SPDX-License-Identifier: Apache-2.0
// Sends back what it is sent, a fiber for each connection:
//
//   bazel run -c opt //examples:echo_server -- --listen=127.0.0.1:7000
//   nc 127.0.0.1 7000
//
// Ends on SIGINT and SIGTERM.
#include <signal.h>

#include <atomic>
#include <cstddef>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "fiber/go.h"
#include "netpoll/error.h"
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

// Closes the listener on SIGINT and SIGTERM. A thread that was there before the first connection, so that a server
// without a descriptor left can be stopped.
class Stopper {
 public:
  // REQUIRES: BlockSignals() was called.
  explicit Stopper(netpoll::TcpListener& listener)
      : thread_([this, &listener] {
          const sigset_t signals = StopSignals();
          int which;
          sigwait(&signals, &which);
          was_asked_.store(true, std::memory_order_release);
          listener.Close();
        }) {}
  ~Stopper() {
    pthread_kill(thread_.native_handle(), SIGTERM);  // if there was none
    thread_.join();
  }
  bool was_asked() const { return was_asked_.load(std::memory_order_acquire); }

  // REQUIRES: no other threads yet, they would take the signals.
  static void BlockSignals() {
    const sigset_t signals = StopSignals();
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  }

 private:
  static sigset_t StopSignals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    return signals;
  }

  std::atomic<bool> was_asked_{false};
  std::thread thread_;
};

int Serve(std::string_view address) {
  auto listener = netpoll::TcpListener::Listen(address);
  if (!listener.ok()) {
    std::cerr << "echo_server: " << listener.status() << "\n";
    return netpoll::ErrnoOf(listener.status()) == 0 ? 2 : 1;
  }
  const Stopper stopper(*listener);
  std::cout << "listening on " << listener->local().ToString() << std::endl;

  for (;;) {
    auto stream = listener->Accept();
    if (!stream.ok()) {
      if (stopper.was_asked()) return 0;  // Run() cancels the connections
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
  Stopper::BlockSignals();
  return sched::Run([&] { return Serve(address); });
}
