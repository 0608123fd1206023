// SPDX-License-Identifier: Apache-2.0
//
// Calls that never wait: they let others run, and can be ended.
#include <sys/socket.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/context.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using fiber::Deadline;
using netpoll::IoResult;
using netpoll::TcpListener;
using netpoll::TcpStream;

class FairnessTest : public SocketTest {
 protected:
  // Without spare threads, which would go on where the worker is to stand still.
  template <class F>
  static void Run(F body) {
    sched::Run({.workers = GetParam(), .max_threads = GetParam()}, std::move(body));
  }

  // Does `step`, which does not wait, over and over until others have had their turn: soon, where there is but one worker.
  // Another worker may take its time.
  template <class F>
  static void RepeatUntilOthersRan(F step) {
    std::atomic<bool> has_run{false};
    auto other = fiber::Spawn([&] { has_run.store(true, std::memory_order_relaxed); });
    for (int i = 0; i < kSteps && !has_run.load(std::memory_order_relaxed); ++i) step();
    if (GetParam() == 1) {
      EXPECT_TRUE(has_run.load(std::memory_order_relaxed));
    }
    other.Join();
  }
  static constexpr int kSteps = 100;
};
INSTANTIATE_SOCKET_TEST(FairnessTest);

TEST_P(FairnessTest, ReadsAndWrites) {
  Run([] {
    StreamPair pair = Connected();
    char byte[1];
    RepeatUntilOthersRan([&] { ASSERT_TRUE(pair.client.Write("x").ok()); });
    ASSERT_TRUE(pair.client.Write(std::string(kSteps, 'x')).ok());
    RepeatUntilOthersRan([&] { ASSERT_TRUE(pair.server.Read(byte).ok()); });
    char letter = 'x';
    const iovec piece{&letter, 1};
    RepeatUntilOthersRan([&] { ASSERT_TRUE(pair.client.Writev({&piece, 1}).ok()); });
  });
}

TEST_P(FairnessTest, PastDeadlines) {
  Run([] {
    StreamPair pair = Connected();
    const Deadline past = Deadline::AtNanos(1);
    char byte[1];
    RepeatUntilOthersRan([&] { ASSERT_FALSE(pair.server.Read(byte, past).ok()); });
    RepeatUntilOthersRan([&] { ASSERT_FALSE(pair.server.Write("x", past).ok()); });
  });
}

TEST_P(FairnessTest, ConnectionsAreMadeAndAccepted) {
  Run([] {
    TcpListener listener = ListenOnLoopback();
    std::vector<TcpStream> clients;
    RepeatUntilOthersRan([&] {
      auto client = TcpStream::Connect(listener.local());
      ASSERT_TRUE(client.ok()) << client.status();
      clients.push_back(*std::move(client));
    });
    while (clients.size() < kSteps) clients.push_back(*TcpStream::Connect(listener.local()));
    RepeatUntilOthersRan([&] { ASSERT_TRUE(listener.Accept().ok()); });
  });
}

TEST_P(FairnessTest, ADescriptorThatIsAlwaysReady) {
  Run([] {
    StreamPair pair = Connected();
    RepeatUntilOthersRan([&] { ASSERT_TRUE(netpoll::WaitWritable(pair.client.fd()).ok()); });
  });
}

// Sockets that are always ready: readers that take a byte at a time of a stream that never runs dry, their writers, and
// pairs that throw a byte to and fro. 96 fibers, each of which has up to kOperationsATurn calls a turn.
class Flood {
 public:
  Flood() {
    for (int i = 0; i < 32; ++i) {
      StreamPair pair = Connected();
      Start([this, stream = std::move(pair.server)]() mutable {
        char byte[1];
        while (Step() && stream.Read(byte).ok()) continue;
      });
      Start([this, stream = std::move(pair.client)]() mutable {
        const std::string much(64 << 10, 'x');
        while (Step() && stream.Write(much).ok()) continue;
      });
    }
    for (int i = 0; i < 16; ++i) {
      StreamPair pair = Connected();
      for (TcpStream* side : {&pair.client, &pair.server}) {
        Start([this, stream = std::move(*side)]() mutable {
          char byte[1];
          while (Step() && stream.Write("x").ok() && stream.Read(byte).ok()) continue;
        });
      }
    }
    for (int i = 0; i < 10; ++i) fiber::Yield();  // they are under way
  }
  ~Flood() { is_stopped_.store(true); }  // then each closes its end, and the handles join

  // Steps are counted from here on, or from when a deadline has passed.
  void Count() { since_.store(steps_.load()); }
  void CountFrom(absl::Duration deadline) { count_from_ns_.store(absl::ToInt64Nanoseconds(deadline)); }
  uint64_t counted() const { return steps_.load() - since_.load(); }

 private:
  // Goes on only so long that whoever waits for a turn has been forgotten.
  bool Step() {
    const uint64_t steps = steps_.fetch_add(1) + 1;
    const int64_t from = count_from_ns_.load();
    if (from != 0 && from > absl::ToInt64Nanoseconds(fiber::Now())) since_.store(steps);
    if (counted() > 1'000'000) is_stopped_.store(true);
    return !is_stopped_.load();
  }

  template <class F>
  void Start(F fn) {
    fibers_.push_back(fiber::Spawn(std::move(fn)));
  }

  std::atomic<bool> is_stopped_{false};
  std::atomic<uint64_t> steps_{0};
  std::atomic<uint64_t> since_{0};
  std::atomic<int64_t> count_from_ns_{0};
  std::vector<fiber::JoinHandle<void>> fibers_;
};

// Without it: connections that keep their buffers full take the worker for themselves.
TEST_P(FairnessTest, AFloodOfReadySocketsLeavesOthersTheirTurn) {
  Run([] {
    RawPair other = ConnectedToRaw();
    Flood flood;
    uint64_t waited = 0;
    fiber::Semaphore ended(0);
    const auto arrive = [&] {
      waited = flood.counted();
      ended.Release();
    };
    // Counts from when `start` has done its part, which it does while the worker stands still, if it is the only one.
    const auto expect_a_turn = [&](const char* guest, auto start) {
      flood.Count();
      std::thread(start).join();
      EXPECT_TRUE(ended.Acquire().ok());
      // Three times round all of them, at kOperationsATurn each.
      if (GetParam() == 1) {
        EXPECT_LT(waited, 3u * 96 * fiber::internal::kOperationsATurn) << guest;
      }
    };

    expect_a_turn("spawned outside", [&] { fiber::Go(arrive); });

    fiber::Event unparked;
    auto parked = fiber::Spawn([&] {
      EXPECT_TRUE(unparked.Wait().ok());
      arrive();
    });
    WaitUntilParked(parked);
    expect_a_turn("unparked outside", [&] { unparked.Set(); });

    auto reader = fiber::Spawn([&] {
      char byte[1];
      EXPECT_TRUE(other.stream.Read(byte).ok());
      arrive();
    });
    WaitUntilParked(reader);
    expect_a_turn("another socket", [&] { other.peer.Send("x"); });

    auto yielder = fiber::Spawn([&] {
      fiber::Yield();
      flood.Count();
      fiber::Yield();
      arrive();
    });
    expect_a_turn("yielding", [] {});

    // 1/64 late is allowed.
    const absl::Duration slept = absl::Milliseconds(1);
    flood.CountFrom(fiber::Now() + slept + slept / 64);
    auto sleeper = fiber::Spawn([&] {
      EXPECT_TRUE(fiber::Sleep(slept).ok());
      arrive();
    });
    expect_a_turn("sleeping", [] {});
  });
}

// A write of a tebibyte, to a peer who keeps up: as good as endless.
class EndlessWrite {
 public:
  EndlessWrite() : megabyte_(1 << 20, 'x'), pieces_(1 << 20, iovec{megabyte_.data(), megabyte_.size()}) {
    reader_ = std::thread([this] {
      std::string buffer(1 << 20, '\0');
      ssize_t n;
      while ((n = recv(pair_.peer.fd(), buffer.data(), buffer.size(), MSG_TRUNC)) > 0) {
        received_.fetch_add(static_cast<size_t>(n), std::memory_order_relaxed);
      }
    });
    writer_ = fiber::Spawn([this] { return pair_.stream.Writev(pieces_); });
    // Others run all the while.
    while (received_.load(std::memory_order_relaxed) < size_t{32} << 20) fiber::Yield();
  }
  ~EndlessWrite() {
    pair_.stream.Close();
    reader_.join();
  }
  TcpStream& stream() { return pair_.stream; }
  fiber::JoinHandle<IoResult>& writer() { return writer_; }

  void ExpectEndedBy(absl::StatusCode code) {
    const IoResult sent = writer_.Join();
    EXPECT_EQ(sent.status.code(), code) << sent.status;
    EXPECT_GE(sent.bytes, size_t{32} << 20);
    EXPECT_LT(sent.bytes, megabyte_.size() * pieces_.size());
    stream().Close();
    reader_.join();
    reader_ = std::thread([] {});
    EXPECT_EQ(received_.load(std::memory_order_relaxed), sent.bytes);
  }

 private:
  std::string megabyte_;
  std::vector<iovec> pieces_;
  RawPair pair_ = ConnectedToRaw();
  std::atomic<size_t> received_{0};
  std::thread reader_;
  fiber::JoinHandle<IoResult> writer_;
};

TEST_P(FairnessTest, AWriteToAPeerThatKeepsUpIsEndedByClose) {
  Run([] {
    EndlessWrite write;
    write.stream().Close();
    write.ExpectEndedBy(absl::StatusCode::kFailedPrecondition);
  });
}

TEST_P(FairnessTest, AWriteToAPeerThatKeepsUpIsCancelled) {
  Run([] {
    EndlessWrite write;
    write.writer().Cancel();
    write.ExpectEndedBy(absl::StatusCode::kCancelled);
  });
}

TEST_P(FairnessTest, AWriteToAPeerThatKeepsUpAndThoseBehindItHaveADeadline) {
  Run([] {
    EndlessWrite write;
    auto queued = fiber::Spawn([&] { return write.stream().Write("behind"); });
    WaitUntilParked(queued);
    write.stream().SetWriteDeadline(absl::ZeroDuration());
    const IoResult behind = queued.Join();
    EXPECT_TRUE(absl::IsDeadlineExceeded(behind.status)) << behind.status;
    EXPECT_EQ(behind.bytes, 0u);
    write.ExpectEndedBy(absl::StatusCode::kDeadlineExceeded);
  });
}

}  // namespace
}  // namespace netpoll_test
