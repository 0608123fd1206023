// SPDX-License-Identifier: Apache-2.0
//
// Listening, accepting and connecting.
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <time.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/tcp.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using netpoll::Address;
using netpoll::ErrnoOf;
using netpoll::ReadFull;
using netpoll::TcpListener;
using netpoll::TcpStream;

class ListenerTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(ListenerTest);

// An address nobody listens on, kept from being given to anybody else.
class UnusedAddress {
 public:
  UnusedAddress() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const Address any = Address::Loopback(0);
    EXPECT_EQ(bind(fd_.fd(), any.data(), any.size()), 0);
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    EXPECT_EQ(getsockname(fd_.fd(), reinterpret_cast<sockaddr*>(&name), &size), 0);
    address_ = *Address::FromSockaddr(reinterpret_cast<sockaddr*>(&name), size);
  }
  const Address& address() const { return address_; }

 private:
  RawSocket fd_;
  Address address_;
};

TEST_P(ListenerTest, ConnectingToNobodyIsUnavailable) {
  Run([] {
    UnusedAddress unused;
    for (int i = 0; i < 100; ++i) {
      const absl::Status status = TcpStream::Connect(unused.address()).status();
      ASSERT_TRUE(absl::IsUnavailable(status)) << status;
      ASSERT_EQ(ErrnoOf(status), ECONNREFUSED);
      ASSERT_NE(std::string(status.message()).find(unused.address().ToString()), std::string::npos);
    }
  });
}

TEST_P(ListenerTest, WhatIsNoAddressIsInvalid) {
  Run([] {
    const absl::Status name = TcpListener::Listen("localhost:80").status();
    EXPECT_TRUE(absl::IsInvalidArgument(name)) << name;
    EXPECT_NE(std::string(name.message()).find("netpoll::Resolve"), std::string::npos);
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Connect("").status()));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Connect(Address()).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpListener::Listen(Address()).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpListener::Listen("nonsense").status()));
    // No interface has that number; a host without IPv6 says so earlier.
    EXPECT_TRUE(absl::IsInvalidArgument(TcpListener::Listen("[fe80::1%2147483647]:0").status()));
  });
}

TEST_P(ListenerTest, AnAddressInUseAndAForeignOneAreToldApart) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    const absl::Status status = TcpListener::Listen(listener.local()).status();
    EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
    EXPECT_EQ(ErrnoOf(status), EADDRINUSE);
    const absl::Status foreign = TcpListener::Listen("192.0.2.1:0").status();
    EXPECT_TRUE(absl::IsInvalidArgument(foreign)) << foreign;
    EXPECT_EQ(ErrnoOf(foreign), EADDRNOTAVAIL);
  });
}

TEST_P(ListenerTest, ListenersThatShareAnAddressShareItsConnections) {
  Run([] {
    TcpListener first = ListenOnLoopback({.reuse_port = true});
    auto second = TcpListener::Listen(first.local(), {.reuse_port = true});
    ASSERT_TRUE(second.ok()) << second.status();
    std::vector<RawSocket> peers;
    for (int i = 0; i < 64; ++i) peers.push_back(RawSocket::ConnectTo(first.local()));
    int accepted[2] = {};
    while (first.Accept(absl::Milliseconds(20)).ok()) ++accepted[0];
    while (second->Accept(absl::Milliseconds(20)).ok()) ++accepted[1];
    EXPECT_EQ(accepted[0] + accepted[1], 64);
    EXPECT_GT(accepted[0], 0);
    EXPECT_GT(accepted[1], 0);
  });
}

TEST_P(ListenerTest, ManyAcceptorsTakeEachConnectionOnce) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    constexpr int kAcceptors = 8;
    constexpr int kConnections = 200;
    int accepted[kAcceptors] = {};
    std::vector<fiber::JoinHandle<void>> acceptors;
    for (int i = 0; i < kAcceptors; ++i) {
      acceptors.push_back(fiber::Spawn([&, i] {
        for (;;) {
          auto stream = listener.Accept();
          if (!stream.ok()) {
            EXPECT_TRUE(absl::IsFailedPrecondition(stream.status())) << stream.status();
            return;
          }
          ++accepted[i];
          EXPECT_TRUE(stream->Write("x").ok());
        }
      }));
    }
    for (auto& acceptor : acceptors) WaitUntilParked(acceptor);
    std::vector<RawSocket> peers;  // several come in one edge
    for (int i = 0; i < kConnections; ++i) peers.push_back(RawSocket::ConnectTo(listener.local()));
    for (RawSocket& peer : peers) {
      auto stream = TcpStream::Adopt(dup(peer.fd()));
      ASSERT_TRUE(stream.ok());
      char byte[1];
      ASSERT_TRUE(stream->Read(byte).ok());
    }
    listener.Close();
    for (auto& acceptor : acceptors) acceptor.Join();
    int total = 0;
    for (const int count : accepted) total += count;
    EXPECT_EQ(total, kConnections);
  });
}

// Nobody of those who wait holds the descriptor open: when Close returns, the address is free.
TEST_P(ListenerTest, CloseWakesAcceptorsAndTheAddressIsFreeAtOnce) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    for (int round = 0; round < 20; ++round) {
      const Address address = listener.local();
      std::vector<fiber::JoinHandle<absl::Status>> acceptors;
      for (int i = 0; i < 4; ++i) {
        acceptors.push_back(fiber::Spawn([&] { return listener.Accept().status(); }));
      }
      for (auto& acceptor : acceptors) WaitUntilParked(acceptor);
      listener.Close();
      for (auto& acceptor : acceptors) {
        EXPECT_TRUE(absl::IsFailedPrecondition(acceptor.Join()));
      }
      auto again = TcpListener::Listen(address);
      ASSERT_TRUE(again.ok()) << again.status();
      listener = *std::move(again);
    }
    listener.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(listener.Accept().status()));
    EXPECT_EQ(listener.fd(), -1);
    EXPECT_EQ(listener.local().size(), 0u);
    TcpListener moved_from;
    EXPECT_TRUE(absl::IsFailedPrecondition(moved_from.Accept().status()));
  });
}

TEST_P(ListenerTest, ConnectionsThatWereResetBeforeAcceptDoNoHarm) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    for (int i = 0; i < 20; ++i) RawSocket::ConnectTo(listener.local()).Reset();
    RawSocket good = RawSocket::ConnectTo(listener.local());
    good.Send("good");
    // Linux hands them out all the same, and says so at the first read.
    for (;;) {
      auto stream = listener.Accept(absl::Seconds(10));
      ASSERT_TRUE(stream.ok()) << stream.status();
      char buffer[4];
      if (ReadFull(*stream, buffer).ok()) break;
    }
  });
}

TEST_P(ListenerTest, Ipv6) {
  Run([] {
    auto listener = TcpListener::Listen("[::1]:0");
    if (!listener.ok()) GTEST_SKIP() << "no IPv6 here: " << listener.status();
    auto client = TcpStream::Connect(listener->local());
    ASSERT_TRUE(client.ok()) << client.status();
    auto server = listener->Accept();
    ASSERT_TRUE(server.ok()) << server.status();
    ASSERT_TRUE(client->Write("six").ok());
    char got[3];
    EXPECT_TRUE(ReadFull(*server, got).ok());
    EXPECT_EQ(server->local().family(), AF_INET6);
    // Takes IPv4 connections too, unless told not to.
    auto dual = TcpListener::Listen("[::]:0");
    ASSERT_TRUE(dual.ok()) << dual.status();
    EXPECT_TRUE(TcpStream::Connect(Address::Loopback(dual->local().port())).ok());
    auto only = TcpListener::Listen("[::]:0", {.ipv6_only = true});
    ASSERT_TRUE(only.ok()) << only.status();
    EXPECT_TRUE(absl::IsUnavailable(TcpStream::Connect(Address::Loopback(only->local().port())).status()));
  });
}

TEST_P(ListenerTest, AStreamOfAnyKindFromTheInterface) {
  Run([] {
    auto listener = std::make_unique<TcpListener>(ListenOnLoopback());
    RawSocket peer = RawSocket::ConnectTo(listener->local());
    netpoll::Listener& interface = *listener;
    auto stream = interface.AcceptStream(absl::Seconds(10));
    ASSERT_TRUE(stream.ok()) << stream.status();
    ASSERT_TRUE((*stream)->Write("hello").ok());
    EXPECT_EQ(peer.Receive(5), "hello");
    interface.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(interface.AcceptStream().status()));
  });
}

// Descriptors run out. -----------------------------------------------------------------------------------------------

class DescriptorLimit {
 public:
  // Leaves room for `spare` more descriptors.
  explicit DescriptorLimit(int spare) {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    rlimit lowered = before_;
    const RawSocket probe(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
    lowered.rlim_cur = static_cast<rlim_t>(probe.fd() + spare);
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &lowered), 0);
  }
  ~DescriptorLimit() { EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before_), 0); }

 private:
  rlimit before_;
};

absl::Duration ProcessCpu() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return absl::DurationFromTimespec(now);
}

TEST_P(ListenerTest, WithoutDescriptorsNobodyConnectsOrListens) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    DescriptorLimit limit(0);
    // The first takes one to look for the interface.
    for (const std::string& target : {std::string("[fe80::1%lo]:80"), listener.local().ToString()}) {
      const absl::Status connecting = TcpStream::Connect(target).status();
      EXPECT_TRUE(absl::IsResourceExhausted(connecting)) << connecting;
      const absl::Status listening = TcpListener::Listen(target).status();
      EXPECT_TRUE(absl::IsResourceExhausted(listening)) << listening;
    }
  });
}

// In Go, Accept fails here, and its caller sleeps or spins.
TEST_P(ListenerTest, AcceptWaitsForDescriptorsAndLosesNothing) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    constexpr int kConnections = 20;
    std::vector<RawSocket> peers;
    for (int i = 0; i < kConnections; ++i) {
      peers.emplace_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    }
    fiber::JoinHandle<std::vector<std::unique_ptr<TcpStream>>> acceptor;
    const absl::Duration cpu = ProcessCpu();
    {
      DescriptorLimit limit(3);
      acceptor = fiber::Spawn([&] {
        std::vector<std::unique_ptr<TcpStream>> streams;
        while (streams.size() < kConnections) {
          auto stream = listener.Accept();
          EXPECT_TRUE(stream.ok()) << stream.status();
          if (!stream.ok()) break;
          streams.push_back(std::make_unique<TcpStream>(*std::move(stream)));
        }
        return streams;
      });
      const Address address = listener.local();
      for (size_t i = 0; i < peers.size(); ++i) {
        ASSERT_EQ(connect(peers[i].fd(), address.data(), address.size()), 0);
        peers[i].Send(std::string(1, static_cast<char>('a' + i)));
      }
      ASSERT_TRUE(fiber::Sleep(absl::Seconds(1)).ok());
      EXPECT_FALSE(acceptor.is_done());
      // Others that need one fail at once, and say what is missing.
      const absl::Status status = TcpStream::Connect(address).status();
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_NE(std::string(status.message()).find("RLIMIT_NOFILE"), std::string::npos) << status;
      EXPECT_EQ(ErrnoOf(status), EMFILE);
      // Waiting for descriptors has a deadline like all waiting.
      EXPECT_TRUE(absl::IsDeadlineExceeded(listener.Accept(absl::Milliseconds(5)).status()));
    }
    EXPECT_LT(ProcessCpu() - cpu, absl::Milliseconds(300)) << "it spins";
    std::vector<std::unique_ptr<TcpStream>> streams = acceptor.Join();
    ASSERT_EQ(streams.size(), static_cast<size_t>(kConnections));
    std::string got;
    for (auto& stream : streams) {
      char byte[1];
      ASSERT_TRUE(ReadFull(*stream, byte).ok());
      got += byte[0];
    }
    EXPECT_EQ(got, "abcdefghijklmnopqrst") << "in order of arrival, each once";
  });
}

TEST_P(ListenerTest, WhoeverWaitsForDescriptorsIsWokenByCloseCancelAndDeadline) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    RawSocket peer(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const Address address = listener.local();
    DescriptorLimit limit(0);
    ASSERT_EQ(connect(peer.fd(), address.data(), address.size()), 0);
    EXPECT_TRUE(absl::IsDeadlineExceeded(listener.Accept(absl::Milliseconds(5)).status()));
    auto cancelled = fiber::Spawn([&] { return listener.Accept().status(); });
    WaitUntilParked(cancelled);
    cancelled.Cancel();
    EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
    auto closed = fiber::Spawn([&] { return listener.Accept().status(); });
    WaitUntilParked(closed);
    listener.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(closed.Join()));
  });
}

}  // namespace
}  // namespace netpoll_test
