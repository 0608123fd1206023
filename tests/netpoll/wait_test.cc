// SPDX-License-Identifier: Apache-2.0
#include "netpoll/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using fiber::Deadline;
using netpoll::ErrnoOf;
using netpoll::WaitReadable;
using netpoll::WaitWritable;

class WaitTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(WaitTest);

struct Pipe {
  Pipe() {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    out = RawSocket(fds[0]);
    in = RawSocket(fds[1]);
  }
  void Write(std::string_view data) {
    EXPECT_EQ(write(in.fd(), data.data(), data.size()), static_cast<ssize_t>(data.size()));
  }
  RawSocket out;
  RawSocket in;
};

TEST_P(WaitTest, ReadinessOfAPipe) {
  Run([] {
    Pipe pipe;
    EXPECT_TRUE(WaitWritable(pipe.in.fd()).ok());
    EXPECT_TRUE(absl::IsDeadlineExceeded(WaitReadable(pipe.out.fd(), absl::Milliseconds(5))));
    auto reader = fiber::Spawn([&] { return WaitReadable(pipe.out.fd()); });
    WaitUntilParked(reader);
    pipe.Write("x");
    EXPECT_TRUE(reader.Join().ok());
    EXPECT_TRUE(WaitReadable(pipe.out.fd()).ok()) << "it is a level: still there";
    char byte;
    ASSERT_EQ(read(pipe.out.fd(), &byte, 1), 1);
    auto end = fiber::Spawn([&] { return WaitReadable(pipe.out.fd()); });
    WaitUntilParked(end);
    pipe.in.Close();
    EXPECT_TRUE(end.Join().ok()) << "the end is something to read";
  });
}

TEST_P(WaitTest, AFullPipeBecomesWritable) {
  Run([] {
    Pipe pipe;
    const std::string chunk(4096, 'x');
    while (write(pipe.in.fd(), chunk.data(), chunk.size()) > 0) {
    }
    ASSERT_EQ(errno, EAGAIN);
    auto writer = fiber::Spawn([&] { return WaitWritable(pipe.in.fd()); });
    WaitUntilParked(writer);
    std::string sink(1 << 20, '\0');
    ASSERT_GT(read(pipe.out.fd(), sink.data(), sink.size()), 0);
    EXPECT_TRUE(writer.Join().ok());
  });
}

TEST_P(WaitTest, SeveralWaitForOneDescriptor) {
  Run([] {
    const RawSocket event(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    std::vector<fiber::JoinHandle<absl::Status>> waiting;
    for (int i = 0; i < 5; ++i) {
      waiting.push_back(fiber::Spawn([&] { return WaitReadable(event.fd()); }));
    }
    for (auto& handle : waiting) WaitUntilParked(handle);
    const uint64_t one = 1;
    ASSERT_EQ(write(event.fd(), &one, sizeof one), 8);
    for (auto& handle : waiting) EXPECT_TRUE(handle.Join().ok());
  });
}

TEST_P(WaitTest, DeadlinesAndCancellationComeFirst) {
  Run([] {
    Pipe pipe;
    pipe.Write("x");
    EXPECT_TRUE(absl::IsDeadlineExceeded(WaitReadable(pipe.out.fd(), Deadline::AtNanos(1))));
    Pipe empty;
    auto reader = fiber::Spawn([&] { return WaitReadable(empty.out.fd()); });
    WaitUntilParked(reader);
    reader.Cancel();
    EXPECT_TRUE(absl::IsCancelled(reader.Join()));
  });
}

TEST_P(WaitTest, FilesAreAlwaysReady) {
  Run([] {
    const RawSocket file(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
    EXPECT_TRUE(WaitReadable(file.fd()).ok());
  });
}

TEST_P(WaitTest, ANumberThatIsNoDescriptorIsInvalid) {
  Run([] {
    for (const int fd : {-1, 1 << 20}) {
      const absl::Status status = WaitReadable(fd, absl::Seconds(1));
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_EQ(ErrnoOf(status), EBADF);
    }
  });
}

TEST_P(WaitTest, ANumberGivenOutAnewMeanwhileIsNotHarmed) {
  Run([] {
    Pipe pipe;
    auto reader = fiber::Spawn([&] { return WaitReadable(pipe.out.fd(), absl::Milliseconds(20)); });
    WaitUntilParked(reader);
    pipe.out.Close();
    StreamPair pair = Connected();  // takes the number
    EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    auto echo = fiber::Spawn([&] {
      char byte[1];
      return pair.server.Read(byte).ok();
    });
    WaitUntilParked(echo);
    ASSERT_TRUE(pair.client.Write("x").ok());
    EXPECT_TRUE(echo.Join());
  });
}

TEST(PlainThreadWaitTest, BlocksTheThread) {
  Pipe pipe;
  EXPECT_TRUE(absl::IsDeadlineExceeded(WaitReadable(pipe.out.fd(), absl::Milliseconds(5))));
  std::thread writer([&] { pipe.Write("x"); });
  EXPECT_TRUE(WaitReadable(pipe.out.fd()).ok());
  writer.join();
  EXPECT_TRUE(WaitWritable(pipe.in.fd(), absl::Seconds(5)).ok());
  for (const int fd : {-1, 1 << 20}) {
    const absl::Status status = WaitReadable(fd);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(ErrnoOf(status), EBADF);
  }
}

}  // namespace
}  // namespace netpoll_test
