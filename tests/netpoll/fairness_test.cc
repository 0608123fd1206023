// SPDX-License-Identifier: Apache-2.0
//
// Calls that never wait: they let others run, and can be ended.
#include <sys/socket.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
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
