// SPDX-License-Identifier: Apache-2.0
#include "netpoll/pipe.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/system_calls.h"
#include "fiber/select.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/select.h"
#include "netpoll/stream.h"
#include "sched/runtime.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"
#include "tests/scale.h"

namespace netpoll_test {
namespace {

using netpoll::ErrnoOf;
using netpoll::Pipe;
using netpoll::PipeStream;

class PipeTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(PipeTest);

Pipe MakePipe() {
  auto pipe = Pipe::Create();
  EXPECT_TRUE(pipe.ok()) << pipe.status();
  return *std::move(pipe);
}

std::string ReadSome(netpoll::Stream& stream) {
  char buffer[64];
  auto n = stream.Read(buffer, absl::Seconds(60));
  return n.ok() ? std::string(buffer, *n) : n.status().ToString();
}

TEST_P(PipeTest, WhatIsWrittenIsReadThenTheEnd) {
  Run([] {
    Pipe pipe = MakePipe();
    EXPECT_TRUE(pipe.writer.Write("one").ok());
    EXPECT_EQ(ReadSome(pipe.reader), "one");
    auto reader = fiber::Spawn([&] { return ReadSome(pipe.reader); });
    WaitUntilParked(reader);
    EXPECT_TRUE(pipe.writer.Write("two").ok());
    EXPECT_EQ(reader.Join(), "two");
    EXPECT_TRUE(pipe.writer.Write("three").ok());
    EXPECT_TRUE(pipe.writer.CloseWrite().ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(pipe.writer.Write("four").status));
    EXPECT_EQ(ReadSome(pipe.reader), "three");
    char byte;
    EXPECT_TRUE(absl::IsOutOfRange(pipe.reader.Read({&byte, 1}).status()));
    EXPECT_TRUE(absl::IsOutOfRange(pipe.reader.Read({&byte, 1}).status()));
  });
}

TEST_P(PipeTest, MegabytesGoThroughAtTheReadersPace) {
  Run([] {
    Pipe pipe = MakePipe();
    std::string data;
    for (size_t i = 0; data.size() < tests::Scaled(size_t{4} << 20); ++i) data += std::to_string(i);
    auto writer = fiber::Spawn([&] {
      netpoll::IoResult sent = pipe.writer.Write(data);
      pipe.writer.Close();
      return sent;
    });
    std::string back;
    char buffer[10'000];
    for (;;) {
      auto n = pipe.reader.Read(buffer);
      if (!n.ok()) break;
      back.append(buffer, *n);
    }
    const netpoll::IoResult sent = writer.Join();
    EXPECT_TRUE(sent.ok()) << sent.status;
    EXPECT_EQ(sent.bytes, data.size());
    EXPECT_EQ(back, data);
  });
}

constexpr int kPieces = tests::Scaled(5'000);

// A short read of a pipe does not mean that it is drained: a reader that takes it so sleeps on what is there.
TEST_P(PipeTest, SmallPiecesAreNeverSleptOn) {
  Run([] {
    Pipe pipe = MakePipe();
    auto writer = fiber::Spawn([&] {
      for (int i = 0; i < kPieces; ++i) {
        if (!pipe.writer.Write("x").ok()) return i;
        if (i % 3 == 0) fiber::Yield();
      }
      pipe.writer.Close();
      return kPieces;
    });
    EXPECT_EQ(Drain(pipe.reader), static_cast<size_t>(kPieces));
    EXPECT_EQ(writer.Join(), kPieces);
  });
}

TEST_P(PipeTest, AWriterWithoutAReaderIsToldAndNotKilled) {
  Run([] {
    Pipe pipe = MakePipe();
    auto writer = fiber::Spawn([&] { return pipe.writer.Write(MoreThanFits()); });
    WaitUntilParked(writer);
    pipe.reader.Close();
    const netpoll::IoResult sent = writer.Join();
    EXPECT_TRUE(absl::IsUnavailable(sent.status)) << sent.status;
    EXPECT_EQ(ErrnoOf(sent.status), EPIPE);
    EXPECT_GT(sent.bytes, 0u);
    EXPECT_EQ(ErrnoOf(pipe.writer.Write("x").status), EPIPE);
  });
}

TEST_P(PipeTest, APlainThreadIsNotKilledEitherAndKeepsItsSignals) {
  sched::Runtime runtime({.workers = GetParam()});
  Pipe pipe = runtime.Spawn([] { return MakePipe(); }).Join();
  pipe.reader.Close();
  EXPECT_EQ(ErrnoOf(pipe.writer.Write("x").status), EPIPE);
  sigset_t signals;
  ASSERT_EQ(sigpending(&signals), 0);
  EXPECT_EQ(sigismember(&signals, SIGPIPE), 0);
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &signals), 0);
  EXPECT_EQ(sigismember(&signals, SIGPIPE), 0);

  // One that was pending before stays so.
  sigset_t pipe_signal;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &pipe_signal, nullptr), 0);
  ASSERT_EQ(pthread_kill(pthread_self(), SIGPIPE), 0);
  EXPECT_EQ(ErrnoOf(pipe.writer.Write("x").status), EPIPE);
  ASSERT_EQ(sigpending(&signals), 0);
  EXPECT_EQ(sigismember(&signals, SIGPIPE), 1);
  int signal = 0;
  EXPECT_EQ(sigwait(&pipe_signal, &signal), 0);
  ASSERT_EQ(pthread_sigmask(SIG_UNBLOCK, &pipe_signal, nullptr), 0);
  pipe = Pipe();
}

TEST_P(PipeTest, DeadlinesCancellationAndCloseEndAWait) {
  Run([] {
    Pipe pipe = MakePipe();
    char byte;
    EXPECT_TRUE(absl::IsDeadlineExceeded(pipe.reader.Read({&byte, 1}, absl::Milliseconds(1)).status()));
    auto cancelled = fiber::Spawn([&] { return pipe.reader.Read({&byte, 1}).status(); });
    WaitUntilParked(cancelled);
    cancelled.Cancel();
    EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
    pipe.reader.SetReadDeadline(absl::ZeroDuration());
    EXPECT_TRUE(absl::IsDeadlineExceeded(pipe.reader.Read({&byte, 1}).status()));
    pipe.reader.SetReadDeadline(fiber::Deadline::Never());
    auto closed = fiber::Spawn([&] { return pipe.reader.Read({&byte, 1}).status(); });
    WaitUntilParked(closed);
    pipe.reader.Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(closed.Join()));
    EXPECT_EQ(pipe.reader.fd(), -1);
  });
}

TEST_P(PipeTest, TheWrongEndIsAnError) {
  Run([] {
    Pipe pipe = MakePipe();
    char byte;
    EXPECT_EQ(ErrnoOf(pipe.writer.Read({&byte, 1}).status()), EBADF);
    EXPECT_EQ(ErrnoOf(pipe.reader.Write("x").status), EBADF);
    EXPECT_TRUE(pipe.reader.CloseWrite().ok());
    EXPECT_TRUE(pipe.writer.Write("x").ok());
    EXPECT_EQ(ReadSome(pipe.reader), "x");
    PipeStream none;
    EXPECT_TRUE(absl::IsFailedPrecondition(none.Read({&byte, 1}).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(none.CloseWrite()));
  });
}

TEST_P(PipeTest, AnInheritedEndIsAdoptedAndAFileIsNot) {
  Run([] {
    int fds[2];
    ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
    auto reader = PipeStream::Adopt(fds[0]);
    ASSERT_TRUE(reader.ok()) << reader.status();
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    EXPECT_EQ(ReadSome(*reader), "x");
    close(fds[1]);
    const int fd = std::move(*reader).Release();
    EXPECT_EQ(fd, fds[0]);
    EXPECT_NE(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    close(fd);
    const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    EXPECT_TRUE(absl::IsInvalidArgument(PipeStream::Adopt(file).status()));
    close(file);
    EXPECT_EQ(ErrnoOf(PipeStream::Adopt(-1).status()), EBADF);
  });
  EXPECT_TRUE(absl::IsFailedPrecondition(Pipe::Create().status())) << "on a plain thread";
}

TEST_P(PipeTest, ASelectWaitsForAPipe) {
  Run([] {
    Pipe pipe = MakePipe();
    absl::Status told = absl::UnknownError("not called");
    auto waiter = fiber::Spawn([&] {
      return fiber::Select(netpoll::OnReadable(pipe.reader, [&](absl::Status status) { told = status; }));
    });
    WaitUntilParked(waiter);
    EXPECT_TRUE(pipe.writer.Write("x").ok());
    EXPECT_TRUE(waiter.Join().ok());
    EXPECT_TRUE(told.ok()) << told;
    EXPECT_EQ(ReadSome(pipe.reader), "x");
  });
}

TEST_P(PipeTest, RunningOutIsAStatusAndLeavesNothingBehind) {
  Run([] {
    MakePipe();
    const int before = OpenDescriptors();
    for (const Fault& fault : {Fault{Call::pipe2, EMFILE, 1}, Fault{Call::epoll_ctl, ENOSPC, 1, EPOLL_CTL_ADD},
                               Fault{Call::epoll_ctl, ENOSPC, 2, EPOLL_CTL_ADD}}) {
      const Faults faults(fault, {Call::kCount});
      auto pipe = Pipe::Create();
      EXPECT_TRUE(absl::IsResourceExhausted(pipe.status())) << pipe.status();
      EXPECT_EQ(ErrnoOf(pipe.status()), fault.error);
    }
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

// Makes the next read or write of one descriptor fail. Faults would not do: by the same calls workers wake each other.
class OneFailure {
 public:
  OneFailure(int fd, int error) {
    error_ = error;
    fd_ = fd;
    static const fiber::internal::SystemCalls table = [] {
      fiber::internal::SystemCalls calls = kKernel;
      calls.read = [](int of, void* buffer, size_t size) { return Fails(of) ? -1 : kKernel.read(of, buffer, size); };
      calls.write = [](int of, const void* data, size_t size) { return Fails(of) ? -1 : kKernel.write(of, data, size); };
      return calls;
    }();
    fiber::internal::system_calls.store(&table, std::memory_order_release);  // order: system-calls
  }
  ~OneFailure() {
    EXPECT_EQ(fd_.load(), -1) << "the call was not made";
    fiber::internal::system_calls.store(&kKernel, std::memory_order_release);  // order: system-calls
  }

 private:
  static constexpr const fiber::internal::SystemCalls& kKernel = fiber::internal::kKernel;
  static bool Fails(int fd) {
    if (!fd_.compare_exchange_strong(fd, -1)) return false;
    errno = error_;
    return true;
  }
  static inline std::atomic<int> fd_{-1};
  static inline std::atomic<int> error_{0};
};

TEST_P(PipeTest, AReadOrWriteThatFailsIsToldOfAndOneThatIsInterruptedIsMadeAgain) {
  Run([] {
    Pipe pipe = MakePipe();
    for (const int error : {EBADF, EFAULT, EINVAL, EIO, EISDIR, ENOSPC, EPERM, EINTR}) {
      SCOPED_TRACE(error);
      const auto check = [error](const absl::Status& status, absl::string_view start) {
        EXPECT_EQ(status.ok(), error == EINTR) << status;
        if (status.ok()) return;
        EXPECT_EQ(ErrnoOf(status), error) << status;
        EXPECT_TRUE(absl::StartsWith(status.message(), start)) << status;
      };
      {
        const OneFailure failure(pipe.writer.fd(), error);
        check(pipe.writer.Write("one").status, "write to a pipe: ");
      }
      if (error != EINTR) {
        EXPECT_TRUE(pipe.writer.Write("one").ok());
      }
      {
        const OneFailure failure(pipe.reader.fd(), error);
        char buffer[3];
        check(pipe.reader.Read(buffer).status(), "read from a pipe: ");
      }
      if (error != EINTR) {
        EXPECT_EQ(ReadSome(pipe.reader), "one");
      }
    }
  });
}

}  // namespace
}  // namespace netpoll_test
