// SPDX-License-Identifier: Apache-2.0
// What an echo server costs at best: written by hand over epoll, without any runtime.
//
//   epoll_echo echo WORKERS PORT          port 0: a free one; stderr says which
//
// Each thread has a listener of its own on the same port (the kernel spreads the connections), an
// epoll instance and edge-triggered events. A connection is registered once; a read that is shorter
// than the buffer has emptied the socket. So an echo costs one recv, one send, and its share of an
// epoll_wait.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

namespace {

constexpr size_t kBufferBytes = 4096;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "epoll_echo: %s: %s\n", what, std::strerror(errno));
  std::_Exit(1);
}

// Listens beside other sockets of this process. Port 0 is a free one.
int Listen(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) Die("socket");
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Die("bind");
  if (listen(fd, 4096) != 0) Die("listen");
  return fd;
}

uint16_t PortOf(int fd) {
  sockaddr_in address = {};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) Die("getsockname");
  return ntohs(address.sin_port);
}

enum class Transfer { kGoOn, kWouldBlock, kOver };

// What a failed send or recv means.
Transfer AfterError() {
  if (errno == EINTR) return Transfer::kGoOn;
  return errno == EAGAIN ? Transfer::kWouldBlock : Transfer::kOver;
}

class Connection {
 public:
  explicit Connection(int fd) : fd_(fd) {}
  ~Connection() { close(fd_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Echoes all there is. `must_drain`: until the kernel says that there is no more, for an end
  // comes without an event of its own. False: the connection is over.
  bool OnEvent(bool must_drain, char* buffer) {
    for (;;) {
      const Transfer sent = SendUnsent();
      if (sent != Transfer::kGoOn) return sent == Transfer::kWouldBlock;
      const ssize_t n = recv(fd_, buffer, kBufferBytes, 0);
      if (n == 0) return false;
      if (n < 0) {
        const Transfer received = AfterError();
        if (received == Transfer::kGoOn) continue;
        return received == Transfer::kWouldBlock;
      }
      if (!Send({buffer, static_cast<size_t>(n)})) return false;
      if (static_cast<size_t>(n) < kBufferBytes && unsent_.empty() && !must_drain) return true;
    }
  }

 private:
  // Sends what it can and keeps the rest. False: the connection is over.
  bool Send(std::string_view data) {
    const ssize_t n = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
    if (n == static_cast<ssize_t>(data.size())) return true;
    if (n < 0 && AfterError() == Transfer::kOver) return false;
    unsent_ = data.substr(n < 0 ? 0 : static_cast<size_t>(n));
    return true;
  }

  // kGoOn: nothing is left.
  Transfer SendUnsent() {
    while (!unsent_.empty()) {
      const ssize_t n = send(fd_, unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
      if (n > 0) {
        unsent_.erase(0, static_cast<size_t>(n));
      } else if (const Transfer after = AfterError(); after != Transfer::kGoOn) {
        return after;
      }
    }
    return Transfer::kGoOn;
  }

  const int fd_;
  std::string unsent_;  // while it is not empty, nothing is received
};

class Worker {
 public:
  explicit Worker(int listener) : listener_(listener), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    if (epoll_ < 0) Die("epoll_create1");
    epoll_event event = {.events = EPOLLIN, .data = {.ptr = nullptr}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event) != 0) Die("epoll_ctl");
  }

  [[noreturn]] void Run() {
    epoll_event events[256];
    char buffer[kBufferBytes];
    for (;;) {
      const int n = epoll_wait(epoll_, events, 256, -1);
      for (int i = 0; i < n; ++i) {
        auto* connection = static_cast<Connection*>(events[i].data.ptr);
        if (connection == nullptr) {
          AcceptAll();
        } else {
          const bool must_drain = (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
          if (!connection->OnEvent(must_drain, buffer)) delete connection;
        }
      }
    }
  }

 private:
  void AcceptAll() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        if (errno != EAGAIN) std::this_thread::yield();  // out of descriptors: until one is closed
        return;
      }
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      auto* connection = new Connection(fd);
      epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                           .data = {.ptr = connection}};
      if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) delete connection;
    }
  }

  const int listener_;
  const int epoll_;
};

bool Parse(std::string_view text, int least, int most, int* number) {
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, *number);
  return error == std::errc() && end == last && *number >= least && *number <= most;
}

}  // namespace

int main(int argc, char** argv) {
  int workers = 0;
  int port = 0;
  if (argc != 4 || std::string_view(argv[1]) != "echo" || !Parse(argv[2], 1, 1024, &workers) ||
      !Parse(argv[3], 0, 65535, &port)) {
    std::fprintf(stderr, "usage: epoll_echo echo WORKERS PORT\n");
    return 2;
  }
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);

  // main() alone takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  for (int i = 0; i < workers; ++i) {
    const int listener = Listen(static_cast<uint16_t>(port));
    port = PortOf(listener);
    std::thread([listener] { Worker(listener).Run(); }).detach();
  }
  std::fprintf(stderr, "listening on 127.0.0.1:%d\n", port);
  int signal = 0;
  sigwait(&signals, &signal);
  std::_Exit(0);
}
