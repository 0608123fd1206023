// SPDX-License-Identifier: Apache-2.0
#include "netpoll/select.h"

#include <atomic>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/clause.h"
#include "fiber/select.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using netpoll::OnAcceptable;
using netpoll::OnReadable;
using netpoll::TcpStream;

class SelectTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(SelectTest);

// What a select of one stream has told its handler.
absl::Status WaitFor(TcpStream& stream) {
  absl::Status told = absl::UnknownError("no handler was called");
  auto which = fiber::Select(OnReadable(stream, [&](absl::Status status) { told = status; }));
  return which.ok() ? told : which.status();
}

std::string ReadSome(TcpStream& stream) {
  char buffer[64];
  auto n = stream.Read(buffer, absl::Seconds(60));
  return n.ok() ? std::string(buffer, *n) : n.status().ToString();
}

TEST_P(SelectTest, DataThatIsThereAndDataThatComes) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    pair.peer.Send("one");
    EXPECT_TRUE(WaitFor(pair.stream).ok());
    EXPECT_EQ(ReadSome(pair.stream), "one");
    for (int i = 0; i < 100; ++i) {
      auto waiter = fiber::Spawn([&] { return WaitFor(pair.stream); });
      if (i % 2 == 0) WaitUntilParked(waiter);
      pair.peer.Send("x");
      EXPECT_TRUE(waiter.Join().ok());
      EXPECT_EQ(ReadSome(pair.stream), "x");
    }
  });
}

// A short read has taken all there was, and the stream remembers; the select takes the news of what came after.
TEST_P(SelectTest, WhatASelectHasSeenIsReadWithoutFurtherNews) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    for (int i = 0; i < 50; ++i) {
      pair.peer.Send("ab");
      EXPECT_EQ(ReadSome(pair.stream), "ab");
      pair.peer.Send("cd");
      EXPECT_TRUE(WaitFor(pair.stream).ok());
      EXPECT_TRUE(WaitFor(pair.stream).ok()) << "it is a level: still there";
      EXPECT_EQ(ReadSome(pair.stream), "cd");
    }
  });
}

TEST_P(SelectTest, TheEndOfAStreamAndAResetAreNews) {
  Run([] {
    RawPair ended = ConnectedToRaw();
    auto waiter = fiber::Spawn([&] { return WaitFor(ended.stream); });
    WaitUntilParked(waiter);
    ended.peer.Close();
    EXPECT_TRUE(waiter.Join().ok());
    RawPair reset = ConnectedToRaw();
    auto other = fiber::Spawn([&] { return WaitFor(reset.stream); });
    WaitUntilParked(other);
    reset.peer.Reset();
    EXPECT_TRUE(other.Join().ok());
  });
}

TEST_P(SelectTest, OtherClausesWinAndLeaveTheSocketAsItWas) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    fiber::Channel<int> numbers;
    for (int i = 0; i < 100; ++i) {
      int got = -1;
      auto selector = fiber::Spawn([&] {
        return fiber::Select(OnReadable(pair.stream, [&](absl::Status) { got = -2; }),
                             fiber::OnReceive(numbers, [&](int n) { got = n; }));
      });
      if (i % 2 == 0) WaitUntilParked(selector);
      EXPECT_TRUE(numbers.Send(i).ok());
      auto which = selector.Join();
      ASSERT_TRUE(which.ok()) << which.status();
      EXPECT_EQ(*which, 1u);
      EXPECT_EQ(got, i);
    }
    char byte[1];
    EXPECT_TRUE(
        absl::IsDeadlineExceeded(pair.stream.Read(byte, absl::Milliseconds(1)).status()));
    pair.peer.Send("still");
    EXPECT_EQ(ReadSome(pair.stream), "still");
  });
}

TEST_P(SelectTest, TheFirstOfManySockets) {
  Run([] {
    std::vector<RawPair> pairs;
    for (int i = 0; i < 20; ++i) pairs.push_back(ConnectedToRaw());
    for (size_t chosen = 0; chosen < pairs.size(); ++chosen) {
      fiber::ClauseList clauses;
      for (RawPair& pair : pairs) {
        clauses.Add(OnReadable(pair.stream, [](absl::Status status) { EXPECT_TRUE(status.ok()); }));
      }
      auto selector = fiber::Spawn([&] { return fiber::Select(clauses); });
      if (chosen % 2 == 0) WaitUntilParked(selector);
      pairs[chosen].peer.Send("x");
      auto which = selector.Join();
      ASSERT_TRUE(which.ok()) << which.status();
      EXPECT_EQ(*which, chosen);
      EXPECT_EQ(ReadSome(pairs[chosen].stream), "x");
    }
  });
}

TEST_P(SelectTest, CloseEndsTheWaitOfWhoHasTheStreamAndOfWhoIsQueuedForIt) {
  Run([] {
    for (int i = 0; i < 20; ++i) {
      RawPair pair = ConnectedToRaw();
      auto first = fiber::Spawn([&] { return WaitFor(pair.stream); });
      auto second = fiber::Spawn([&] { return WaitFor(pair.stream); });
      if (i % 2 == 0) {
        WaitUntilParked(first);
        WaitUntilParked(second);
      }
      pair.stream.Close();
      EXPECT_TRUE(absl::IsFailedPrecondition(first.Join()));
      EXPECT_TRUE(absl::IsFailedPrecondition(second.Join()));
      EXPECT_TRUE(absl::IsFailedPrecondition(WaitFor(pair.stream)));
    }
    TcpStream none;
    EXPECT_TRUE(absl::IsFailedPrecondition(WaitFor(none)));
  });
}

TEST_P(SelectTest, TheStreamsReadDeadlineIsTheClauses) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    pair.stream.SetReadDeadline(absl::Milliseconds(2));
    EXPECT_TRUE(absl::IsDeadlineExceeded(WaitFor(pair.stream)));
    EXPECT_TRUE(absl::IsDeadlineExceeded(WaitFor(pair.stream))) << "it has passed";
    pair.stream.SetReadDeadline({});
    auto waiter = fiber::Spawn([&] { return WaitFor(pair.stream); });
    WaitUntilParked(waiter);
    pair.stream.SetReadDeadline(absl::Hours(1));  // looks again, and waits on
    pair.stream.SetReadDeadline(absl::Milliseconds(2));
    EXPECT_TRUE(absl::IsDeadlineExceeded(waiter.Join()));
    pair.stream.SetReadDeadline({});
    pair.peer.Send("x");
    EXPECT_TRUE(WaitFor(pair.stream).ok());
  });
}

TEST_P(SelectTest, CancellationEndsTheSelectAndNoHandlerIsCalled) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    for (int i = 0; i < 20; ++i) {
      auto waiter = fiber::Spawn([&] { return WaitFor(pair.stream); });
      auto queued = fiber::Spawn([&] { return WaitFor(pair.stream); });
      if (i % 2 == 0) WaitUntilParked(waiter);
      waiter.Cancel();
      queued.Cancel();
      EXPECT_TRUE(absl::IsCancelled(waiter.Join()));
      EXPECT_TRUE(absl::IsCancelled(queued.Join()));
    }
    pair.peer.Send("x");
    EXPECT_EQ(ReadSome(pair.stream), "x");
  });
}

// Who reads waits behind the select, and the select behind who reads; neither misses what comes.
TEST_P(SelectTest, ReadersAndSelectsTakeTurns) {
  Run([] {
    RawPair pair = ConnectedToRaw();
    constexpr int kBytes = 200;
    int taken = 0;  // under the order of the stream's reads
    fiber::Event stop;
    const auto take = [&](absl::Duration patience = absl::Milliseconds(1)) {
      char byte[1];
      return pair.stream.Read(byte, patience).ok();
    };
    auto reader = fiber::Spawn([&] {
      int mine = 0;
      while (!stop.is_set()) mine += take();
      return mine;
    });
    std::vector<fiber::JoinHandle<int>> selectors;
    for (int i = 0; i < 3; ++i) {
      selectors.push_back(fiber::Spawn([&] {
        int mine = 0;
        for (bool is_on = true; is_on;) {
          auto which = fiber::Select(
              OnReadable(pair.stream, [&](absl::Status status) { mine += status.ok() && take(); }),
              fiber::OnEvent(stop, [&] { is_on = false; }));
          EXPECT_TRUE(which.ok());
        }
        return mine;
      }));
    }
    for (int i = 0; i < kBytes; ++i) {
      pair.peer.Send("x");
      fiber::Yield();
    }
    // All of it is taken by somebody, or is still there.
    for (int i = 0; i < 100; ++i) fiber::Yield();
    stop.Set();
    taken += reader.Join();
    for (auto& each : selectors) taken += each.Join();
    while (taken < kBytes && take(absl::Seconds(10))) ++taken;
    EXPECT_EQ(taken, kBytes);
  });
}

// Does something while the select links its clauses.
class WhileLinking final : public fiber::internal::Clause {
 public:
  explicit WhileLinking(std::function<void()> once) : once_(std::move(once)) {}
  bool TryLink(fiber::internal::Wait&) override {
    if (once_) std::exchange(once_, nullptr)();
    return true;
  }
  absl::Status Finish(uint32_t) override { return absl::OkStatus(); }

 private:
  std::function<void()> once_;
};

// Another clause ends the wait just when the select has got a flow that another reader gave up: there may be more to read, and no
// further news of it.
TEST(SelectLinkTest, WhatAReaderLeavesIsSeenThoughAnotherClauseIsLookedAtFirst) {
  sched::Run({.workers = 2}, [] {
    RawPair x = ConnectedToRaw();
    RawPair y = ConnectedToRaw();
    std::atomic<bool> has_read{false};
    auto reader = fiber::Spawn([&] {
      char byte[1];
      EXPECT_TRUE(y.stream.Read(byte).ok());
      has_read = true;
    });
    WaitUntilParked(reader);
    const auto which = fiber::Select(OnReadable(x.stream, [](const absl::Status&) {}), WhileLinking([&] {
                                       y.peer.Send("ab");
                                       while (!has_read) {
                                       }
                                       x.stream.SetReadDeadline(absl::Seconds(1000));
                                     }),
                                     OnReadable(y.stream, [](const absl::Status& status) { EXPECT_TRUE(status.ok()); }),
                                     fiber::OnDeadline(absl::Seconds(10), [] {}));
    EXPECT_EQ(which.value(), 2u);
    reader.Join();
  });
}

TEST_P(SelectTest, SeveralAcceptByEventAndStopByAnother) {
  Run([] {
    netpoll::TcpListener listener = ListenOnLoopback();
    fiber::Event stop;
    std::vector<fiber::JoinHandle<int>> acceptors;
    for (int i = 0; i < 4; ++i) {
      acceptors.push_back(fiber::Spawn([&] {
        int accepted = 0;
        for (bool is_on = true; is_on;) {
          auto which = fiber::Select(OnAcceptable(listener,
                                                  [&](absl::Status status) {
                                                    EXPECT_TRUE(status.ok()) << status;
                                                    auto stream = listener.Accept(absl::Milliseconds(1));
                                                    accepted += stream.ok();
                                                  }),
                                     fiber::OnEvent(stop, [&] { is_on = false; }));
          EXPECT_TRUE(which.ok());
        }
        return accepted;
      }));
    }
    constexpr int kConnections = 100;
    for (int i = 0; i < kConnections; ++i) {
      auto stream = TcpStream::Connect(listener.local());
      ASSERT_TRUE(stream.ok()) << stream.status();
      char byte[1];
      auto n = stream->Read(byte, absl::Seconds(60));  // closed as soon as it is accepted
      EXPECT_TRUE(absl::IsOutOfRange(n.status()) || absl::IsUnavailable(n.status())) << n.status();
    }
    stop.Set();
    int accepted = 0;
    for (auto& each : acceptors) accepted += each.Join();
    EXPECT_EQ(accepted, kConnections);
  });
}

}  // namespace
}  // namespace netpoll_test
