// SPDX-License-Identifier: Apache-2.0
#include "netpoll/signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/sanitizer.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/internal/signal_registry.h"
#include "netpoll/tcp.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/child.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using netpoll::Signals;

// The body is a fiber; the test's own thread, the only one that does not block them, sends the signals it is told to. So
// they have come when the sending is over.
class SignalsTest : public testing::TestWithParam<int> {
 protected:
  template <class F>
  void Run(F body) {
    sched::Runtime runtime({.workers = GetParam()});
    auto fiber = runtime.Spawn([&] {
      body();
      orders_.Close();
    });
    for (int signal : orders_) {
      kill(getpid(), signal);
      sent_.Send(signal).IgnoreError();
    }
    fiber.Join();
  }
  void Send(int signal) {
    ASSERT_TRUE(orders_.Send(signal).ok());
    ASSERT_TRUE(sent_.Receive().ok());
  }

 private:
  fiber::Channel<int> orders_;
  fiber::Channel<int> sent_;
};
INSTANTIATE_SOCKET_TEST(SignalsTest);

bool IsDefault(int signal) {
  struct sigaction action = {};
  EXPECT_EQ(sigaction(signal, nullptr, &action), 0);
  return action.sa_handler == SIG_DFL;
}

int Next(Signals& signals) { return signals.received().Receive(absl::Seconds(30)).value_or(-1); }

TEST_P(SignalsTest, EachSignalComesWithItsNumber) {
  Run([&] {
    Signals signals({SIGUSR1, SIGUSR2, SIGTERM});
    for (int signal : {SIGUSR1, SIGTERM, SIGUSR2, SIGUSR2, SIGTERM}) {
      Send(signal);
      EXPECT_EQ(Next(signals), signal);
    }
    EXPECT_TRUE(absl::IsDeadlineExceeded(signals.received().TryReceive().status()));
  });
}

TEST_P(SignalsTest, WhoWaitsIsWoken) {
  Run([&] {
    Signals signals({SIGUSR1});
    for (int i = 0; i < 50; ++i) {
      auto receiver = fiber::Spawn([&] { return Next(signals); });
      if (i % 2 == 0) WaitUntilParked(receiver);
      Send(SIGUSR1);
      EXPECT_EQ(receiver.Join(), SIGUSR1);
    }
  });
}

TEST_P(SignalsTest, AllWhoAskForASignalGetIt) {
  Run([&] {
    Signals all({SIGUSR1, SIGUSR2});
    {
      Signals one({SIGUSR1});
      Send(SIGUSR1);
      EXPECT_EQ(Next(all), SIGUSR1);
      EXPECT_EQ(Next(one), SIGUSR1);
    }
    Send(SIGUSR1);  // still not the default, which would end the process
    EXPECT_EQ(Next(all), SIGUSR1);
    Signals late({SIGUSR1});
    EXPECT_TRUE(absl::IsDeadlineExceeded(late.received().TryReceive().status())) << "what came before";
    Send(SIGUSR1);
    EXPECT_EQ(Next(late), SIGUSR1);
  });
}

TEST_P(SignalsTest, WhatFindsTheChannelFullIsDropped) {
  Run([&] {
    auto signals = Signals::Create({SIGUSR1}, 2);
    ASSERT_TRUE(signals.ok()) << signals.status();
    Signals witness({SIGUSR1});
    for (int i = 0; i < 5; ++i) {
      Send(SIGUSR1);
      EXPECT_EQ(Next(witness), SIGUSR1);
    }
    EXPECT_EQ(Next(*signals), SIGUSR1);
    EXPECT_EQ(Next(*signals), SIGUSR1);
  });
}

TEST_P(SignalsTest, TheLastToGoRestoresWhatWasThereBefore) {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  struct sigaction original;
  ASSERT_EQ(sigaction(SIGUSR2, &ignore, &original), 0);
  Run([&] {
    {
      Signals first({SIGUSR1, SIGUSR2});
      {
        Signals second({SIGUSR1});
        EXPECT_FALSE(IsDefault(SIGUSR1));
      }
      EXPECT_FALSE(IsDefault(SIGUSR1));
    }
    EXPECT_TRUE(IsDefault(SIGUSR1));
    struct sigaction now;
    EXPECT_EQ(sigaction(SIGUSR2, nullptr, &now), 0);
    EXPECT_EQ(now.sa_handler, SIG_IGN);
  });
  ASSERT_EQ(sigaction(SIGUSR2, &original, nullptr), 0);
}

TEST_P(SignalsTest, AHandlerThatWasPutInItsPlaceStays) {
  Run([&] {
    struct sigaction ignore = {};
    ignore.sa_handler = SIG_IGN;
    {
      Signals signals({SIGUSR1});
      ASSERT_EQ(sigaction(SIGUSR1, &ignore, nullptr), 0);
    }
    struct sigaction now;
    EXPECT_EQ(sigaction(SIGUSR1, nullptr, &now), 0);
    EXPECT_EQ(now.sa_handler, SIG_IGN);
    signal(SIGUSR1, SIG_DFL);
  });
}

TEST_P(SignalsTest, NeitherADeadlineNorTheEndOfItsMakerStopsIt) {
  Run([&] {
    std::unique_ptr<Signals> signals;
    auto maker = fiber::Spawn([&] {
      fiber::DeadlineScope bound(absl::ZeroDuration());
      signals = std::make_unique<Signals>(Signals({SIGUSR1}));
    });
    maker.Cancel();
    maker.Join();
    Send(SIGUSR1);
    EXPECT_EQ(Next(*signals), SIGUSR1);
  });
}

TEST_P(SignalsTest, WhoReceivesWhenItEndsIsToldSo) {
  Run([&] {
    auto signals = std::make_unique<Signals>(Signals({SIGUSR1}));
    auto receiver = fiber::Spawn([&] { return signals->received().Receive().status(); });
    WaitUntilParked(receiver);
    signals.reset();
    EXPECT_TRUE(absl::IsOutOfRange(receiver.Join()));
  });
}

TEST_P(SignalsTest, WhenTheRuntimeShutsDownReceiversAreCancelledAndTheChannelIsClosed) {
  std::unique_ptr<Signals> signals;
  {
    sched::Runtime runtime({.workers = GetParam()});
    auto maker = runtime.Spawn([&] { signals = std::make_unique<Signals>(Signals({SIGUSR1})); });
    maker.Join();
    auto receiver = runtime.Spawn([&] { return signals->received().Receive().status(); });
    EXPECT_TRUE(runtime.Shutdown(absl::Seconds(20)).ok());
    EXPECT_TRUE(absl::IsCancelled(receiver.Join()));
  }
  EXPECT_TRUE(absl::IsOutOfRange(signals->received().Receive().status()));
  signals.reset();
  EXPECT_TRUE(IsDefault(SIGUSR1));
}

TEST_P(SignalsTest, TheyComeAndGoWhileSignalsDo) {
  std::atomic<bool> is_over{false};
  sched::Runtime runtime({.workers = GetParam()});
  fiber::Event is_kept;
  fiber::Event is_quiet;
  auto fiber = runtime.Spawn([&] {
    Signals kept({SIGUSR1});
    is_kept.Set();
    for (int i = 0; i < 200; ++i) {
      Signals more({SIGUSR2, SIGUSR1});
      if (i % 10 == 0) {
        EXPECT_EQ(Next(more), SIGUSR1);
      }
    }
    is_over.store(true);
    EXPECT_TRUE(is_quiet.Wait().ok());  // or the last signal would meet the default, which is the end
  });
  ASSERT_TRUE(is_kept.Wait().ok());
  while (!is_over.load()) {
    pthread_kill(pthread_self(), SIGUSR1);
    std::this_thread::yield();
  }
  is_quiet.Set();
  fiber.Join();
}

TEST_P(SignalsTest, RunningOutIsAStatusAndLeavesNothingBehind) {
  Run([&] {
    { const Signals first({SIGUSR2}); }  // with it came the poller, which stays
    const int before = OpenDescriptors();
    for (const Fault& fault : {Fault{Call::eventfd, EMFILE, 1}, Fault{Call::fcntl, EMFILE, 1},
                               Fault{Call::epoll_ctl, ENOSPC, 1, EPOLL_CTL_ADD}}) {
      const Faults faults(fault, {Call::kCount});
      auto signals = Signals::Create({SIGUSR1});
      EXPECT_TRUE(absl::IsResourceExhausted(signals.status())) << signals.status();
      EXPECT_EQ(netpoll::ErrnoOf(signals.status()), fault.error);
      EXPECT_TRUE(IsDefault(SIGUSR1));
    }
    const Faults faults({Call::sigaction, EPERM, 2}, {Call::kCount});
    auto signals = Signals::Create({SIGUSR1, SIGUSR2});
    EXPECT_TRUE(absl::IsInvalidArgument(signals.status())) << signals.status();
    EXPECT_TRUE(IsDefault(SIGUSR1));
    EXPECT_TRUE(IsDefault(SIGUSR2));
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST(SignalsMisuseTest, APlainThreadCannotMakeOne) {
  EXPECT_TRUE(absl::IsFailedPrecondition(Signals::Create({SIGUSR1}).status()));
  EXPECT_TRUE(IsDefault(SIGUSR1));
}

TEST(SignalsMisuseTest, SignalsThatCannotBeSharedEndTheProcess) {
  const auto ask_for = [](int signal) { (void)netpoll::internal::SubscribeSignals({signal}); };
  EXPECT_DEATH(ask_for(SIGKILL), "signal 9 cannot be caught");
  EXPECT_DEATH(ask_for(SIGSTOP), "signal 19 cannot be caught");
  EXPECT_DEATH(ask_for(SIGSEGV), "signal 11 says that its thread cannot go on");
  EXPECT_DEATH(ask_for(0), "there is no signal 0");
  EXPECT_DEATH(ask_for(65), "there is no signal 65");
}

// The README's way to stop a server, sent from outside to the process as it is.
TEST(SignalsProcessTest, AServerEndsOnSigterm) {
  const tests::ChildEnd end = tests::RunChild([&] {
    return sched::Run({.workers = 2}, [&]() -> int {
      netpoll::TcpListener listener = ListenOnLoopback();
      Signals stop({SIGTERM, SIGINT});
      fiber::Go([&] {
        if (stop.received().Receive().ok()) listener.Close();
      });
      kill(getpid(), SIGTERM);
      auto stream = listener.Accept();
      return absl::IsFailedPrecondition(stream.status()) ? 42 : 1;
    });
  });
  ASSERT_TRUE(WIFEXITED(end.status)) << "signal " << WTERMSIG(end.status) << "; " << end.said;
  EXPECT_EQ(WEXITSTATUS(end.status), 42) << end.said;
}

#if !defined(WEFT_ASAN)  // fork() does not wait for the locks of its allocator: the children hang there
#if !defined(WEFT_TSAN)  // which, in a child of a process with threads, does not know what came before the fork

// The child of a fork has a bell of its own.
TEST_P(SignalsTest, AForkedChildHearsItsOwnSignals) {
  Run([&] {
    Signals mine({SIGUSR1});
    Send(SIGUSR1);
    EXPECT_EQ(Next(mine), SIGUSR1);
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);
      sched::Runtime runtime({.workers = 1});
      fiber::Event is_made;
      auto receiver = runtime.Spawn([&] {
        Signals own({SIGUSR1});
        is_made.Set();
        return Next(own);
      });
      const bool is_heard = is_made.Wait().ok() && kill(getpid(), SIGUSR1) == 0 && receiver.Join() == SIGUSR1;
      _exit(is_heard ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(absl::IsDeadlineExceeded(mine.received().TryReceive().status()));
  });
}

#endif

// It would wait for the parent's fiber.
TEST_P(SignalsTest, AForkedChildMayDestroyItsCopy) {
  sched::Runtime runtime({.workers = GetParam()});
  auto signals = runtime.Spawn([] { return std::make_unique<Signals>(Signals({SIGUSR1})); }).Join();
  auto receiver = runtime.Spawn([&] { return signals->received().Receive().status(); });
  WaitUntilParked(receiver);
  tests::InChild([&] {
    signals.reset();
    return IsDefault(SIGUSR1) ? tests::kFine : 1;
  });
  EXPECT_FALSE(IsDefault(SIGUSR1));
  signals.reset();
  EXPECT_TRUE(absl::IsOutOfRange(receiver.Join()));
}

#endif

}  // namespace
}  // namespace netpoll_test
