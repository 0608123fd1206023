// SPDX-License-Identifier: Apache-2.0
//
// The poller: interrupts, deadlines, threads and runtimes that are not its own, and what outlives it.
#include "netpoll/internal/poller.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_reason.h"
#include "gtest/gtest.h"
#include "netpoll/internal/backend.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/tcp.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/netpoll/sockets.h"
#include "tests/scale.h"

namespace netpoll_test {
namespace {

using fiber::Deadline;
using fiber::internal::kNeverNs;
using fiber::internal::MonotonicNs;
using netpoll::ReadFull;
using netpoll::TcpListener;
using netpoll::TcpStream;
using netpoll::internal::Descriptor;
using netpoll::internal::Direction;
using netpoll::internal::FlowLock;
using netpoll::internal::Poller;

// A poller without a runtime: the test's threads poll.
class PollerTest : public testing::Test {
 protected:
  PollerTest() : poller_(*Poller::Create().value()) {}
  ~PollerTest() override {
    poller_.Stop();
    EXPECT_EQ(netpoll::internal::DescriptorSlab::CountInUse(), 0u);
    EXPECT_EQ(OpenDescriptors(), descriptors_);
  }

  const int descriptors_ = OpenDescriptors();
  Poller& poller_;
};

TEST_F(PollerTest, AnInterruptThatComesFirstIsKept) {
  poller_.Interrupt();
  poller_.Poll(kNeverNs);
}

TEST_F(PollerTest, APollThatDoesNotWaitDoesNotUseUpAnInterrupt) {
  poller_.Interrupt();
  for (int i = 0; i < 3; ++i) poller_.Poll(0);
  poller_.Poll(MonotonicNs());
  poller_.Poll(kNeverNs);
}

TEST_F(PollerTest, EachInterruptEndsOnePoll) {
  for (int round = 0; round < 50; ++round) {
    std::vector<std::thread> sleepers;
    for (int i = 0; i < 3; ++i) {
      sleepers.emplace_back([&] { poller_.Poll(kNeverNs); });
    }
    for (int i = 0; i < 3; ++i) poller_.Interrupt();
    for (std::thread& sleeper : sleepers) sleeper.join();
  }
}

// Whether the kernel has thread `id` of this process asleep.
bool IsAsleep(int id) {
  std::ifstream stat(absl::StrCat("/proc/self/task/", id, "/stat"));
  std::string line;
  std::getline(stat, line);
  const size_t name_end = line.rfind(')');
  return name_end + 2 < line.size() && line[name_end + 2] == 'S';
}

TEST_F(PollerTest, ABusyWorkerThatLooksDoesNotSwallowTheSleepersInterrupt) {
  std::atomic<bool> is_done{false};
  std::atomic<int> returns{0};
  std::atomic<int> sleeper_id{0};
  constexpr int kRounds = 3000;
  std::thread busy([&] {
    while (!is_done.load(std::memory_order_relaxed)) poller_.Poll(0);
  });
  std::thread sleeper([&] {
    sleeper_id.store(static_cast<int>(syscall(SYS_gettid)), std::memory_order_release);
    for (int i = 0; i < kRounds; ++i) {
      poller_.Poll(kNeverNs);
      returns.fetch_add(1, std::memory_order_release);
    }
  });
  while (sleeper_id.load(std::memory_order_acquire) == 0) std::this_thread::yield();
  for (int i = 0; i < kRounds; ++i) {
    // One that is lost leaves the sleeper asleep, and this waiting for it.
    while (returns.load(std::memory_order_acquire) < i) std::this_thread::yield();
    while (!IsAsleep(sleeper_id.load(std::memory_order_relaxed))) std::this_thread::yield();
    poller_.Interrupt();
  }
  sleeper.join();
  is_done.store(true, std::memory_order_relaxed);
  busy.join();
}

TEST_F(PollerTest, DeadlinesOfAHundredMicrosecondsAreHonoured) {
  int64_t best = INT64_MAX;
  for (int i = 0; i < 50; ++i) {
    const int64_t start = MonotonicNs();
    poller_.Poll(start + 100'000);
    const int64_t took = MonotonicNs() - start;
    EXPECT_GE(took, 100'000);
    best = std::min(best, took);
  }
  EXPECT_LT(best, 900'000) << "rounded up to milliseconds?";
}

TEST_F(PollerTest, EventsOfADescriptorWhoseRecordIsUsedAgainAreStale) {
  const int first = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
  auto descriptor = Descriptor::Create(poller_, first, false);
  ASSERT_TRUE(descriptor.ok());
  const uint64_t tag = (*descriptor)->tag();
  EXPECT_EQ(Descriptor::OfTag(tag), *descriptor);
  (*descriptor)->Drop();
  const int second = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  auto again = Descriptor::Create(poller_, second, false);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, *descriptor) << "the record is expected to be used again";
  EXPECT_NE((*again)->tag(), tag);
  (*again)->Drop();
}

TEST_F(PollerTest, APlainThreadWaitsForWhatAnotherPolls) {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  auto descriptor = Descriptor::Create(poller_, fd, false);
  ASSERT_TRUE(descriptor.ok());
  std::atomic<bool> is_done{false};
  std::thread polling([&] {
    while (!is_done.load(std::memory_order_relaxed)) poller_.Poll(kNeverNs);
  });
  constexpr int kRounds = 1000;
  std::thread writing([&] {
    for (int i = 0; i < kRounds; ++i) {
      const uint64_t one = 1;
      ASSERT_EQ(write(fd, &one, sizeof one), 8);
      std::this_thread::yield();
    }
  });
  uint64_t total = 0;
  while (total < kRounds) {
    FlowLock lock(**descriptor, Direction::kRead, fiber::WaitReason::kDescriptor, absl::Seconds(30));
    ASSERT_TRUE(lock.status().ok());
    lock.flow().slot.ClearReady();
    uint64_t value = 0;
    if (read(fd, &value, sizeof value) == 8) {
      total += value;
      continue;
    }
    const absl::Status status = lock.Await();
    ASSERT_TRUE(status.ok()) << status << " after " << total;
  }
  writing.join();
  is_done.store(true, std::memory_order_relaxed);
  poller_.Interrupt();
  polling.join();
  (*descriptor)->Drop();
}

TEST_F(PollerTest, NewsDoNotEndAPauseAndAreKept) {
  auto descriptor = Descriptor::Create(poller_, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), false);
  ASSERT_TRUE(descriptor.ok());
  std::atomic<bool> is_done{false};
  std::thread news([&] {
    while (!is_done.load(std::memory_order_relaxed)) {
      (*descriptor)->OnEvent(netpoll::internal::kReadable);
      std::this_thread::yield();
    }
  });
  {
    FlowLock lock(**descriptor, Direction::kRead, fiber::WaitReason::kDescriptor, Deadline::Never());
    for (int i = 0; i < 20; ++i) {
      lock.flow().slot.ClearReady();
      const Deadline until = absl::Milliseconds(2);
      EXPECT_TRUE(lock.Pause(until).ok());
      EXPECT_TRUE(until.is_past());
      EXPECT_TRUE(lock.flow().slot.is_ready());
    }
  }
  is_done.store(true, std::memory_order_relaxed);
  news.join();
  (*descriptor)->Drop();
}

TEST_F(PollerTest, NobodyBeginsToWaitInWhatIsBeingClosed) {
  constexpr int kRounds = 5000;
  std::atomic<Descriptor*> current{nullptr};
  std::atomic<int> round{0};
  std::thread closer([&] {
    for (int i = 1; i <= kRounds; ++i) {
      while (round.load(std::memory_order_acquire) < i) fiber::internal::CpuRelax();
      for (int spin = i * 7 % 300; spin > 0; --spin) fiber::internal::CpuRelax();
      current.load(std::memory_order_relaxed)->Close();
    }
  });
  for (int i = 1; i <= kRounds; ++i) {
    auto descriptor = Descriptor::Create(poller_, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), false);
    ASSERT_TRUE(descriptor.ok());
    current.store(*descriptor, std::memory_order_relaxed);
    round.store(i, std::memory_order_release);
    absl::Status status;
    {
      FlowLock lock(**descriptor, Direction::kRead, fiber::WaitReason::kDescriptor, absl::Seconds(20));
      status = lock.status();
      if (status.ok()) status = lock.Await();  // no news ever: nobody polls
    }
    ASSERT_TRUE(absl::IsFailedPrecondition(status)) << status << " in round " << i;
    (*descriptor)->Drop();
  }
  closer.join();
}

TEST(OrphanTest, SocketsOutliveTheirRuntime) {
  const int descriptors = OpenDescriptors();
  {
    std::optional<StreamPair> pair;
    std::optional<TcpListener> listener;
    sched::Run([&] {
      pair.emplace(Connected());
      listener.emplace(ListenOnLoopback());
    });
    char buffer[8];
    EXPECT_TRUE(absl::IsFailedPrecondition(pair->client.Read(buffer).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(listener->Accept().status()));
    ASSERT_TRUE(pair->client.Write("goes").ok()) << "what need not wait goes on";
    const auto n = pair->server.Read(buffer, absl::Seconds(10));
    EXPECT_TRUE(n.ok() || absl::IsFailedPrecondition(n.status())) << n.status();
    pair->server.Close();
    // In another runtime, too.
    sched::Run([&] { EXPECT_TRUE(absl::IsFailedPrecondition(listener->Accept().status())); });
  }
  EXPECT_EQ(OpenDescriptors(), descriptors);
  EXPECT_EQ(netpoll::internal::DescriptorSlab::CountInUse(), 0u);
}

TEST(OrphanTest, WhoeverWaitsWhenTheRuntimeEndsIsTold) {
  std::optional<StreamPair> pair;
  auto runtime = std::make_unique<sched::Runtime>(sched::RuntimeOptions{.workers = 1});
  runtime->Spawn([&] { pair.emplace(Connected()); }).Join();
  std::atomic<bool> is_reading{false};
  std::thread reader([&] {
    char buffer[8];
    is_reading.store(true);
    const absl::Status status = pair->client.Read(buffer).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  });
  while (!is_reading.load()) std::this_thread::yield();
  runtime.reset();
  reader.join();
}

TEST(OrphanTest, ARuntimeThatWasShutDownTellsThemToo) {
  std::optional<StreamPair> pair;
  std::optional<TcpListener> listener;
  sched::Runtime other({.workers = 2});
  sched::Runtime runtime({.workers = 2});
  runtime
      .Spawn([&] {
        pair.emplace(Connected());
        listener.emplace(ListenOnLoopback());
      })
      .Join();
  char buffers[2][8];
  auto acceptor = other.Spawn([&] { return listener->Accept().status(); });
  auto reader = other.Spawn([&] { return pair->client.Read(buffers[0]).status(); });
  WaitUntilParked(acceptor);
  WaitUntilParked(reader);
  std::thread thread([&] {
    const absl::Status status = pair->server.Read(buffers[1]).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  });
  ASSERT_TRUE(runtime.Shutdown(Deadline::Never()).ok());
  // It is not destroyed before they have ended.
  thread.join();
  EXPECT_TRUE(absl::IsFailedPrecondition(acceptor.Join()));
  EXPECT_TRUE(absl::IsFailedPrecondition(reader.Join()));
  EXPECT_TRUE(runtime.Shutdown(Deadline::Never()).ok());
}

TEST(OrphanTest, WhatIsThereIsReadThoughNobodyTellsOfIt) {
  std::optional<RawPair> pair;
  char buffer[64];
  {
    sched::Runtime runtime({.workers = 1});
    runtime
        .Spawn([&] {
          pair.emplace(ConnectedToRaw());
          pair->peer.Send("abc");
          const auto n = pair->stream.Read(buffer);  // all there is: the next one waits for news
          ASSERT_TRUE(n.ok()) << n.status();
          EXPECT_EQ(*n, 3u);
        })
        .Join();
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(pair->stream.Read(buffer).status()));
  pair->peer.Send("hello");
  const auto n = pair->stream.Read(buffer);
  ASSERT_TRUE(n.ok()) << n.status();
  EXPECT_EQ(*n, 5u);
  EXPECT_TRUE(absl::IsFailedPrecondition(pair->stream.Read(buffer).status()));
  pair->peer.Close();
  EXPECT_TRUE(absl::IsOutOfRange(pair->stream.Read(buffer).status()));
}

TEST(ForeignTest, APlainThreadCannotMakeASocket) {
  EXPECT_TRUE(absl::IsFailedPrecondition(TcpListener::Listen("127.0.0.1:0").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(TcpStream::Connect("127.0.0.1:1").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(TcpStream::Adopt(0).status()));
}

TEST(ForeignTest, PlainThreadsUseTheSocketsOfARuntime) {
  sched::Runtime runtime({.workers = 1});
  std::optional<TcpListener> listener;
  runtime.Spawn([&] { listener.emplace(ListenOnLoopback()); }).Join();
  RawSocket peer = RawSocket::ConnectTo(listener->local());
  auto stream = listener->Accept();  // the stream then is the listener's runtime's
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::thread other([&] {
    for (int i = 0; i < 500; ++i) {
      peer.Send("ping");
      ASSERT_EQ(peer.Receive(4), "pong");
    }
  });
  for (int i = 0; i < 500; ++i) {
    char buffer[4];
    ASSERT_TRUE(ReadFull(*stream, buffer).ok());
    ASSERT_TRUE(stream->Write("pong").ok());
  }
  other.join();
  char buffer[4];
  EXPECT_TRUE(absl::IsDeadlineExceeded(stream->Read(buffer, absl::Milliseconds(1)).status()));
  std::thread closer([&] { stream->Close(); });
  EXPECT_TRUE(absl::IsFailedPrecondition(stream->Read(buffer).status()));
  closer.join();
}

TEST(ForeignTest, FibersOfAnotherRuntimeUseThem) {
  sched::Runtime owner({.workers = 1});
  std::optional<StreamPair> pair;
  owner.Spawn([&] { pair.emplace(Connected()); }).Join();
  sched::Run({.workers = 2}, [&] {
    auto echo = fiber::Spawn([&] {
      char byte[1];
      while (pair->server.Read(byte).ok()) ASSERT_TRUE(pair->server.Write({byte, 1}).ok());
    });
    for (int i = 0; i < 500; ++i) {
      char byte[1] = {'x'};
      ASSERT_TRUE(pair->client.Write({byte, 1}).ok());
      ASSERT_TRUE(pair->client.Read(byte).ok());
    }
    auto reader = fiber::Spawn([&] {
      char byte[1];
      return pair->client.Read(byte, absl::Milliseconds(5)).status();
    });
    EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    pair->client.Close();
    echo.Join();
  });
}

// The end of a runtime goes through the descriptors of all, and must not look like a call on one of them.
TEST(ReleaseTest, ADescriptorIsReleasedWhileOtherRuntimesEnd) {
  std::atomic<bool> has_ended{false};
  std::thread others([&] {
    while (!has_ended) {
      sched::Run({.workers = 1}, [] {
        int fds[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        EXPECT_TRUE(TcpStream::Adopt(fds[0]).ok());  // so that there is a poller
        close(fds[1]);
      });
    }
  });
  sched::Run({.workers = 1}, [] {
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    for (int i = 0; i < tests::Scaled(20'000); ++i) {
      auto stream = TcpStream::Adopt(fds[0]);
      ASSERT_TRUE(stream.ok()) << stream.status();
      ASSERT_EQ(std::move(*stream).Release(), fds[0]);
    }
    close(fds[0]);
    close(fds[1]);
  });
  has_ended = true;
  others.join();
}

// No timer is armed and nobody is ready: only who polls for the worker finds that something is due.
TEST(HeldUpTest, AnEventReachesItsFiberWhileTheOnlyWorkerIsHeldUp) {
  for (const bool is_blocked : {true, false}) {
    sched::Run({.workers = 1}, [is_blocked] {
      RawPair pair = ConnectedToRaw();
      std::atomic<bool> is_held_up{false};
      std::atomic<bool> has_read{false};
      auto reader = fiber::Spawn([&] {
        char byte[1];
        EXPECT_TRUE(pair.stream.Read(byte).ok());
        has_read = true;
      });
      WaitUntilParked(reader);
      std::thread peer([&] {
        while (!is_held_up) std::this_thread::yield();
        pair.peer.Send("x");
      });
      is_held_up = true;
      while (!has_read) {
        if (is_blocked) usleep(1000);
      }
      peer.join();
      reader.Join();
    });
  }
}

// A child shares the parent's epoll instance: its destructors must not unregister the parent's sockets.
TEST(ForkTest, AChildThatClosesItsCopiesDoesNotSilenceTheParent) {
  sched::Run({.workers = 1}, [] {
    StreamPair pair = Connected();
    auto reader = fiber::Spawn([&] {
      char buffer[4];
      EXPECT_TRUE(ReadFull(pair.client, buffer).ok());
      return std::string(buffer, 4);
    });
    WaitUntilParked(reader);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      char buffer[4];
      // Would wait for a poller that is not there, and for the parent's fiber.
      const bool refuses = absl::IsFailedPrecondition(pair.server.Read(buffer).status()) &&
                           absl::IsFailedPrecondition(pair.client.Read(buffer).status()) &&
                           absl::IsFailedPrecondition(pair.client.CloseWrite());
      pair.client.Close();
      { TcpStream gone = std::move(pair.server); }
      _exit(refuses && pair.client.fd() == -1 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
    ASSERT_TRUE(pair.server.Write("late").ok());
    EXPECT_EQ(reader.Join(), "late");
  });
}

}  // namespace
}  // namespace netpoll_test
