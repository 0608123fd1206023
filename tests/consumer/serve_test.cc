// SPDX-License-Identifier: Apache-2.0
// A program of somebody else's: one fiber serves a socket, another asks it, main() waits for both.
#include <chrono>
#include <cstddef>
#include <iostream>
#include <string_view>

#include "fiber/go.h"
#include "netpoll/tcp.h"
#include "sched/run.h"

namespace {

constexpr std::string_view kMessage = "over, under, over";

template <class Status>
void Complain(std::string_view what, const Status& status) {
  std::cerr << what << ": " << status << "\n";
}

// Echoes one connection to its end; how many bytes it was.
size_t Serve(netpoll::TcpListener& listener) {
  auto stream = listener.Accept(std::chrono::seconds(30));
  if (!stream.ok()) {
    Complain("accept", stream.status());
    return 0;
  }
  size_t echoed = 0;
  char buffer[4096];
  for (;;) {
    const auto bytes = stream->Read(buffer);
    if (!bytes.ok()) return echoed;
    if (!stream->Write({buffer, *bytes}).ok()) return echoed;
    echoed += *bytes;
  }
}

// True if what came back is what was sent.
bool Ask(const netpoll::Address& server) {
  auto stream = netpoll::TcpStream::Connect(server, std::chrono::seconds(30));
  if (!stream.ok()) {
    Complain("connect", stream.status());
    return false;
  }
  if (const auto written = stream->Write(kMessage); !written.ok()) {
    Complain("write", written.status);
    return false;
  }
  char answer[kMessage.size()];
  if (const auto read = netpoll::ReadFull(*stream, answer, std::chrono::seconds(30)); !read.ok()) {
    Complain("read", read.status);
    return false;
  }
  return std::string_view(answer, sizeof(answer)) == kMessage;
}

}  // namespace

int main() {
  return sched::Run([]() -> int {
    auto listener = netpoll::TcpListener::Listen("127.0.0.1:0");
    if (!listener.ok()) {
      Complain("listen", listener.status());
      return 1;
    }
    auto server = fiber::Spawn([&] { return Serve(*listener); });
    auto client = fiber::Spawn([address = listener->local()] { return Ask(address); });
    const bool answered = client.Join();
    const size_t echoed = server.Join();
    std::cout << "echoed " << echoed << " bytes\n";
    return answered && echoed == kMessage.size() ? 0 : 1;
  });
}
