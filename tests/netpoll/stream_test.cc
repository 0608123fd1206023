// SPDX-License-Identifier: Apache-2.0
//
// What goes through a stream, and how it ends.
#include "netpoll/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/tcp.h"
#include "tests/netpoll/sockets.h"
#include "tests/scale.h"

namespace netpoll_test {
namespace {

using netpoll::ErrnoOf;
using netpoll::IoResult;
using netpoll::ReadFull;
using netpoll::TcpListener;
using netpoll::TcpStream;

class StreamTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(StreamTest);

TEST_P(StreamTest, PingPongByteByByte) {
  Run([] {
    StreamPair pair = Connected();
    auto server = fiber::Spawn([&] {
      char byte[1];
      while (pair.server.Read(byte).ok()) ASSERT_TRUE(pair.server.Write({byte, 1}).ok());
    });
    for (int i = 0; i < 2000; ++i) {
      const char sent = static_cast<char>(i);
      char got[16];
      ASSERT_TRUE(pair.client.Write({&sent, 1}).ok());
      const auto n = pair.client.Read(got);
      ASSERT_TRUE(n.ok()) << n.status();
      ASSERT_EQ(*n, 1u);
      ASSERT_EQ(got[0], sent);
    }
    pair.client.Close();
    server.Join();
  });
}

TEST_P(StreamTest, ManyConnectionsAtOnce) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    auto server = fiber::Spawn([&] {
      for (;;) {
        auto stream = listener.Accept();
        if (!stream.ok()) return;
        fiber::Go([stream = *std::move(stream)]() mutable {
          char buffer[512];
          for (;;) {
            const auto n = stream.Read(buffer);
            if (!n.ok() || !stream.Write({buffer, *n}).ok()) return;
          }
        });
      }
    });
    std::vector<fiber::JoinHandle<void>> clients;
    for (int i = 0; i < 100; ++i) {
      clients.push_back(fiber::Spawn([&] {
        auto stream = TcpStream::Connect(listener.local());
        ASSERT_TRUE(stream.ok()) << stream.status();
        const std::string message(300, 'm');
        std::string got(message.size(), '\0');
        for (int round = 0; round < 20; ++round) {
          ASSERT_TRUE(stream->Write(message).ok());
          ASSERT_TRUE(ReadFull(*stream, got).ok());
          ASSERT_EQ(got, message);
        }
      }));
    }
    for (auto& client : clients) client.Join();
    listener.Close();
    server.Join();
  });
}

TEST_P(StreamTest, ZeroLengthCallsDoNothingAtOnce) {
  Run([] {
    StreamPair pair = Connected();
    const auto n = pair.client.Read({});
    ASSERT_TRUE(n.ok()) << n.status();
    EXPECT_EQ(*n, 0u);
    EXPECT_TRUE(pair.client.Write("").ok());
    EXPECT_TRUE(pair.client.Writev({}).ok());
    const iovec empty[2] = {};
    EXPECT_TRUE(pair.client.Writev(empty).ok());
    // Whether bytes are there or not, and whoever else reads.
    auto reader = fiber::Spawn([&] {
      char buffer[8];
      return pair.client.Read(buffer).status();
    });
    WaitUntilParked(reader);
    EXPECT_TRUE(pair.client.Read({}).ok());
    pair.server.Close();
    EXPECT_TRUE(absl::IsOutOfRange(reader.Join()));
    pair.client.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(pair.client.Read({}).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(pair.client.Write("").status));
  });
}

TEST_P(StreamTest, ThePeersEndIsOutOfRangeForEver) {
  Run([] {
    StreamPair pair = Connected();
    ASSERT_TRUE(pair.server.Write("bye").ok());
    pair.server.Close();
    char buffer[8];
    const auto n = pair.client.Read(buffer);
    ASSERT_TRUE(n.ok()) << n.status();
    EXPECT_EQ(*n, 3u);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(absl::IsOutOfRange(pair.client.Read(buffer).status()));
    }
  });
}

TEST_P(StreamTest, ReadFullTellsTheEndFromAHole) {
  Run([] {
    StreamPair pair = Connected();
    ASSERT_TRUE(pair.server.Write("12345678abc").ok());
    pair.server.Close();
    char buffer[8];
    IoResult result = ReadFull(pair.client, buffer);
    EXPECT_TRUE(result.ok()) << result.status;
    EXPECT_EQ(result.bytes, 8u);
    result = ReadFull(pair.client, buffer);
    EXPECT_TRUE(absl::IsDataLoss(result.status)) << result.status;
    EXPECT_EQ(result.bytes, 3u);
    EXPECT_EQ(std::string_view(buffer, 3), "abc");
    result = ReadFull(pair.client, buffer);
    EXPECT_TRUE(absl::IsOutOfRange(result.status)) << result.status;
    EXPECT_EQ(result.bytes, 0u);
    EXPECT_TRUE(ReadFull(pair.client, {}).ok());
  });
}

TEST_P(StreamTest, HalfCloseLeavesTheOtherDirection) {
  Run([] {
    StreamPair pair = Connected();
    ASSERT_TRUE(pair.client.Write("question").ok());
    ASSERT_TRUE(pair.client.CloseWrite().ok());
    EXPECT_EQ(Drain(pair.server), 8u);
    const IoResult refused = pair.client.Write("more");
    EXPECT_TRUE(absl::IsUnavailable(refused.status)) << refused.status;
    EXPECT_EQ(ErrnoOf(refused.status), EPIPE);
    ASSERT_TRUE(pair.server.Write("answer").ok());
    ASSERT_TRUE(pair.server.CloseWrite().ok());
    EXPECT_EQ(Drain(pair.client), 6u);
    pair.client.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(pair.client.CloseWrite()));
  });
}

TEST_P(StreamTest, EverythingFailsAfterClose) {
  Run([] {
    StreamPair pair = Connected();
    pair.client.Close();
    pair.client.Close();
    char buffer[8];
    EXPECT_TRUE(absl::IsFailedPrecondition(pair.client.Read(buffer).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(pair.client.Write("x").status));
    EXPECT_TRUE(absl::IsFailedPrecondition(pair.client.CloseWrite()));
    EXPECT_EQ(pair.client.fd(), -1);
    EXPECT_EQ(pair.client.local().size(), 0u);
    EXPECT_EQ(pair.client.peer().size(), 0u);
    pair.client.SetReadDeadline(absl::Seconds(1));
    EXPECT_EQ(std::move(pair.client).Release(), -1);
    TcpStream moved_from;
    EXPECT_TRUE(absl::IsFailedPrecondition(moved_from.Read(buffer).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(moved_from.Write("x").status));
    moved_from.SetWriteDeadline({});
    moved_from.Close();
  });
}

TEST_P(StreamTest, CloseWakesReadersAndWritersIncludingThoseQueued) {
  Run([] {
    StreamPair pair = Connected();
    std::vector<fiber::JoinHandle<absl::Status>> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.push_back(fiber::Spawn([&] {
        char buffer[8];
        return pair.client.Read(buffer).status();
      }));
      waiting.push_back(fiber::Spawn([&] { return pair.client.Write(MoreThanFits()).status; }));
    }
    for (auto& handle : waiting) WaitUntilParked(handle);
    pair.client.Close();
    for (auto& handle : waiting) {
      const absl::Status status = handle.Join();
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    }
    // All of them waited, so nobody held it open.
    EXPECT_GT(Drain(pair.server), 0u);
  });
}

TEST_P(StreamTest, AResetWhileReadingIsUnavailable) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    auto reader = fiber::Spawn([&] {
      char buffer[8];
      return pair.stream.Read(buffer).status();
    });
    WaitUntilParked(reader);
    pair.peer.Reset();
    const absl::Status status = reader.Join();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ErrnoOf(status), ECONNRESET);
  });
}

TEST_P(StreamTest, AResetWhileWritingSaysHowMuchWentOut) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    auto writer = fiber::Spawn([&] { return pair.stream.Write(MoreThanFits()); });
    WaitUntilParked(writer);
    pair.peer.Reset();
    const IoResult result = writer.Join();
    EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;
    EXPECT_TRUE(ErrnoOf(result.status) == ECONNRESET || ErrnoOf(result.status) == EPIPE);
    EXPECT_GT(result.bytes, 0u);
    EXPECT_LT(result.bytes, MoreThanFits().size());
  });
}

// Edges that come with data, and bring none of their own: the reader has looked at the slot only once.
TEST_P(StreamTest, DataAndEndInOneEdge) {
  Run([] {
    for (int i = 0; i < 50; ++i) {
      RawPair pair = ConnectedToRaw();
      auto reader = fiber::Spawn([&] { return Drain(pair.stream); });
      if (i % 2 == 0) WaitUntilParked(reader);
      pair.peer.Send("last words");
      pair.peer.Close();
      EXPECT_EQ(reader.Join(), 10u);
    }
  });
}

TEST_P(StreamTest, DataAndResetInOneEdge) {
  Run([] {
    for (int i = 0; i < 50; ++i) {
      RawPair pair = ConnectedToRaw();
      auto reader = fiber::Spawn([&] {
        char buffer[64];
        for (;;) {
          const auto n = pair.stream.Read(buffer);
          if (!n.ok()) return n.status();
        }
      });
      if (i % 2 == 0) WaitUntilParked(reader);
      pair.peer.Send("last words");
      pair.peer.Reset();
      const absl::Status status = reader.Join();
      EXPECT_EQ(ErrnoOf(status), ECONNRESET) << status;
    }
  });
}

TEST_P(StreamTest, AnUrgentMarkDoesNotHideWhatIsBehindIt) {
  Run([] {
    for (int i = 0; i < 20; ++i) {
      RawPair pair = ConnectedToRaw();
      auto reader = fiber::Spawn([&] {
        char buffer[64];
        std::string got;
        while (got.size() < 6) {
          const auto n = pair.stream.Read(buffer);
          if (!n.ok()) break;
          got.append(buffer, *n);
        }
        return got;
      });
      if (i % 2 == 0) WaitUntilParked(reader);
      pair.peer.Send("abc");
      pair.peer.Send("!", MSG_OOB);
      pair.peer.Send("def");
      EXPECT_EQ(reader.Join(), "abcdef");
    }
  });
}

// A stream that is no TCP, and the test's own end.
struct UnixPair {
  UnixPair() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    auto adopted = TcpStream::Adopt(fds[0]);
    EXPECT_TRUE(adopted.ok()) << adopted.status();
    if (adopted.ok()) stream = *std::move(adopted);
    peer = RawSocket(fds[1]);
  }
  TcpStream stream;
  RawSocket peer;
};

// A read of a unix socket stops where descriptors came along, with more behind it.
TEST_P(StreamTest, DescriptorsSentAlongDoNotHideWhatIsBehindThem) {
  Run([] {
    UnixPair pair;
    auto reader = fiber::Spawn([&] {
      std::string got(2, '\0');
      EXPECT_TRUE(ReadFull(pair.stream, got).ok());
      return got;
    });
    WaitUntilParked(reader);
    SendWithDescriptor(pair.peer, 'a');
    pair.peer.Send("b");
    EXPECT_EQ(reader.Join(), "ab");
  });
}

TEST_P(StreamTest, WritersDoNotInterleave) {
  Run([] {
    StreamPair pair = Connected();
    constexpr size_t kBlock = 300'000;
    const int small = 16 << 10;  // so that a block does not fit
    ASSERT_EQ(setsockopt(pair.client.fd(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    ASSERT_EQ(setsockopt(pair.server.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
    constexpr int kWriters = 4;
    constexpr int kRounds = 5;
    std::vector<fiber::JoinHandle<void>> writers;
    for (int i = 0; i < kWriters; ++i) {
      writers.push_back(fiber::Spawn([&, i] {
        const std::string block(kBlock, static_cast<char>('a' + i));
        for (int round = 0; round < kRounds; ++round) {
          const IoResult sent = pair.client.Write(block);
          ASSERT_TRUE(sent.ok()) << sent.status;
          ASSERT_EQ(sent.bytes, kBlock);
        }
      }));
    }
    std::string got(kBlock, '\0');
    for (int i = 0; i < kWriters * kRounds; ++i) {
      ASSERT_TRUE(ReadFull(pair.server, got).ok());
      ASSERT_EQ(std::count(got.begin(), got.end(), got[0]), static_cast<long>(kBlock));
    }
    for (auto& writer : writers) writer.Join();
  });
}

TEST_P(StreamTest, ReadersQueueAndEachGetsSomething) {
  Run([] {
    StreamPair pair = Connected();
    std::vector<fiber::JoinHandle<size_t>> readers;
    for (int i = 0; i < 8; ++i) {
      readers.push_back(fiber::Spawn([&] {
        char buffer[1];
        const auto n = pair.server.Read(buffer);
        return n.ok() ? *n : 0;
      }));
    }
    for (auto& reader : readers) WaitUntilParked(reader);
    ASSERT_TRUE(pair.client.Write("12345678").ok());
    for (auto& reader : readers) EXPECT_EQ(reader.Join(), 1u);
  });
}

TEST_P(StreamTest, WritevIsOneWriteOfManyPieces) {
  Run([] {
    StreamPair pair = Connected();
    std::string expected;
    std::vector<std::string> texts;
    for (int i = 0; i < 200; ++i) texts.emplace_back(static_cast<size_t>(i % 7 * 1000), 'a' + i % 26);
    std::vector<iovec> pieces;
    for (std::string& text : texts) {
      pieces.push_back({text.data(), text.size()});
      expected += text;
    }
    auto writer = fiber::Spawn([&] { return pair.client.Writev(pieces); });
    std::string got(expected.size(), '\0');
    ASSERT_TRUE(ReadFull(pair.server, got).ok());
    EXPECT_EQ(got, expected);
    const IoResult sent = writer.Join();
    EXPECT_TRUE(sent.ok()) << sent.status;
    EXPECT_EQ(sent.bytes, expected.size());
  });
}

TEST_P(StreamTest, SmallPacketsGoOutAtOnceOnBothEnds) {
  Run([] {
    StreamPair pair = Connected();
    for (const TcpStream* stream : {&pair.client, &pair.server}) {
      int value = 0;
      socklen_t size = sizeof value;
      ASSERT_EQ(getsockopt(stream->fd(), IPPROTO_TCP, TCP_NODELAY, &value, &size), 0);
      EXPECT_EQ(value, 1);
    }
  });
}

// No event tells who waits for room in a unix socket's buffer.
TEST_P(StreamTest, CloseWriteEndsAParkedWriteOfAUnixSocketToo) {
  Run([] {
    UnixPair pair;
    auto writer = fiber::Spawn([&] { return pair.stream.Write(std::string(8 << 20, 'x'), absl::Seconds(20)).status; });
    WaitUntilParked(writer);
    EXPECT_TRUE(pair.stream.CloseWrite().ok());
    const absl::Status status = writer.Join();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  });
}

TEST_P(StreamTest, TheEndsKnowEachOther) {
  Run([] {
    StreamPair pair = Connected();
    EXPECT_EQ(pair.client.local().ToString(), pair.server.peer().ToString());
    EXPECT_EQ(pair.client.peer().ToString(), pair.server.local().ToString());
  });
}

TEST_P(StreamTest, AReleasedDescriptorIsTheCallersAndCanBeAdoptedAgain) {
  Run([] {
    StreamPair pair = Connected();
    const int fd = std::move(pair.client).Release();
    ASSERT_GE(fd, 0);
    ASSERT_EQ(send(fd, "raw", 3, 0), 3);
    auto again = TcpStream::Adopt(fd);
    ASSERT_TRUE(again.ok()) << again.status();
    ASSERT_TRUE(again->Write(" fish").ok());
    again->Close();
    std::string got(8, '\0');
    ASSERT_TRUE(ReadFull(pair.server, got).ok());
    EXPECT_EQ(got, "raw fish");
  });
}

TEST_P(StreamTest, OnlyStreamSocketsAreAdopted) {
  Run([] {
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Adopt(-1).status()));
    const RawSocket file(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Adopt(file.fd()).status()));
    const RawSocket datagrams(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    EXPECT_TRUE(absl::IsInvalidArgument(TcpStream::Adopt(datagrams.fd()).status()));
    StreamPair pair = Connected();
    EXPECT_TRUE(absl::IsAlreadyExists(TcpStream::Adopt(pair.client.fd()).status()));
    ASSERT_TRUE(pair.client.Write("x").ok());
    char byte[1];
    EXPECT_TRUE(pair.server.Read(byte).ok()) << "it is none the worse for it";
    const int unconnected = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    auto stream = TcpStream::Adopt(unconnected);
    ASSERT_TRUE(stream.ok()) << stream.status();
    const absl::Status status = stream->Read(byte).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ErrnoOf(status), ENOTCONN);
    EXPECT_TRUE(absl::IsUnavailable(stream->Write("x").status));
  });
}

// Whoever reads from a stream that is closed must not get bytes of the next one with the same number.
TEST_P(StreamTest, AReusedNumberIsNeverTouched) {
  Run([] {
    for (int i = 0; i < 100; ++i) {
      StreamPair old_pair = Connected();
      const int number = old_pair.client.fd();
      auto reader = fiber::Spawn([&] {
        char buffer[8];
        return old_pair.client.Read(buffer).status();
      });
      if (i % 2 == 0) WaitUntilParked(reader);
      old_pair.client.Close();
      StreamPair pair = Connected();
      const bool is_reused = pair.client.fd() == number || pair.server.fd() == number;
      ASSERT_TRUE(pair.client.Write("for the server").ok());
      ASSERT_TRUE(pair.server.Write("for the client").ok());
      const absl::Status status = reader.Join();
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status << is_reused;
      std::string got(14, '\0');
      ASSERT_TRUE(ReadFull(pair.server, got).ok());
      EXPECT_EQ(got, "for the server");
      ASSERT_TRUE(ReadFull(pair.client, got).ok());
      EXPECT_EQ(got, "for the client");
    }
  });
}

TEST_P(StreamTest, ADuplicateLivesOnWithoutDisturbingAnybody) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    RawSocket duplicate(dup(pair.stream.fd()));
    ASSERT_TRUE(pair.stream.Write("x").ok());
    pair.stream.Close();
    // Its events no longer come to us: the record is used again for other streams meanwhile.
    for (int i = 0; i < 20; ++i) {
      pair.peer.Send("for the duplicate");
      StreamPair other = Connected();
      auto reader = fiber::Spawn([&] {
        char buffer[8];
        return other.client.Read(buffer, absl::Milliseconds(2)).status();
      });
      EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    }
    EXPECT_EQ(pair.peer.Receive(1), "x");
  });
}

TEST_P(StreamTest, CloseRacingReadsAndWritesFromAllSides) {
  Run([] {
    for (int i = 0; i < 200; ++i) {
      auto pair = std::make_shared<StreamPair>(Connected());
      std::vector<fiber::JoinHandle<void>> fibers;
      for (int j = 0; j < 2; ++j) {
        fibers.push_back(fiber::Spawn([pair] {
          char buffer[100];
          while (pair->client.Read(buffer).ok()) {
          }
        }));
        fibers.push_back(fiber::Spawn([pair] {
          while (pair->client.Write("ping").ok()) fiber::Yield();
        }));
        fibers.push_back(fiber::Spawn([pair] {
          while (pair->server.Write("pong").ok()) fiber::Yield();
        }));
        fibers.push_back(fiber::Spawn([pair, i] {
          for (int k = 0; k < i % 5; ++k) fiber::Yield();
          pair->client.SetReadDeadline(absl::Seconds(1));
          pair->client.Close();
          pair->server.Close();
        }));
      }
      for (auto& handle : fibers) handle.Join();
    }
  });
}

TEST_P(StreamTest, TenThousandConnectionsOneAfterAnotherLeaveNothing) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    auto server = fiber::Spawn([&] {
      for (;;) {
        auto stream = listener.Accept();
        if (!stream.ok()) return;
        char byte[1];
        if (stream->Read(byte).ok()) (void)stream->Write({byte, 1});
      }
    });
    // The kernel closes a socket's last reference at its own leisure, on other threads too.
    const int before = OpenDescriptors();
    for (int i = 0; i < 10'000; ++i) {
      auto stream = TcpStream::Connect(listener.local());
      ASSERT_TRUE(stream.ok()) << stream.status() << " at " << i;
      // The other side closes first and keeps the port for a while: reset, so that ports suffice.
      const linger hard{1, 0};
      ASSERT_EQ(setsockopt(stream->fd(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard), 0);
      char byte[1] = {'x'};
      ASSERT_TRUE(stream->Write({byte, 1}).ok());
      ASSERT_TRUE(stream->Read(byte).ok());
    }
    EXPECT_LE(OpenDescriptors(), before + 3);
    EXPECT_LE(netpoll::internal::DescriptorSlab::CountInUse(), 4u);
    listener.Close();
    server.Join();
  });
}

// Not over several numbers of workers: it is the kernel that works here.
TEST(LargeWriteTest, OneWriteOfMoreThanAGibibyteAgainstASlowReader) {
  constexpr size_t kSize = tests::Scaled((size_t{1} << 30) + 12345);
  void* zeroes = mmap(nullptr, kSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(zeroes, MAP_FAILED);
  sched::Run({.workers = 2}, [&, zeroes] {
    StreamPair pair = Connected();
    auto writer = fiber::Spawn([&] {
      const IoResult sent = pair.client.Write({static_cast<const char*>(zeroes), kSize});
      pair.client.Close();
      return sent;
    });
    WaitUntilParked(writer);  // the reader comes late…
    std::string buffer(1 << 20, '\1');
    size_t total = 0;
    for (int i = 0;; ++i) {
      if (i % 64 == 0) WaitUntilParked(writer);  // …and lets the writer fill up again
      const auto n = pair.server.Read(buffer);
      if (absl::IsOutOfRange(n.status())) break;
      ASSERT_TRUE(n.ok()) << n.status();
      total += *n;
      ASSERT_EQ(buffer[0], 0);
      ASSERT_EQ(buffer[*n - 1], 0);
    }
    EXPECT_EQ(total, kSize);
    const IoResult sent = writer.Join();
    EXPECT_TRUE(sent.ok()) << sent.status;
    EXPECT_EQ(sent.bytes, kSize);
  });
  munmap(zeroes, kSize);
}

}  // namespace
}  // namespace netpoll_test
