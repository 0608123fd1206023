// SPDX-License-Identifier: Apache-2.0
//
// Deadlines of calls and of streams, and cancellation, on real sockets.
#include <errno.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/tcp.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using fiber::Deadline;
using netpoll::Address;
using netpoll::IoResult;
using netpoll::ReadFull;
using netpoll::TcpListener;
using netpoll::TcpStream;

class DeadlineTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(DeadlineTest);

const Deadline kPast = Deadline::AtNanos(1);

absl::Status ReadByte(TcpStream& stream, Deadline deadline = {}) {
  char byte[1];
  return stream.Read(byte, deadline).status();
}

// A listener whose backlog is full: a connection to it stays pending.
class FullListener {
 public:
  FullListener() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    Address any = Address::Loopback(0);
    EXPECT_EQ(bind(fd_.fd(), any.data(), any.size()), 0);
    EXPECT_EQ(listen(fd_.fd(), 0), 0);
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    EXPECT_EQ(getsockname(fd_.fd(), reinterpret_cast<sockaddr*>(&name), &size), 0);
    address_ = *Address::FromSockaddr(reinterpret_cast<sockaddr*>(&name), size);
    filler_ = RawSocket::ConnectTo(address_);
  }
  const Address& address() const { return address_; }

 private:
  RawSocket fd_;
  RawSocket filler_;
  Address address_;
};

TEST_P(DeadlineTest, APastOneFailsThoughBytesAreThereAndTakesNone) {
  Run([] {
    StreamPair pair = Connected();
    ASSERT_TRUE(pair.server.Write("abc").ok());
    ASSERT_TRUE(ReadByte(pair.client).ok());  // it is there
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, kPast)));
      EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, absl::Seconds(-1))));
    }
    pair.client.SetReadDeadline(kPast);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client)));
      EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, absl::Hours(1))));
    }
    EXPECT_TRUE(pair.client.Read({}).ok()) << "an empty buffer reads nothing, at once";
    EXPECT_TRUE(pair.client.Write("x").ok()) << "the other direction has its own";
    pair.client.SetReadDeadline(Deadline::Never());
    char rest[2];
    EXPECT_TRUE(ReadFull(pair.client, rest).ok());
    EXPECT_EQ(std::string_view(rest, 2), "bc");
  });
}

TEST_P(DeadlineTest, APastOneWritesNothing) {
  Run([] {
    StreamPair pair = Connected();
    IoResult sent = pair.client.Write("never", kPast);
    EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status));
    EXPECT_EQ(sent.bytes, 0u);
    pair.client.SetWriteDeadline(kPast);
    sent = pair.client.Write("never");
    EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status));
    EXPECT_EQ(sent.bytes, 0u);
    pair.client.SetWriteDeadline({});
    ASSERT_TRUE(pair.client.Write("now").ok());
    pair.client.Close();
    EXPECT_EQ(Drain(pair.server), 3u);
  });
}

TEST_P(DeadlineTest, NeverEarly) {
  Run([] {
    StreamPair pair = Connected();
    for (const absl::Duration wait :
         {absl::Nanoseconds(1), absl::Microseconds(1), absl::Microseconds(100), absl::Microseconds(900),
          absl::Milliseconds(3), absl::Milliseconds(50)}) {
      absl::Duration start = fiber::Now();
      EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, wait)));
      absl::Duration took = fiber::Now() - start;
      EXPECT_GE(took, wait);
      EXPECT_LT(took, wait + absl::Seconds(1));

      start = fiber::Now();
      pair.client.SetReadDeadline(wait);
      EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client)));
      pair.client.SetReadDeadline({});
      took = fiber::Now() - start;
      EXPECT_GE(took, wait);
      EXPECT_LT(took, wait + absl::Seconds(1));
    }
  });
}

TEST_P(DeadlineTest, TheEarlierOfCallAndStreamHolds) {
  Run([] {
    StreamPair pair = Connected();
    absl::Duration start = fiber::Now();
    pair.client.SetReadDeadline(absl::Hours(1));
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, absl::Milliseconds(5))));
    pair.client.SetReadDeadline(absl::Milliseconds(5));
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, absl::Hours(1))));
    EXPECT_LT(fiber::Now() - start, absl::Minutes(1));
  });
}

TEST_P(DeadlineTest, MovedToThePastWakesAtOnce) {
  Run([] {
    StreamPair pair = Connected();
    auto reader = fiber::Spawn([&] { return ReadByte(pair.client); });
    auto writer = fiber::Spawn([&] { return pair.client.Write(MoreThanFits()).status; });
    WaitUntilParked(reader);
    WaitUntilParked(writer);
    pair.client.SetReadDeadline(kPast);
    EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    EXPECT_FALSE(writer.is_done()) << "the other direction has its own";
    pair.client.SetWriteDeadline(absl::ZeroDuration());
    EXPECT_TRUE(absl::IsDeadlineExceeded(writer.Join()));
  });
}

// A reader that is parked under a deadline that has not passed yet when it is moved to `next`.
fiber::JoinHandle<absl::Status> ReadUnderMovedDeadline(TcpStream& stream, Deadline& next) {
  const absl::Duration wait = next.remaining();
  for (;;) {
    const Deadline early = absl::Milliseconds(20);
    stream.SetReadDeadline(early);
    auto reader = fiber::Spawn([&] { return ReadByte(stream); });
    WaitUntilParked(reader);
    next = wait;
    stream.SetReadDeadline(next);
    if (!early.is_past()) return reader;
    reader.Cancel();  // too slow: once more
    (void)reader.Join();
  }
}

TEST_P(DeadlineTest, ExtendedWhileParkedTheOldOneDoesNotEndTheCall) {
  Run([] {
    StreamPair pair = Connected();
    Deadline later = absl::Milliseconds(60);
    auto reader = ReadUnderMovedDeadline(pair.client, later);
    EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    EXPECT_TRUE(later.is_past());
  });
}

TEST_P(DeadlineTest, LiftedWhileParkedTheOldOneDoesNotEndTheCall) {
  Run([] {
    StreamPair pair = Connected();
    Deadline never;
    auto reader = ReadUnderMovedDeadline(pair.client, never);
    ASSERT_TRUE(fiber::Sleep(absl::Milliseconds(30)).ok());  // beyond the one that was lifted
    EXPECT_FALSE(reader.is_done());
    ASSERT_TRUE(pair.server.Write("x").ok());
    EXPECT_TRUE(reader.Join().ok());
  });
}

TEST_P(DeadlineTest, ShortenedWhileParkedTheNewOneHolds) {
  Run([] {
    StreamPair pair = Connected();
    const absl::Duration start = fiber::Now();
    pair.client.SetReadDeadline(absl::Hours(1));
    auto reader = fiber::Spawn([&] { return ReadByte(pair.client); });
    WaitUntilParked(reader);
    const Deadline sooner = absl::Milliseconds(10);
    pair.client.SetReadDeadline(sooner);
    EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    EXPECT_TRUE(sooner.is_past());
    EXPECT_LT(fiber::Now() - start, absl::Minutes(1));
  });
}

TEST_P(DeadlineTest, OneThatDidNotExpireLeavesNothingForTheNextCall) {
  Run([] {
    StreamPair pair = Connected();
    auto first = fiber::Spawn([&] { return ReadByte(pair.client, absl::Milliseconds(20)); });
    WaitUntilParked(first);
    ASSERT_TRUE(pair.server.Write("x").ok());
    if (!first.Join().ok()) return;  // too slow for this
    auto reader = fiber::Spawn([&] { return ReadByte(pair.client); });
    ASSERT_TRUE(fiber::Sleep(absl::Milliseconds(40)).ok());
    EXPECT_FALSE(reader.is_done());
    pair.client.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(reader.Join()));
  });
}

TEST_P(DeadlineTest, AWriteSaysHowMuchWentOut) {
  Run([] {
    StreamPair pair = Connected();
    const IoResult sent = pair.client.Write(MoreThanFits(), absl::Milliseconds(50));
    EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status)) << sent.status;
    EXPECT_GT(sent.bytes, 0u);
    EXPECT_LT(sent.bytes, MoreThanFits().size());
    pair.client.Close();
    EXPECT_EQ(Drain(pair.server), sent.bytes);
  });
}

TEST_P(DeadlineTest, SetFromAllSidesWhileIoGoesOn) {
  Run([] {
    StreamPair pair = Connected();
    std::vector<fiber::JoinHandle<void>> setters;
    for (int i = 0; i < 8; ++i) {
      setters.push_back(fiber::Spawn([&, i] {
        for (int round = 0; round < 300; ++round) {
          const absl::Duration far = absl::Minutes(10) - absl::Seconds(round);
          if (i % 2 == 0) pair.client.SetReadDeadline(far);
          if (i % 2 == 1) pair.server.SetReadDeadline(far);
          if (i % 4 < 2) pair.client.SetWriteDeadline(far);
          fiber::Yield();
        }
      }));
    }
    auto echo = fiber::Spawn([&] {
      char byte[1];
      while (pair.server.Read(byte).ok()) ASSERT_TRUE(pair.server.Write({byte, 1}).ok());
    });
    for (int i = 0; i < 500; ++i) {
      pair.client.SetReadDeadline(absl::Minutes(5) - absl::Milliseconds(i));
      ASSERT_TRUE(pair.client.Write("x").ok());
      ASSERT_TRUE(ReadByte(pair.client).ok());
    }
    for (auto& setter : setters) setter.Join();
    pair.client.Close();
    echo.Join();
  });
}

TEST_P(DeadlineTest, RacingTheDataNothingIsLost) {
  Run([] {
    StreamPair pair = Connected();
    constexpr int kBytes = 500;
    auto writer = fiber::Spawn([&] {
      for (int i = 0; i < kBytes; ++i) {
        ASSERT_TRUE(pair.server.Write("x").ok());
        ASSERT_TRUE(fiber::Sleep(absl::Microseconds(i % 200)).ok());
      }
    });
    int got = 0;
    while (got < kBytes) {
      char buffer[16];
      const auto n = pair.client.Read(buffer, absl::Microseconds(100));
      if (n.ok()) {
        got += static_cast<int>(*n);
      } else {
        ASSERT_TRUE(absl::IsDeadlineExceeded(n.status())) << n.status();
      }
    }
    writer.Join();
    EXPECT_EQ(got, kBytes);
  });
}

TEST_P(DeadlineTest, OfThoseQueuedBehindAReader) {
  Run([] {
    StreamPair pair = Connected();
    auto first = fiber::Spawn([&] { return ReadByte(pair.client); });
    WaitUntilParked(first);
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, absl::Milliseconds(5))));
    auto second = fiber::Spawn([&] { return ReadByte(pair.client); });
    WaitUntilParked(second);
    // The stream's own holds for both.
    pair.client.SetReadDeadline(absl::Milliseconds(5));
    EXPECT_TRUE(absl::IsDeadlineExceeded(first.Join()));
    EXPECT_TRUE(absl::IsDeadlineExceeded(second.Join()));
  });
}

TEST_P(DeadlineTest, AcceptHasThemToo) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    RawSocket early = RawSocket::ConnectTo(listener.local());
    EXPECT_TRUE(absl::IsDeadlineExceeded(listener.Accept(kPast).status()));
    EXPECT_TRUE(listener.Accept(absl::Hours(1)).ok());
    const absl::Duration start = fiber::Now();
    EXPECT_TRUE(absl::IsDeadlineExceeded(listener.Accept(absl::Milliseconds(10)).status()));
    EXPECT_GE(fiber::Now() - start, absl::Milliseconds(10));
    RawSocket late = RawSocket::ConnectTo(listener.local());
    EXPECT_TRUE(listener.Accept().ok());
  });
}

TEST_P(DeadlineTest, ConnectHasThemToo) {
  Run([] {
    FullListener listener;
    EXPECT_TRUE(absl::IsDeadlineExceeded(TcpStream::Connect(listener.address(), kPast).status()));
    const absl::Duration start = fiber::Now();
    const absl::Status status = TcpStream::Connect(listener.address(), absl::Milliseconds(20)).status();
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_GE(fiber::Now() - start, absl::Milliseconds(20));
  });
}

TEST_P(DeadlineTest, CancelEndsEveryCallThatWaits) {
  Run([] {
    StreamPair pair = Connected();
    TcpListener listener = ListenOnLoopback();
    FullListener full;
    std::vector<fiber::JoinHandle<absl::Status>> waiting;
    waiting.push_back(fiber::Spawn([&] { return ReadByte(pair.client); }));
    waiting.push_back(fiber::Spawn([&] { return pair.client.Write(MoreThanFits()).status; }));
    waiting.push_back(fiber::Spawn([&] { return listener.Accept().status(); }));
    waiting.push_back(fiber::Spawn([&] { return TcpStream::Connect(full.address()).status(); }));
    for (auto& handle : waiting) WaitUntilParked(handle);
    // Queued behind those.
    waiting.push_back(fiber::Spawn([&] { return ReadByte(pair.client); }));
    waiting.push_back(fiber::Spawn([&] { return listener.Accept().status(); }));
    for (auto& handle : waiting) WaitUntilParked(handle);
    for (size_t i = waiting.size(); i-- > 0;) {
      waiting[i].Cancel();
      const absl::Status status = waiting[i].Join();
      EXPECT_TRUE(absl::IsCancelled(status)) << status << " of " << i;
    }
    // Nothing was lost by that.
    ASSERT_TRUE(pair.server.Write("x").ok());
    EXPECT_TRUE(ReadByte(pair.client).ok());
    RawSocket peer = RawSocket::ConnectTo(listener.local());
    EXPECT_TRUE(listener.Accept().ok());
  });
}

TEST_P(DeadlineTest, ACancelledFiberDoesNothingThoughBytesAreThere) {
  Run([] {
    StreamPair pair = Connected();
    ASSERT_TRUE(pair.server.Write("x").ok());
    std::atomic<bool> is_cancelled{false};
    auto reader = fiber::Spawn([&] {
      while (!is_cancelled.load()) fiber::Yield();
      EXPECT_TRUE(absl::IsCancelled(ReadByte(pair.client)));
      EXPECT_TRUE(absl::IsCancelled(pair.client.Write("y").status));
      EXPECT_TRUE(absl::IsCancelled(TcpStream::Connect(pair.server.local()).status()));
      EXPECT_TRUE(pair.client.Read({}).ok());
    });
    reader.Cancel();
    is_cancelled.store(true);
    reader.Join();
    EXPECT_TRUE(ReadByte(pair.client).ok());
  });
}

TEST_P(DeadlineTest, CancelAfterConnectDoesNotHurtTheStream) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    auto dialer = fiber::Spawn([&] {
      auto stream = TcpStream::Connect(listener.local(), absl::Seconds(10));
      EXPECT_TRUE(stream.ok()) << stream.status();
      return std::make_unique<TcpStream>(*std::move(stream));
    });
    auto server = listener.Accept();
    ASSERT_TRUE(server.ok());
    ASSERT_TRUE(dialer.Wait().ok());
    dialer.Cancel();
    const std::unique_ptr<TcpStream> client = dialer.Join();
    ASSERT_TRUE(client->Write("x").ok());
    EXPECT_TRUE(ReadByte(*server).ok());
  });
}

}  // namespace
}  // namespace netpoll_test
