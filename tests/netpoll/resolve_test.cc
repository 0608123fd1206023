// SPDX-License-Identifier: Apache-2.0
#include "netpoll/resolve.h"

#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/blocking_detached.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/system_calls.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/address.h"
#include "netpoll/error.h"
#include "netpoll/internal/connect_to_any.h"
#include "netpoll/internal/host_name.h"
#include "netpoll/tcp.h"
#include "sched/runtime.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using fiber::internal::kKernel;
using fiber::internal::system_calls;
using netpoll::Address;
using netpoll::ErrnoOf;
using netpoll::Resolve;
using netpoll::TcpStream;

class ResolveTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(ResolveTest);

// NameServer answers every question with these addresses, in this order, while it exists; once it is told to, if it is slow.
class NameServer {
 public:
  explicit NameServer(std::vector<std::string> hosts, bool is_slow = false) {
    hosts_ = std::move(hosts);
    is_slow_ = is_slow;
    answer_ = new fiber::Event;
    questions.store(0);
    static const fiber::internal::SystemCalls table = [] {
      fiber::internal::SystemCalls with_us = kKernel;
      with_us.getaddrinfo = &NameServer::Ask;
      return with_us;
    }();
    system_calls.store(&table, std::memory_order_release);  // order: system-calls
  }
  // Waits for questions that nobody waits for any more.
  ~NameServer() {
    Answer();
    AwaitDetachedCalls();
    system_calls.store(&kKernel, std::memory_order_release);  // order: system-calls
    delete answer_;
  }
  NameServer(const NameServer&) = delete;
  NameServer& operator=(const NameServer&) = delete;

  void Answer() { answer_->Set(); }

  static inline std::atomic<int> questions{0};

 private:
  static int Ask(const char*, const char* service, const addrinfo* hints, addrinfo** found) {
    questions.fetch_add(1);
    if (is_slow_) {
      EXPECT_TRUE(answer_->Wait().ok());
    }
    *found = nullptr;
    addrinfo** end = found;
    for (const std::string& host : hosts_) {
      addrinfo numeric = *hints;
      numeric.ai_flags |= AI_NUMERICHOST;
      EXPECT_EQ(getaddrinfo(host.c_str(), service, &numeric, end), 0) << host;
      while (*end != nullptr) end = &(*end)->ai_next;
    }
    return *found == nullptr ? EAI_NONAME : 0;
  }

  static inline std::vector<std::string> hosts_;
  static inline bool is_slow_ = false;
  static inline fiber::Event* answer_ = nullptr;
};

std::string Texts(const absl::StatusOr<std::vector<Address>>& found) {
  if (!found.ok()) return found.status().ToString();
  std::string texts;
  for (const Address& address : *found) absl::StrAppend(&texts, address.ToString(), " ");
  return texts;
}

TEST_P(ResolveTest, LocalhostIsTheLoopback) {
  Run([] {
    auto found = Resolve("localhost", "80");
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_TRUE(absl::StrContains(Texts(found), "127.0.0.1:80 ")) << Texts(found);
  });
}

TEST_P(ResolveTest, AddressesAreThemselves) {
  Run([] {
    NameServer nobody({});
    EXPECT_EQ(Texts(Resolve("127.0.0.1", "80")), "127.0.0.1:80 ");
    EXPECT_EQ(Texts(Resolve("::1", "443")), "[::1]:443 ");
    EXPECT_EQ(NameServer::questions.load(), 0);
  });
  EXPECT_EQ(Texts(Resolve("127.0.0.1", "http")), "127.0.0.1:80 ") << "on a plain thread";
}

TEST_P(ResolveTest, WhatIsNoNameIsInvalidAndNobodyIsAsked) {
  Run([] {
    NameServer nobody({});
    for (const char* host : {"", ".", "-x", "a b", "a\nb", "127.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "010.0.0.1",
                             "[::1]", "a:b", "x.0177", "*"}) {
      EXPECT_TRUE(absl::IsInvalidArgument(Resolve(host, "80").status())) << host;
    }
    for (const char* service : {"", "65536", "080", "-1", "80 ", "no/service"}) {
      EXPECT_TRUE(absl::IsInvalidArgument(Resolve("localhost", service).status())) << service;
    }
    EXPECT_EQ(NameServer::questions.load(), 0);
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Connect("0x7f.1:80").status()));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Connect("localhost:99999").status()));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Connect("localhost").status()));
  });
}

TEST_P(ResolveTest, ErrorsByTheirMeaning) {
  Run([] {
    const auto ask_under = [](int error) {
      const Faults faults({Call::getaddrinfo, error, 1}, {Call::kCount});
      return Resolve("host.invalid", "80").status();
    };
    EXPECT_TRUE(absl::IsNotFound(ask_under(EAI_NONAME)));
    EXPECT_TRUE(absl::IsNotFound(ask_under(EAI_NODATA)));
    EXPECT_TRUE(absl::IsUnavailable(ask_under(EAI_AGAIN)));
    EXPECT_TRUE(absl::IsUnavailable(ask_under(EAI_FAIL)));
    EXPECT_TRUE(absl::IsResourceExhausted(ask_under(EAI_MEMORY)));
    EXPECT_EQ(ErrnoOf(ask_under(EAI_MEMORY)), ENOMEM);
    EXPECT_TRUE(absl::IsInvalidArgument(ask_under(EAI_SERVICE)));
    EXPECT_TRUE(absl::StrContains(ask_under(EAI_NONAME).message(), "look up host.invalid:80"));
    EXPECT_FALSE(Resolve("localhost", "no-such-service-anywhere").ok());
  });
}

// What the system says of a name that cannot be; without a name server that is that none answers.
TEST_P(ResolveTest, AnUnknownNameIsNotFound) {
  Run([] {
    const absl::Status status = Resolve("x.invalid", "80", absl::Seconds(60)).status();
    EXPECT_TRUE(absl::IsNotFound(status) || absl::IsUnavailable(status)) << status;
  });
}

TEST_P(ResolveTest, WhoAsksForTheSameSharesTheAnswer) {
  Run([] {
    NameServer server({"127.0.0.3", "127.0.0.2", "127.0.0.3"}, true);
    std::vector<fiber::JoinHandle<std::string>> fibers;
    for (int i = 0; i < 10; ++i) {
      fibers.push_back(fiber::Spawn([] { return Texts(Resolve("shared.test", "80")); }));
    }
    auto other = fiber::Spawn([] { return Texts(Resolve("other.test", "80")); });
    for (auto& fiber : fibers) WaitUntilParked(fiber);
    WaitUntilParked(other);
    server.Answer();
    for (auto& fiber : fibers) EXPECT_EQ(fiber.Join(), "127.0.0.3:80 127.0.0.2:80 ");
    EXPECT_EQ(other.Join(), "127.0.0.3:80 127.0.0.2:80 ");
    EXPECT_EQ(NameServer::questions.load(), 2);
  });
}

TEST_P(ResolveTest, AServerThatDoesNotAnswerHoldsUpNobody) {
  Run([] {
    NameServer server({"127.0.0.1"}, true);
    EXPECT_TRUE(absl::IsDeadlineExceeded(Resolve("slow.test", "80", absl::Milliseconds(5)).status()));
    EXPECT_TRUE(absl::IsDeadlineExceeded(TcpStream::Connect("slow.test:80", absl::Milliseconds(5)).status()));
    EXPECT_TRUE(absl::IsDeadlineExceeded(Resolve("slow.test", "80", absl::ZeroDuration()).status()));
    auto cancelled = fiber::Spawn([] { return Resolve("slow.test", "80").status(); });
    WaitUntilParked(cancelled);
    cancelled.Cancel();
    EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
  });
}

// Those of name servers that do not answer are not all there are.
TEST_P(ResolveTest, ManyQuestionsLeaveThreadsForOthers) {
  Run([] {
    NameServer server({"127.0.0.1"}, true);
    std::vector<fiber::JoinHandle<bool>> fibers;
    for (int i = 0; i < 100; ++i) {
      fibers.push_back(fiber::Spawn([i] { return Resolve(absl::StrCat("name", i, ".test"), "80").ok(); }));
    }
    for (auto& fiber : fibers) WaitUntilParked(fiber);
    EXPECT_TRUE(fiber::BlockingDetached([] { return true; }).ok());
    EXPECT_LE(NameServer::questions.load(), 32);
    server.Answer();
    for (auto& fiber : fibers) EXPECT_TRUE(fiber.Join());
    EXPECT_EQ(NameServer::questions.load(), 100);
  });
}

TEST_P(ResolveTest, TwoRuntimesDoNotShareAFate) {
  NameServer server({"127.0.0.1"}, true);
  sched::Runtime first({.workers = GetParam()});
  sched::Runtime second({.workers = GetParam()});
  auto goes = first.Spawn([] { return Resolve("same.test", "80").status(); });
  auto stays = second.Spawn([] { return Resolve("same.test", "80").status(); });
  while (NameServer::questions.load() < 2) fiber::Yield();
  EXPECT_TRUE(first.Shutdown(absl::Seconds(20)).ok());
  EXPECT_TRUE(absl::IsCancelled(goes.Join()));
  server.Answer();
  EXPECT_TRUE(stays.Join().ok());
}

TEST_P(ResolveTest, ConnectByName) {
  Run([] {
    netpoll::TcpListener listener = ListenOnLoopback();
    auto stream = TcpStream::Connect(absl::StrCat("localhost:", listener.local().port()));
    ASSERT_TRUE(stream.ok()) << stream.status();
    EXPECT_EQ(stream->peer(), listener.local());
  });
  EXPECT_TRUE(absl::IsFailedPrecondition(TcpStream::Connect("localhost:80").status()));
}

TEST_P(ResolveTest, TheNextAddressIsTriedWhenOneRefuses) {
  Run([] {
    netpoll::TcpListener listener = ListenOnLoopback();
    const std::string target = absl::StrCat("several.test:", listener.local().port());
    const int before = OpenDescriptors();
    {
      NameServer server({"127.0.0.2", "::1", "127.0.0.3", "127.0.0.1", "127.0.0.4"});
      auto stream = TcpStream::Connect(target);
      ASSERT_TRUE(stream.ok()) << stream.status();
      EXPECT_EQ(stream->peer(), listener.local());
    }
    {
      NameServer server({"127.0.0.2", "127.0.0.3"});
      const absl::Status status = TcpStream::Connect(target).status();
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_EQ(ErrnoOf(status), ECONNREFUSED);
      EXPECT_TRUE(absl::StrContains(status.message(), "several.test")) << status;
      EXPECT_TRUE(absl::StrContains(status.message(), "127.0.0.2:")) << status;
      EXPECT_TRUE(absl::StrContains(status.message(), "127.0.0.3:")) << status;
    }
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

// DeafAddress takes connections until its backlog is full, and does not answer from then on.
class DeafAddress {
 public:
  explicit DeafAddress(const char* host) : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    address_ = *Address::Parse(absl::StrCat(host, ":0"));
    EXPECT_EQ(bind(listener_.fd(), address_.data(), address_.size()), 0);
    EXPECT_EQ(listen(listener_.fd(), 0), 0);
    sockaddr_in name = {};
    socklen_t size = sizeof name;
    EXPECT_EQ(getsockname(listener_.fd(), reinterpret_cast<sockaddr*>(&name), &size), 0);
    address_ = *Address::FromSockaddr(reinterpret_cast<const sockaddr*>(&name), size);
    for (int i = 0; i < 4; ++i) {
      fillers_.emplace_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      (void)connect(fillers_.back().fd(), address_.data(), address_.size());
    }
  }
  uint16_t port() const { return address_.port(); }

 private:
  Address address_;
  RawSocket listener_;
  std::vector<RawSocket> fillers_;
};

TEST_P(ResolveTest, OneThatDoesNotAnswerIsNotWaitedFor) {
  Run([] {
    DeafAddress deaf("127.0.0.2");
    auto listener = netpoll::TcpListener::Listen(absl::StrCat("127.0.0.1:", deaf.port()));
    ASSERT_TRUE(listener.ok()) << listener.status();
    NameServer server({"127.0.0.2", "127.0.0.1"});
    const int before = OpenDescriptors();
    {
      auto stream = TcpStream::Connect(absl::StrCat("half.test:", deaf.port()), absl::Seconds(30));
      ASSERT_TRUE(stream.ok()) << stream.status();
      EXPECT_EQ(stream->peer(), listener->local());
      EXPECT_EQ(OpenDescriptors(), before + 1) << "the other attempt is gone";
    }
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST_P(ResolveTest, WhenNoneAnswersTheDeadlineHolds) {
  Run([] {
    const netpoll::TcpListener first = ListenOnLoopback();  // with it came the poller
    DeafAddress deaf("127.0.0.2");
    NameServer server({"127.0.0.2", "127.0.0.2", "127.0.0.3"});  // the last one refuses
    const std::string target = absl::StrCat("deaf.test:", deaf.port());
    const int before = OpenDescriptors();
    EXPECT_TRUE(absl::IsDeadlineExceeded(TcpStream::Connect(target, absl::Milliseconds(20)).status()));
    EXPECT_TRUE(absl::IsDeadlineExceeded(TcpStream::Connect(target, absl::Milliseconds(300)).status()));
    auto cancelled = fiber::Spawn([&] { return TcpStream::Connect(target).status(); });
    WaitUntilParked(cancelled);
    cancelled.Cancel();
    EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST(HostNameTest, FamiliesAlternateAndKeepTheirOrder) {
  std::vector<Address> addresses;
  for (const char* text : {"[::1]:1", "[::1]:2", "[::1]:3", "1.1.1.1:1", "1.1.1.1:2"}) {
    addresses.push_back(*Address::Parse(text));
  }
  EXPECT_EQ(Texts(netpoll::internal::Interleave(addresses)), "[::1]:1 1.1.1.1:1 [::1]:2 1.1.1.1:2 [::1]:3 ");
}

TEST(HostNameTest, WhatANameWithAServiceIs) {
  using netpoll::internal::SplitHostName;
  for (const char* text : {"localhost:80", "example.com.:https", "a-b_c.d:0", "x:65535", "1.example:80", "3com:80"}) {
    EXPECT_TRUE(SplitHostName(text).has_value()) << text;
  }
  for (const char* text : {"localhost", "localhost:", ":80", "127.0.0.1:80", "1.2:80", "[::1]:80", "a:b:80", "a:65536", "a:080",
                           "a b:80", "a:8 0", "0x1:80", "x.0x1f:80", "x.:", ".:80", "..:80"}) {
    EXPECT_FALSE(SplitHostName(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace netpoll_test
