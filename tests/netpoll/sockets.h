// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_NETPOLL_SOCKETS_H_
#define WEFT_TESTS_NETPOLL_SOCKETS_H_

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "fiber/internal/thread_pool.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/tcp.h"
#include "sched/run.h"
#include "tests/leaks/census.h"
#include "tests/parked.h"

namespace netpoll_test {

using tests::WaitUntilParked;

// How many descriptors this process has open.
inline int OpenDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  int count = -1;  // the directory's own
  while (const dirent* entry = readdir(directory)) count += entry->d_name[0] != '.';
  closedir(directory);
  return count;
}

// Whether a mapping holds descriptor records.
inline bool IsSlabOfDescriptors(const void* begin, const void* end) {
  bool is_one = false;
  netpoll::internal::DescriptorSlab::ForEach(
      [&](netpoll::internal::Descriptor& record) { is_one |= begin <= &record && &record < end; });
  return is_one;
}

// A test that leaves descriptor records behind fails.
inline const bool kAreDescriptorRecordsCounted = tests::AddToCensus({
    .what = "descriptor record",
    .count = &netpoll::internal::DescriptorSlab::CountInUse,
    .keeps = &IsSlabOfDescriptors,
});

// Tests that run on several numbers of workers.
class SocketTest : public testing::TestWithParam<int> {
 protected:
  template <class F>
  void Run(F body) {
    sched::Run({.workers = GetParam()}, std::move(body));
  }
};

#define INSTANTIATE_SOCKET_TEST(Suite)                                     \
  INSTANTIATE_TEST_SUITE_P(Workers, Suite, testing::Values(1, 2, 4),       \
                           [](const testing::TestParamInfo<int>& info) {   \
                             return "W" + std::to_string(info.param);      \
                           })

// A blocking socket of the test's own, for what a netpoll stream does not do.
class RawSocket {
 public:
  RawSocket() = default;
  explicit RawSocket(int fd) : fd_(fd) {}
  RawSocket(RawSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  RawSocket& operator=(RawSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~RawSocket() { Close(); }

  // Connects to a TCP address; a handshake on the loopback needs nobody to accept.
  static RawSocket ConnectTo(const netpoll::Address& address) {
    RawSocket raw(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(raw.fd_, address.data(), address.size()), 0);
    return raw;
  }

  int fd() const { return fd_; }
  void Send(std::string_view data, int flags = 0) {
    EXPECT_EQ(send(fd_, data.data(), data.size(), flags | MSG_NOSIGNAL),
              static_cast<ssize_t>(data.size()));
  }
  std::string Receive(size_t size) {
    std::string data(size, '\0');
    const ssize_t n = recv(fd_, data.data(), size, MSG_WAITALL);
    data.resize(n < 0 ? 0 : static_cast<size_t>(n));
    return data;
  }
  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }
  // The peer gets a reset instead of the end.
  void Reset() {
    const linger hard{1, 0};
    EXPECT_EQ(setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard), 0);
    Close();
  }

 private:
  int fd_ = -1;
};

// A byte, and a descriptor along with it.
inline void SendWithDescriptor(const RawSocket& peer, char byte) {
  iovec piece{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int sent_along = STDERR_FILENO;
  memcpy(CMSG_DATA(header), &sent_along, sizeof sent_along);
  EXPECT_EQ(sendmsg(peer.fd(), &message, 0), 1);
}

// Until no call of BlockingDetached() is under way, those that nobody waits for any more included.
inline void AwaitDetachedCalls() {
  using fiber::internal::ThreadPool;
  while (ThreadPool::Get().threads() > 0) {
    ThreadPool::Get().EndIdle();
    fiber::Yield();
  }
}

inline netpoll::TcpListener ListenOnLoopback(netpoll::ListenOptions options = {}) {
  auto listener = netpoll::TcpListener::Listen("127.0.0.1:0", options);
  EXPECT_TRUE(listener.ok()) << listener.status();
  return *std::move(listener);
}

// Two connected streams.
struct StreamPair {
  netpoll::TcpStream client;
  netpoll::TcpStream server;
};

inline StreamPair Connected() {
  netpoll::TcpListener listener = ListenOnLoopback();
  auto client = netpoll::TcpStream::Connect(listener.local());
  EXPECT_TRUE(client.ok()) << client.status();
  auto server = listener.Accept();
  EXPECT_TRUE(server.ok()) << server.status();
  return {*std::move(client), *std::move(server)};
}

// A stream and the raw socket at its other end.
struct RawPair {
  netpoll::TcpStream stream;
  RawSocket peer;
};

inline RawPair ConnectedToRaw() {
  netpoll::TcpListener listener = ListenOnLoopback();
  RawSocket peer = RawSocket::ConnectTo(listener.local());
  auto stream = listener.Accept();
  EXPECT_TRUE(stream.ok()) << stream.status();
  return {*std::move(stream), std::move(peer)};
}

// More than the sockets of two peers take in without a reader.
inline std::string_view MoreThanFits() {
  static const std::string* const data = new std::string(64 << 20, 'x');
  return *data;
}

// Reads to the end and returns how much there was.
inline size_t Drain(netpoll::Stream& stream) {
  std::string buffer(16 << 10, '\0');
  size_t total = 0;
  for (;;) {
    const auto n = stream.Read(buffer);
    if (!n.ok()) return total;
    total += *n;
  }
}

}  // namespace netpoll_test

#endif  // WEFT_TESTS_NETPOLL_SOCKETS_H_
