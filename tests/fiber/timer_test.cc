// SPDX-License-Identifier: Apache-2.0
#include "fiber/timer.h"

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/inherited.h"
#include "fiber/sim/explore.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/scale.h"

namespace fiber {
namespace {

// In simulation: long enough that all that is due has been done.
void LetOthersPark() { (void)Sleep(absl::Microseconds(1)); }

FIBER_SIM_TEST(TimerTest, CallsItsFunctionAtTheDeadlineInAFiberOfItsOwn) {
  const absl::Duration start = Now();
  Event called;
  std::optional<absl::Duration> at;
  FiberId caller = 0;
  Timer timer(absl::Seconds(3), [&] {
    at = Now();
    caller = CurrentId();
    called.Set();
  });
  LetOthersPark();
  EXPECT_FALSE(at.has_value());
  EXPECT_TRUE(called.Wait().ok());
  EXPECT_EQ(at, start + absl::Seconds(3));
  EXPECT_NE(caller, 0u);
  EXPECT_NE(caller, CurrentId());
}

FIBER_SIM_TEST(TimerTest, StopSaysOnceThatItIsNotCalled) {
  int calls = 0;
  Timer timer(absl::Seconds(1), [&] { ++calls; });
  EXPECT_TRUE(timer.Stop());
  EXPECT_FALSE(timer.Stop());
  (void)Sleep(absl::Seconds(2));
  EXPECT_EQ(calls, 0);

  EXPECT_FALSE(timer.Reset(absl::Seconds(1)));
  (void)Sleep(absl::Seconds(2));
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(timer.Stop());
}

FIBER_SIM_TEST(TimerTest, ResetMovesItEarlierAndLater) {
  std::vector<absl::Duration> calls;
  const absl::Duration start = Now();
  Timer timer(absl::Seconds(10), [&] { calls.push_back(Now() - start); });
  EXPECT_TRUE(timer.Reset(absl::Seconds(1)));
  (void)Sleep(absl::Milliseconds(1500));
  EXPECT_FALSE(timer.Reset(absl::Seconds(1)));         // 2.5 s
  EXPECT_TRUE(timer.Reset(absl::Milliseconds(2500)));  // 4 s
  (void)Sleep(absl::Seconds(20));
  EXPECT_EQ(calls, (std::vector<absl::Duration>{absl::Seconds(1), absl::Seconds(4)}));
}

FIBER_SIM_TEST(TimerTest, OneThatIsDueAtOnceIsCalledAndOneThatNeverIsIsNot) {
  int calls = 0;
  Timer now(absl::ZeroDuration(), [&] { ++calls; });
  Timer never(Deadline::Never(), [&] { calls += 100; });
  LetOthersPark();
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(never.Reset(absl::InfiniteDuration()));
  EXPECT_TRUE(never.Stop());
}

FIBER_SIM_TEST(TimerTest, TheyGoOffInTheOrderOfTheirDeadlines) {
  std::vector<int> order;
  std::deque<Timer> timers;
  for (const int i : {3, 1, 4, 5, 2}) {
    timers.emplace_back(absl::Seconds(i), [&order, i] { order.push_back(i); });
  }
  (void)Sleep(absl::Seconds(6));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4, 5}));
}

TEST(TimerTest, StopRacingTheDeadlineIsExact) {
  int schedules = 0, stopped = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    int calls = 0;
    bool was_pending;
    {
      Timer timer(absl::Milliseconds(1), [&] { ++calls; });
      (void)Sleep(absl::Milliseconds(1));
      was_pending = timer.Stop();
      EXPECT_FALSE(timer.Stop());
    }
    EXPECT_EQ(calls, was_pending ? 0 : 1);
    ++schedules;
    stopped += was_pending;
  });
  if (schedules > 1) {
    EXPECT_GT(stopped, 0);
    EXPECT_LT(stopped, schedules);
  }
}

TEST(TimerTest, ManyWhoResetAndStopItAgreeOnHowOftenItIsCalled) {
  int schedules = 0, called = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    int calls = 0, settings = 1, revoked = 0;
    auto timer = std::make_unique<Timer>(absl::Milliseconds(1), [&] { ++calls; });
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 2; ++i) {
      fibers.push_back(Spawn([&, i] {
        (void)Sleep(absl::Milliseconds(1));
        ++settings;
        revoked += timer->Reset(absl::Milliseconds(i));
        Yield();
        revoked += timer->Stop();
      }));
    }
    for (auto& each : fibers) each.Join();
    ++settings;
    revoked += timer->Reset(absl::ZeroDuration());
    revoked += timer->Reset(absl::Seconds(1));
    ++settings;
    revoked += timer->Stop();
    timer.reset();
    EXPECT_EQ(calls + revoked, settings);
    ++schedules;
    called += calls;
  });
  if (schedules > 1) {
    EXPECT_GT(called, 0);
  }
}

TEST(TimerTest, InEveryOrderAResetRevokesOrIsASecondCall) {
  int schedules = 0, called_twice = 0;
  sim::ExploreInTest({.max_late_timers = 2}, [&] {
    int calls = 0, revoked = 0;
    auto other = Spawn([] {});  // while it is runnable, time may pass
    {
      Timer timer(absl::Milliseconds(2), [&] { ++calls; });
      revoked += timer.Reset(absl::Milliseconds(1));
      (void)Sleep(absl::Milliseconds(3));
      revoked += timer.Stop();
    }
    other.Join();
    EXPECT_EQ(calls + revoked, 2);
    ++schedules;
    called_twice += calls == 2;
  });
  if (schedules > 1) {
    EXPECT_GT(called_twice, 0);
  }
}

TEST(TimerTest, InEveryOrderTwoWhoStopItAndItsDeadlineAgreeOnOneWinner) {
  sim::ExploreInTest({.max_late_timers = 1}, [] {
    int winners = 0;
    {
      Timer timer(absl::Milliseconds(1), [&] { ++winners; });
      auto other = Spawn([&] { winners += timer.Stop(); });
      winners += timer.Stop();
      other.Join();
    }
    EXPECT_EQ(winners, 1);
  });
}

FIBER_SIM_TEST(TimerTest, ItsEndWaitsForTheCall) {
  Event begun, may_end;
  bool has_ended = false;
  auto destroyer = Spawn([&] {
    Timer timer(absl::Milliseconds(1), [&] {
      begun.Set();
      EXPECT_TRUE(may_end.Wait().ok());
      has_ended = true;
    });
    EXPECT_TRUE(begun.Wait().ok());
    EXPECT_FALSE(timer.Stop());  // does not wait
    EXPECT_FALSE(has_ended);
  });
  EXPECT_TRUE(begun.Wait().ok());
  LetOthersPark();
  EXPECT_FALSE(destroyer.is_done());
  destroyer.Cancel();  // nor does that end its waiting
  LetOthersPark();
  EXPECT_FALSE(destroyer.is_done());
  may_end.Set();
  destroyer.Join();
  EXPECT_TRUE(has_ended);
}

FIBER_SIM_TEST(TimerTest, ItsEndWaitsForACallThatIsAboutToBegin) {
  int calls = 0;
  {
    Timer timer(absl::ZeroDuration(), [&] { ++calls; });
    if (timer.Stop()) ++calls;
  }
  EXPECT_EQ(calls, 1);
}

FIBER_SIM_TEST(TimerTest, ItsFunctionMayDestroyIt) {
  auto held = std::make_shared<int>(0);
  Event gone;
  Timer* timer = nullptr;
  timer = new Timer(absl::Milliseconds(1), [&gone, &timer, held] {
    delete timer;
    EXPECT_EQ(*held, 0);  // the function lives until it returns
    gone.Set();
  });
  EXPECT_TRUE(gone.Wait().ok());
  LetOthersPark();
  EXPECT_EQ(held.use_count(), 1);
}

FIBER_SIM_TEST(TimerTest, ItsFunctionMaySetItAnewButNotPastItsEnd) {
  int calls = 0;
  Event third;
  {
    std::optional<Timer> timer;
    timer.emplace(absl::Seconds(1), [&] {
      if (++calls == 3) third.Set();
      timer->Reset(absl::Seconds(1));
    });
    EXPECT_TRUE(third.Wait().ok());
  }
  const int before = calls;
  (void)Sleep(absl::Seconds(5));
  EXPECT_EQ(calls, before);
}

FIBER_SIM_TEST(TimerTest, TheFunctionIsDestroyedWithTheTimer) {
  auto held = std::make_shared<int>(0);
  {
    Timer timer(absl::Seconds(1), [held] {});
  }
  EXPECT_EQ(held.use_count(), 1);
  {
    Timer timer(absl::Seconds(1), [held] {});
    (void)Sleep(absl::Seconds(1));
  }
  EXPECT_EQ(held.use_count(), 1);
}

FIBER_SIM_TEST(TimerTest, ItsFiberInheritsWhatItsMakersFibersWould) {
  static const Inherited<int> number(0);
  std::optional<Timer> timer;
  int seen = -1;
  Deadline deadline;
  Deadline expected;
  {
    Bind bind(number, 7);
    DeadlineScope scope(absl::Seconds(30));
    expected = CurrentDeadline();
    timer.emplace(absl::Seconds(1), [&] {
      seen = number.get();
      deadline = CurrentDeadline();
    });
  }
  for (int i = 0; i < 2; ++i) {
    Bind bind(number, 8);
    (void)Sleep(absl::Seconds(2));
    EXPECT_EQ(seen, 7);
    EXPECT_EQ(deadline, expected);
    seen = -1;
    timer->Reset(absl::Seconds(1));  // by whomever
  }
}

FIBER_SIM_TEST(TimerTest, WhatTheFunctionWaitsForIsNotEndedByStop) {
  absl::Status status = absl::UnknownError("not called");
  Event done;
  Timer timer(absl::Seconds(1), [&] {
    status = Sleep(absl::Seconds(5));
    done.Set();
  });
  (void)Sleep(absl::Seconds(2));
  EXPECT_FALSE(timer.Stop());
  EXPECT_TRUE(done.Wait().ok());
  EXPECT_TRUE(status.ok()) << status;
}

FIBER_TEST_ON(TimerTest, EveryOneOfManyIsStoppedOrCalled, 1, 2, 8) {
  const int count = tests::Scaled(20'000);
  std::atomic<int> calls{0};
  int stopped = 0;
  {
    std::deque<Timer> timers;
    for (int i = 0; i < count; ++i) {
      timers.emplace_back(absl::Microseconds(i % 5'000),
                          [&] { calls.fetch_add(1, std::memory_order_relaxed); });
    }
    for (Timer& each : timers) stopped += each.Stop();
  }
  EXPECT_EQ(calls.load(std::memory_order_relaxed) + stopped, count);
}

FIBER_TEST_ON(TimerTest, SettingsAreConservedUnderLoad, 1, 2, 8) {
  const int rounds = tests::Scaled(3'000);
  std::atomic<int> calls{0}, revoked{0}, settings{1};
  {
    Timer timer(absl::ZeroDuration(), [&] { calls.fetch_add(1, std::memory_order_relaxed); });
    std::vector<JoinHandle<void>> fibers;
    for (int me = 0; me < 8; ++me) {
      fibers.push_back(Spawn([&, me] {
        for (int round = 0; round < rounds; ++round) {
          if ((me + round) % 4 == 0) {
            revoked.fetch_add(timer.Stop(), std::memory_order_relaxed);
          } else {
            settings.fetch_add(1, std::memory_order_relaxed);
            revoked.fetch_add(timer.Reset(absl::Microseconds(round % 3 * 10)),
                              std::memory_order_relaxed);
          }
          if (round % 8 == 0) Yield();
        }
      }));
    }
    for (auto& each : fibers) each.Join();
    revoked.fetch_add(timer.Stop(), std::memory_order_relaxed);
  }
  EXPECT_EQ(calls.load(std::memory_order_relaxed) + revoked.load(std::memory_order_relaxed),
            settings.load(std::memory_order_relaxed));
}

FIBER_TEST_ON(TimerTest, OneThatIsDestroyedAsItGoesOffIsOver, 1, 2, 8) {
  for (int i = 0; i < tests::Scaled(5'000); ++i) {
    auto alive = std::make_unique<std::atomic<bool>>(true);
    Timer timer(absl::Microseconds(i % 100),
                [&] { EXPECT_TRUE(alive->load(std::memory_order_relaxed)); });
    if (i % 3 == 0) Yield();
    // timer goes before what its function uses
  }
}

FIBER_TEST_ON(TimerTest, ItsFunctionMayDestroyItInABlockingCall, 1, 2) {
  Event gone;
  std::unique_ptr<Timer> timer;
  timer = std::make_unique<Timer>(absl::Hours(1), [&] {
    Blocking([&] { timer.reset(); });
    gone.Set();
  });
  timer->Reset(absl::ZeroDuration());
  EXPECT_TRUE(gone.Wait().ok());
}

FIBER_TEST_ON(TimerTest, GoesOffWhileWhoHasSetItComputes, 2, 8) {
  std::atomic<bool> called{false};
  Timer timer(absl::Milliseconds(1), [&] { called.store(true, std::memory_order_release); });
  while (!called.load(std::memory_order_acquire)) {
  }
}

TEST(TimerTest, PendingOnesHaveNoFibers) {
  sched::Runtime runtime({.workers = 2});
  constexpr int kCount = tests::Scaled(100'000);
  std::deque<Timer> timers;
  runtime
      .Spawn([&] {
        for (int i = 0; i < kCount; ++i)
          timers.emplace_back(absl::Hours(1) + absl::Milliseconds(i % 1000), [] {});
      })
      .Join();
  EXPECT_LE(runtime.stats().fibers_spawned, 2u);
  int stopped = 0;
  for (Timer& each : timers) stopped += each.Stop();
  EXPECT_EQ(stopped, kCount);
}

TEST(TimerTest, WorksOnPlainThreads) {
  sched::Runtime runtime({.workers = 2});
  for (int i = 0; i < tests::Scaled(2'000); ++i) {
    std::atomic<int> calls{0};
    int revoked = 0;
    {
      Timer timer(absl::Microseconds(i % 200),
                  [&] { calls.fetch_add(1, std::memory_order_relaxed); });
      if (i % 2 == 0) revoked += timer.Reset(absl::Microseconds(i % 50));
      if (i % 3 == 0) std::this_thread::yield();
      revoked += timer.Stop();
    }
    EXPECT_EQ(calls.load(std::memory_order_relaxed) + revoked, i % 2 == 0 ? 2 : 1);
  }
  Event called;
  Timer timer(absl::Milliseconds(1), [&] { called.Set(); });
  EXPECT_TRUE(called.Wait().ok());
}

TEST(TimerTest, AnInstantBeforeTheClocksStartIsPast) {
  sched::Runtime runtime({.workers = 1});
  for (const int64_t ns : {INT64_MIN, INT64_MIN + 1, INT64_MIN + (1 << 20), int64_t{-1}, int64_t{0}}) {
    Event called;
    const Timer timer(Deadline::AtNanos(ns), [&] { called.Set(); });
    EXPECT_TRUE(called.Wait(absl::Seconds(20)).ok()) << ns;
  }
}

TEST(TimerTest, InARuntimeThatEndsItIsCalledToTheEndOrStaysPending) {
  int called = 0, pending = 0;
  for (int i = 0; i < tests::Scaled(300); ++i) {
    std::atomic<int> calls{0};
    std::optional<Timer> timer;
    {
      sched::Runtime runtime({.workers = 2});
      runtime
          .Spawn([&] {
            timer.emplace(absl::Microseconds(i % 100), [&] {
              Yield();
              calls.fetch_add(1, std::memory_order_relaxed);
            });
          })
          .Join();
    }
    const bool is_pending = timer->Stop();
    EXPECT_EQ(calls.load(std::memory_order_relaxed), is_pending ? 0 : 1);
    ++(is_pending ? pending : called);
  }
  RecordProperty("called", called);
  RecordProperty("pending", pending);
}

TEST(TimerDeathTest, MisuseEndsTheProcessByName) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Timer(absl::Seconds(1), [] {}),
               "spawn at .*timer_test.cc:[0-9]+ from a plain thread, but no runtime is running");
  EXPECT_DEATH(sched::Run([] {
                 Timer timer(absl::ZeroDuration(), [] { throw std::runtime_error("broken"); });
                 (void)Sleep(absl::InfiniteDuration());
               }),
               "spawned at .*timer_test.cc:[0-9]+\\) ended with an exception nobody joins: broken");
  EXPECT_DEATH(sched::Run([] { Timer timer(absl::Seconds(1), absl::AnyInvocable<void()>()); }),
               "fiber::Timer \\(at .*timer_test.cc:[0-9]+\\) without a function");
  EXPECT_DEATH(sched::Run([] { Ticker ticker(absl::ZeroDuration()); }),
               "fiber::Ticker 0x[0-9a-f]+: a period of 0: it must be more than zero");
  EXPECT_DEATH(sched::Run([] { Ticker(absl::Seconds(1)).Reset(absl::Seconds(-2)); }),
               "fiber::Ticker 0x[0-9a-f]+: a period of -2s: it must be more than zero");
}

FIBER_SIM_TEST(TickerTest, TicksAreDueAtMultiplesOfThePeriodAfterItsStart) {
  const absl::Duration start = Now();
  Ticker ticker(absl::Milliseconds(10));
  for (int k = 1; k <= 5; ++k) {
    EXPECT_EQ(ticker.ticks().Receive().value(), start + k * absl::Milliseconds(10));
    EXPECT_EQ(Now(), start + k * absl::Milliseconds(10));
  }
}

FIBER_SIM_TEST(TickerTest, ASlowReceiverMissesTicksAndKeepsThePhase) {
  const absl::Duration start = Now();
  Ticker ticker(absl::Seconds(1));
  (void)Sleep(absl::Milliseconds(3500));
  EXPECT_EQ(ticker.ticks().Receive().value(), start + absl::Seconds(1));
  EXPECT_EQ(ticker.ticks().Receive().value(), start + absl::Seconds(4));
  EXPECT_EQ(ticker.ticks().Receive().value(), start + absl::Seconds(5));
}

TEST(TickerTest, LateTicksMoveNoOthers) {
  sim::SimulateInTest({.late_probability = 0.2}, [] {
    const absl::Duration start = Now();
    Ticker ticker(absl::Seconds(1));
    std::vector<JoinHandle<void>> others;
    for (int i = 0; i < 3; ++i) {
      others.push_back(Spawn([] {
        for (int round = 0; round < 5; ++round) (void)Sleep(absl::Milliseconds(700));
      }));
    }
    absl::Duration last = start;
    for (int i = 0; i < 5; ++i) {
      const absl::Duration tick = ticker.ticks().Receive().value();
      EXPECT_GT(tick, last);
      EXPECT_LE(tick, Now());
      EXPECT_EQ((tick - start) % absl::Seconds(1), absl::ZeroDuration());
      last = tick;
    }
    for (auto& each : others) each.Join();
  });
}

TEST(TickerTest, AfterStopOrResetNoEarlierTickIsReceived) {
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [] {
    Ticker ticker(absl::Milliseconds(1));
    (void)Sleep(absl::Milliseconds(1));
    ticker.Stop();
    EXPECT_TRUE(absl::IsDeadlineExceeded(ticker.ticks().TryReceive().status()));
    EXPECT_TRUE(absl::IsDeadlineExceeded(ticker.ticks().Receive(absl::Milliseconds(5)).status()));
    ticker.Reset(absl::Milliseconds(2));
    (void)Sleep(absl::Milliseconds(2));
    const absl::Duration earliest = Now();
    ticker.Reset(absl::Milliseconds(3));
    EXPECT_GE(ticker.ticks().Receive().value(), earliest + absl::Milliseconds(3));
  });
}

FIBER_SIM_TEST(TickerTest, ResetBeginsANewPhase) {
  Ticker ticker(absl::Seconds(10));
  (void)Sleep(absl::Seconds(15));
  const absl::Duration start = Now();
  ticker.Reset(absl::Seconds(1));
  EXPECT_EQ(ticker.ticks().Receive().value(), start + absl::Seconds(1));
  EXPECT_EQ(ticker.ticks().Receive().value(), start + absl::Seconds(2));
}

FIBER_SIM_TEST(TickerTest, APeriodBeyondTheClockNeverTicks) {
  Ticker ticker(absl::InfiniteDuration());
  EXPECT_TRUE(absl::IsDeadlineExceeded(ticker.ticks().Receive(absl::Hours(1'000'000)).status()));
}

FIBER_SIM_TEST(TickerTest, ReceiversShareTheTicks) {
  const absl::Duration start = Now();
  Ticker ticker(absl::Seconds(1));
  std::vector<absl::Duration> ticks;
  std::vector<JoinHandle<void>> receivers;
  for (int i = 0; i < 3; ++i) {
    receivers.push_back(Spawn([&] { ticks.push_back(ticker.ticks().Receive().value() - start); }));
  }
  for (auto& each : receivers) each.Join();
  EXPECT_EQ(ticks,
            (std::vector<absl::Duration>{absl::Seconds(1), absl::Seconds(2), absl::Seconds(3)}));
}

FIBER_SIM_TEST(TimerTest, NoCallBeginsAfterItsFunctionHasDestroyedIt) {
  bool is_first = true;
  bool is_gone = false;
  std::unique_ptr<Timer> timer;
  timer = std::make_unique<Timer>(absl::Seconds(1), [&] {
    EXPECT_FALSE(is_gone);
    if (!std::exchange(is_first, false)) return;
    timer->Reset(absl::ZeroDuration());
    Yield();  // it may be set off again by now, and that call may have begun
    timer.reset();
    is_gone = true;
  });
  (void)Sleep(absl::Seconds(5));
  EXPECT_TRUE(is_gone);
}

FIBER_TEST_ON(TickerTest, IsStoppedResetAndDestroyedAsItTicks, 1, 2, 8) {
  for (int i = 0; i < tests::Scaled(500); ++i) {
    Ticker ticker(absl::Microseconds(20));
    auto receiver = Spawn([&] {
      absl::Duration last = absl::ZeroDuration();
      for (int k = 0; k < 3; ++k) {
        const absl::Duration tick = ticker.ticks().Receive().value();
        EXPECT_GT(tick, last);
        last = tick;
      }
    });
    if (i % 2 == 0) ticker.Reset(absl::Microseconds(10));
    receiver.Join();
    if (i % 3 == 0) ticker.Stop();
  }
}

}  // namespace
}  // namespace fiber
