// SPDX-License-Identifier: Apache-2.0
//
// Go's time: rows 16, 51, 52 and 53 of docs/go_conformance.md, as far as they are about waiting and
// its deadlines.
#include "absl/time/time.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "fiber/channel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "tests/fiber/go/row.h"
#include "tests/parked.h"

namespace fiber {
namespace {

using tests::WaitUntilParked;

bool IsSimulated() { return sim::CurrentSeed() != 0; }

// Row 51. In which order they return is up to the workers where there are several.
GO_ROW(GoTime, SleepsAreNeverEarlyAndEndInTheOrderOfTheirDeadlines, 1000) {
  constexpr int kSleeps[] = {5, 3, 6, 6, 6, 1, 1, 2, 7, 9, 4, 8, 0};
  Mutex mutex;
  std::vector<int> order;  // by the mutex
  std::vector<JoinHandle<void>> fibers;
  const absl::Duration start = Now();
  for (const int each : kSleeps) {
    fibers.push_back(Spawn([&, each, end = Deadline(absl::Microseconds(each * 300))] {
      EXPECT_TRUE(Sleep(end).ok());
      EXPECT_GE(Now() - start, absl::Microseconds(each * 300));
      MutexLock hold(mutex);
      order.push_back(each);
    }));
  }
  for (auto& each : fibers) each.Join();
  MutexLock hold(mutex);
  EXPECT_EQ(order.size(), std::size(kSleeps));
  if (IsSimulated()) {
    EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  }
}

// Row 51: a timer that was stopped does not fire. Here it is the deadline of a wait that ended
// before it.
GO_ROW(GoTime, ADeadlineThatWasNotNeededEndsNoLaterWait, 1000) {
  Channel<int> channel, never;
  Event has_received;
  auto receiver = Spawn([&] {
    while (!channel.Receive(absl::Milliseconds(1)).ok()) {
    }
    has_received.Set();
    return never.Receive().status();
  });
  while (!has_received.is_set()) (void)channel.Send(1, absl::Milliseconds(1));
  EXPECT_TRUE(Sleep(absl::Milliseconds(2)).ok());
  WaitUntilParked(receiver);
  EXPECT_FALSE(receiver.is_done());
  never.Close();
  EXPECT_TRUE(absl::IsOutOfRange(receiver.Join()));
}

// Row 53.
GO_ROW(GoTime, ASleepOfNoTimeOrLessReturnsAtOnce, 1000) {
  const absl::Duration start = Now();
  for (const absl::Duration each :
       {absl::ZeroDuration(), -absl::Nanoseconds(1), -absl::Hours(1), -absl::InfiniteDuration()}) {
    EXPECT_TRUE(Deadline(each).is_past());
    EXPECT_TRUE(Sleep(each).ok());
  }
  if (IsSimulated()) {
    EXPECT_EQ(Now(), start);
  }
}

// Row 53.
GO_ROW(GoTime, TheLongestDurationsAreNotPast, 1000) {
  Channel<int> channel;
  const Deadline deadlines[] = {
      absl::InfiniteDuration(),
      absl::Nanoseconds(INT64_MAX),
      absl::Hours(INT64_MAX / 3600),
      std::chrono::nanoseconds::max(),
      std::chrono::hours::max(),
      absl::Hours(24 * 365 * 290),
      std::chrono::duration<double>(1e300),
  };
  for (const Deadline each : deadlines) {
    EXPECT_FALSE(each.is_past());
    auto receiver = Spawn([&] { return channel.Receive(each).value_or(-1); });
    WaitUntilParked(receiver);
    EXPECT_FALSE(receiver.is_done());
    EXPECT_TRUE(channel.Send(7).ok());
    EXPECT_EQ(receiver.Join(), 7);
  }
}

// Rows 16 and 52. On the simulated clock no time passes while somebody can run, so this is one for
// workers alone.
FIBER_TEST_ON(GoTimeWorkers, ATimerFiresWhileTwoFibersPingPongForEver, 1, 2, 8) {
  Channel<int> ping, pong;
  auto left = Spawn([&] {
    while (ping.Send(0).ok() && pong.Receive().ok()) {
    }
  });
  auto right = Spawn([&] {
    while (ping.Receive().ok() && pong.Send(0).ok()) {
    }
  });
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(Sleep(absl::Milliseconds(2)).ok());
  // One that is started then gets its turn, too.
  EXPECT_EQ(Spawn([] { return 3; }).Join(), 3);
  ping.Close();
  pong.Close();
  left.Join();
  right.Join();
}

}  // namespace
}  // namespace fiber
