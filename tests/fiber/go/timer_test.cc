// SPDX-License-Identifier: Apache-2.0
//
// Go's timers and tickers: rows 51, 52, 54 and 55 of docs/go_conformance.md.
#include "fiber/timer.h"

#include <atomic>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "tests/fiber/go/row.h"

namespace fiber {
namespace {

// Row 51.
GO_ROW(GoTimer, OneThatIsStoppedInTimeNeverFires, 1000) {
  Timer timer(absl::Hours(1), [] { ADD_FAILURE(); });
  EXPECT_TRUE(timer.Stop());
  EXPECT_FALSE(timer.Stop());
}

// Rows 51 and 54.
GO_ROW(GoTimer, StopSaysWhetherItCameInTime, 5000) {
  std::atomic<bool> has_fired{false};
  Event fired;
  Timer timer(absl::Microseconds(200), [&] {
    has_fired.store(true, std::memory_order_relaxed);
    fired.Set();
  });
  EXPECT_TRUE(Sleep(absl::Microseconds(200)).ok());
  if (timer.Stop()) {
    EXPECT_TRUE(Sleep(absl::Milliseconds(1)).ok());
    EXPECT_FALSE(has_fired.load(std::memory_order_relaxed));
  } else {
    EXPECT_TRUE(fired.Wait().ok());
  }
}

// Row 54.
GO_ROW(GoTimer, ResetMovesItEarlierAndLaterAndSaysWhetherItWasArmed, 1000) {
  const absl::Duration start = Now();
  std::atomic<int> calls{0};
  Channel<int> fired(1);
  Timer timer(absl::Hours(1), [&] {
    calls.fetch_add(1, std::memory_order_relaxed);
    EXPECT_TRUE(fired.TrySend(1).ok());
  });
  EXPECT_TRUE(timer.Reset(absl::Hours(2)));
  EXPECT_TRUE(timer.Reset(absl::Milliseconds(1)));
  ASSERT_TRUE(fired.Receive().ok());
  EXPECT_GE(Now() - start, absl::Milliseconds(1));
  EXPECT_FALSE(timer.Reset(absl::Milliseconds(1))) << "it was not armed";
  ASSERT_TRUE(fired.Receive().ok());
  EXPECT_EQ(calls.load(std::memory_order_relaxed), 2);
  EXPECT_FALSE(timer.Stop());
}

// Row 52.
FIBER_TEST_ON(GoTimerWorkers, ACallbackRunsWhileTwoFibersPingPongForEver, 1, 2, 8) {
  Channel<int> ping, pong;
  auto left = Spawn([&] {
    while (ping.Send(0).ok() && pong.Receive().ok()) {
    }
  });
  auto right = Spawn([&] {
    while (ping.Receive().ok() && pong.Send(0).ok()) {
    }
  });
  Event fired;
  Timer timer(absl::Milliseconds(1), [&] { fired.Set(); });
  EXPECT_TRUE(fired.Wait().ok());
  ping.Close();
  pong.Close();
  left.Join();
  right.Join();
}

// Row 55.
GO_ROW(GoTimer, TicksKeepTheirPhaseAndAreDroppedForWhoIsSlow, 500) {
  const absl::Duration period = absl::Milliseconds(1);
  const absl::Duration start = Now();
  Ticker ticker(period);
  absl::Duration last = ticker.ticks().Receive().value();
  EXPECT_GE(last, start + period);
  for (int i = 0; i < 3; ++i) {
    // Then as many as it has slept through are dropped but for one.
    if (i == 2) {
      EXPECT_TRUE(Sleep(5 * period).ok());
    }
    const absl::Duration next = ticker.ticks().Receive().value();
    EXPECT_GT(next, last);
    EXPECT_LE(next, Now()) << "never early";
    EXPECT_EQ((next - last) % period, absl::ZeroDuration());
    last = next;
  }
  ticker.Stop();
  EXPECT_TRUE(absl::IsDeadlineExceeded(ticker.ticks().TryReceive().status())) << "a stale one";
}

}  // namespace
}  // namespace fiber
