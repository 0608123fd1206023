// SPDX-License-Identifier: Apache-2.0
//
// Edges that come, and edges that do not: after which reads netpoll may take a short one to mean that there is no more.
//
// Each case reads less than it asked for while there is more, and finds that the kernel brings no second edge: a stream that
// went by the short read would wait for ever for what is there. Should a kernel bring one, nothing breaks.
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/functional/function_ref.h"
#include "fiber/go.h"
#include "gtest/gtest.h"
#include "netpoll/internal/backend.h"
#include "netpoll/internal/backend_epoll.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/poller.h"
#include "netpoll/wait.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using netpoll::WaitReadable;
using netpoll::internal::Backend;
using netpoll::internal::Descriptor;
using netpoll::internal::Direction;
using netpoll::internal::EpollBackend;
using netpoll::internal::Event;
using netpoll::internal::Poller;

// Two connected sockets of the kernel's.
struct Sockets {
  int read_fd;
  RawSocket peer;
};

Sockets TcpSockets() {
  const RawSocket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(listener.fd(), name, size), 0);
  EXPECT_EQ(listen(listener.fd(), 1), 0);
  EXPECT_EQ(getsockname(listener.fd(), name, &size), 0);
  RawSocket peer(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(peer.fd(), name, size), 0);
  return {accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK), std::move(peer)};
}

Sockets UdpSockets() {
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(fd, name, size), 0);
  EXPECT_EQ(getsockname(fd, name, &size), 0);
  RawSocket peer(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(connect(peer.fd(), name, size), 0);
  return {fd, std::move(peer)};
}

// The two sides of a terminal; none where there are no terminals.
std::optional<Sockets> Terminal() {
  RawSocket master(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (master.fd() < 0 || grantpt(master.fd()) != 0 || unlockpt(master.fd()) != 0) return std::nullopt;
  const int fd = open(ptsname(master.fd()), O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return std::nullopt;
  return Sockets{fd, std::move(master)};
}

// Until the kernel has brought over what was sent: all of it.
void AwaitAcknowledged(const RawSocket& peer) {
  int left = 1;
  while (ioctl(peer.fd(), SIOCOUTQ, &left) == 0 && left > 0) sched_yield();
}
void AwaitState(int fd, short events) {
  pollfd polled{fd, events, 0};
  EXPECT_EQ(poll(&polled, 1, -1), 1);
}
void AwaitInTerminal(int fd, int bytes) {
  int there = 0;
  while (ioctl(fd, FIONREAD, &there) == 0 && there < bytes) sched_yield();
}
uint32_t MemoryOfQueue(int fd) {
  uint32_t memory[16] = {};
  socklen_t size = sizeof memory;
  EXPECT_EQ(getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size), 0);
  return memory[0];
}
void SendTwoDatagrams(Sockets& sockets) {
  sockets.peer.Send("one");
  AwaitState(sockets.read_fd, POLLIN);
  const uint32_t one = MemoryOfQueue(sockets.read_fd);
  sockets.peer.Send("two");
  while (MemoryOfQueue(sockets.read_fd) < 2 * one) sched_yield();
}

// A poller without a runtime; the test polls, and reads as a stream would.
class EdgeTest : public testing::Test {
 protected:
  EdgeTest() : poller_(*Poller::Create().value()) {}
  ~EdgeTest() override {
    if (descriptor_ != nullptr) descriptor_->Drop();
    poller_.Stop();
    EXPECT_EQ(OpenDescriptors(), descriptors_);
  }

  void Watch(int fd, bool is_tcp) {
    auto made = Descriptor::Create(poller_, fd, is_tcp);
    ASSERT_TRUE(made.ok()) << made.status();
    descriptor_ = *made;
    poller_.Poll(0);  // an edge comes with the registration: what it can be written to
    descriptor_->flow(Direction::kRead).slot.ClearReady();
  }
  bool HasNews() {
    poller_.Poll(0);
    return descriptor_->flow(Direction::kRead).slot.is_ready();
  }
  // What one system call finds; "" is the end, an error its name.
  std::string ReadOnce() {
    descriptor_->flow(Direction::kRead).slot.ClearReady();
    char buffer[64];
    const ssize_t n = read(descriptor_->fd(), buffer, sizeof buffer);
    return n < 0 ? strerrorname_np(errno) : std::string(buffer, static_cast<size_t>(n));
  }
  // Of what has come, `first` is read, which is less than was asked for; `second` is there all the same.
  void ExpectMoreWithoutASecondEdge(std::string_view first, std::string_view second) {
    EXPECT_TRUE(HasNews());
    EXPECT_EQ(ReadOnce(), first);
    EXPECT_FALSE(descriptor_->short_read_drains()) << "whoever reads next would wait for ever";
    EXPECT_FALSE(HasNews()) << "a second edge: no need to read on";
    EXPECT_EQ(ReadOnce(), second);
  }

  const int descriptors_ = OpenDescriptors();
  Poller& poller_;
  Descriptor* descriptor_ = nullptr;
};

// What makes two system calls of an echo do: if it were not so, no read of a stream could be followed by a wait.
TEST_F(EdgeTest, WhatComesAfterAShortReadFromTcpIsAnEdgeOfItsOwn) {
  Sockets sockets = TcpSockets();
  Watch(sockets.read_fd, true);
  for (int i = 0; i < 100; ++i) {
    sockets.peer.Send("abc");
    AwaitState(sockets.read_fd, POLLIN);
    EXPECT_TRUE(HasNews());
    EXPECT_EQ(ReadOnce(), "abc");
    ASSERT_TRUE(descriptor_->short_read_drains());
    ASSERT_FALSE(HasNews());
  }
  sockets.peer.Close();
  AwaitState(sockets.read_fd, POLLRDHUP);
  EXPECT_TRUE(HasNews());
  EXPECT_EQ(ReadOnce(), "");
}

// Else a reader whose peer said its last words and left would never see the end.
TEST_F(EdgeTest, NoSecondOneForTheEndBehindData) {
  Sockets sockets = TcpSockets();
  Watch(sockets.read_fd, true);
  sockets.peer.Send("last words");
  sockets.peer.Close();
  AwaitState(sockets.read_fd, POLLRDHUP);
  ExpectMoreWithoutASecondEdge("last words", "");
}

// Else a reader whose connection broke would hold it for ever.
TEST_F(EdgeTest, NoSecondOneForAResetBehindData) {
  Sockets sockets = TcpSockets();
  Watch(sockets.read_fd, true);
  sockets.peer.Send("last words");
  AwaitState(sockets.read_fd, POLLIN);  // a reset drops what is on its way
  sockets.peer.Reset();
  AwaitState(sockets.read_fd, POLLRDHUP);
  ExpectMoreWithoutASecondEdge("last words", "ECONNRESET");
}

// Else anybody could stop a server's reader with one urgent byte.
TEST_F(EdgeTest, NoSecondOneForDataBehindAnUrgentMark) {
  Sockets sockets = TcpSockets();
  Watch(sockets.read_fd, true);
  sockets.peer.Send("abc");
  sockets.peer.Send("!", MSG_OOB);
  sockets.peer.Send("def");
  AwaitAcknowledged(sockets.peer);
  ExpectMoreWithoutASecondEdge("abc", "def");
}

// Else whoever passes descriptors over a unix socket would wait for what came with the next ones.
TEST_F(EdgeTest, NoSecondOneForDataBehindDescriptors) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
  RawSocket peer(fds[1]);
  Watch(fds[0], false);
  SendWithDescriptor(peer, 'a');
  peer.Send("b");
  ExpectMoreWithoutASecondEdge("a", "b");
}

// Else a terminal's second line would wait for the third.
TEST_F(EdgeTest, NoSecondOneForTheSecondLineOfATerminal) {
  std::optional<Sockets> terminal = Terminal();
  if (!terminal.has_value()) GTEST_SKIP() << "no terminals here";
  Watch(terminal->read_fd, false);
  ASSERT_EQ(write(terminal->peer.fd(), "one\ntwo\n", 8), 8);
  AwaitInTerminal(terminal->read_fd, 8);
  ExpectMoreWithoutASecondEdge("one\n", "two\n");
}

// Else every second datagram would wait for the third.
TEST_F(EdgeTest, NoSecondOneForTheSecondDatagram) {
  Sockets sockets = UdpSockets();
  Watch(sockets.read_fd, false);
  SendTwoDatagrams(sockets);
  ExpectMoreWithoutASecondEdge("one", "two");
}

// How many descriptors the process's one epoll instance watches.
int CountWatched() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    if (std::filesystem::read_symlink(entry.path(), error) != "anon_inode:[eventpoll]") continue;
    std::ifstream info("/proc/self/fdinfo/" + entry.path().filename().string());
    int count = 0;
    for (std::string line; std::getline(info, line);) count += line.starts_with("tfd:");
    return count;
  }
  return -1;
}

// A watch is the description's, not the number's: left behind with a duplicate alive, it would bring events, and keep one of
// the watches that a user has, for as long as the duplicate lives; nobody could remove it.
TEST_F(EdgeTest, NoneOfADuplicateAfterTheClose) {
  Sockets sockets = TcpSockets();
  Watch(sockets.read_fd, true);
  EXPECT_EQ(CountWatched(), 2) << "its own, and what interrupts it";
  RawSocket duplicate(dup(sockets.read_fd));
  descriptor_->Close();
  EXPECT_EQ(CountWatched(), 1);
  sockets.peer.Send("x");
  EXPECT_EQ(duplicate.Receive(1), "x");
}

// The fact behind it.
TEST(EpollTest, GoesOnTellingOfADescriptorThatIsClosedWhileADuplicateLives) {
  Sockets sockets = TcpSockets();
  {
    std::unique_ptr<Backend> backend = EpollBackend::Create().value();
    ASSERT_TRUE(backend->Add(sockets.read_fd, 8).ok());
    RawSocket duplicate(dup(sockets.read_fd));
    close(sockets.read_fd);
    Event event;
    bool was_kicked;
    EXPECT_EQ(backend->Wait(0, &event, 1, &was_kicked), 1);  // of the registration
    sockets.peer.Send("x");
    AwaitState(duplicate.fd(), POLLIN);
    EXPECT_EQ(backend->Wait(0, &event, 1, &was_kicked), 1);
    EXPECT_EQ(event.tag, 8u);
  }
}

class LevelTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(LevelTest);

// Reads `first`, waits, and reads `second`.
void ExpectBoth(int fd, absl::FunctionRef<void()> send, std::string_view first, std::string_view second) {
  auto reader = fiber::Spawn([&] {
    std::string all;
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(WaitReadable(fd).ok());
      char buffer[64];
      const ssize_t n = read(fd, buffer, sizeof buffer);
      all.append(buffer, n < 0 ? 0 : static_cast<size_t>(n)).append("|");
    }
    return all;
  });
  WaitUntilParked(reader);
  send();
  EXPECT_EQ(reader.Join(), std::string(first) + "|" + std::string(second) + "|");
}

// One edge, two waits: the second is for what is there, and would not end.
TEST_P(LevelTest, AWaitSeesTheSecondLineAndTheSecondDatagram) {
  Run([] {
    Sockets sockets = UdpSockets();
    ExpectBoth(
        sockets.read_fd,
        [&] {
          // Without a look at what has arrived: the reader may run on another worker by now.
          sockets.peer.Send("one");
          sockets.peer.Send("two");
        },
        "one", "two");
    close(sockets.read_fd);
    std::optional<Sockets> terminal = Terminal();
    if (!terminal.has_value()) GTEST_SKIP() << "no terminals here";
    ExpectBoth(
        terminal->read_fd, [&] { ASSERT_EQ(write(terminal->peer.fd(), "one\ntwo\n", 8), 8); }, "one\n", "two\n");
    close(terminal->read_fd);
  });
}

}  // namespace
}  // namespace netpoll_test
