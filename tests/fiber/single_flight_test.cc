// SPDX-License-Identifier: Apache-2.0
#include "fiber/single_flight.h"

#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
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
#include "sched/runtime.h"
#include "tests/scale.h"

namespace fiber {
namespace {

using Flights = SingleFlight<std::string, int>;

// In simulation: long enough that whoever can run has run until it parks.
void LetOthersPark() { (void)Sleep(absl::Microseconds(1)); }

FIBER_SIM_TEST(SingleFlightTest, ThoseWhoAskMeanwhileShareOneCall) {
  Flights flights;
  int calls = 0;
  const auto fetch = [&calls] {
    ++calls;
    (void)Sleep(absl::Seconds(1));
    return 42;
  };
  std::vector<JoinHandle<absl::StatusOr<int>>> fibers;
  for (int i = 0; i < 5; ++i) {
    fibers.push_back(Spawn([&] { return flights.Do("key", fetch); }));
  }
  EXPECT_EQ(flights.Do("other", [] { return 1; }).value(), 1);
  for (auto& each : fibers) EXPECT_EQ(each.Join().value(), 42);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(flights.Do("key", fetch).value(), 42);  // it is no cache
  EXPECT_EQ(calls, 2);
}

FIBER_SIM_TEST(SingleFlightTest, AFailureGoesToAll) {
  Flights flights;
  std::vector<JoinHandle<absl::StatusOr<int>>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] {
      return flights.Do("key", []() -> absl::StatusOr<int> {
        (void)Sleep(absl::Seconds(1));
        return absl::NotFoundError("nowhere");
      });
    }));
  }
  for (auto& each : fibers) EXPECT_EQ(each.Join().status(), absl::NotFoundError("nowhere"));
}

FIBER_SIM_TEST(SingleFlightTest, AnExceptionGoesToAll) {
  Flights flights;
  std::vector<JoinHandle<absl::StatusOr<int>>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] {
      return flights.Do("key", []() -> int {
        (void)Sleep(absl::Seconds(1));
        throw std::runtime_error("broken");
      });
    }));
  }
  for (auto& each : fibers) EXPECT_THROW((void)each.Join(), std::runtime_error);
  EXPECT_EQ(flights.Do("key", [] { return 7; }).value(), 7);
}

FIBER_SIM_TEST(SingleFlightTest, TheDeadlineOfOneEndsHisWaitOnly) {
  Flights flights;
  const auto fetch = [] {
    const absl::Status status = Sleep(absl::Seconds(5));
    EXPECT_TRUE(status.ok()) << status;
    return 42;
  };
  auto first = Spawn([&] {
    DeadlineScope ambient(absl::Seconds(1));  // which the call must not inherit
    return flights.Do("key", fetch, absl::Seconds(2));
  });
  LetOthersPark();
  auto second = Spawn([&] { return flights.Do("key", fetch); });
  auto third = Spawn([&] { return flights.Do("key", fetch); });
  LetOthersPark();
  third.Cancel();
  EXPECT_TRUE(absl::IsDeadlineExceeded(first.Join().status()));
  EXPECT_TRUE(absl::IsCancelled(third.Join().status()));
  EXPECT_EQ(second.Join().value(), 42);
}

FIBER_SIM_TEST(SingleFlightTest, WhenTheLastOneLeavesTheCallIsCancelledAndForgotten) {
  Flights flights;
  absl::Status seen;
  Event ended;
  const auto fetch = [&] {
    seen = Sleep(absl::InfiniteDuration());
    ended.Set();
    return 1;
  };
  auto other = Spawn([&] { return flights.Do("key", fetch, absl::Seconds(2)); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(flights.Do("key", fetch, absl::Seconds(1)).status()));
  EXPECT_TRUE(seen.ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(other.Join().status()));
  EXPECT_EQ(flights.Do("key", [] { return 2; }).value(), 2);  // one of its own
  EXPECT_TRUE(ended.Wait().ok());
  EXPECT_TRUE(absl::IsCancelled(seen)) << seen;
}

FIBER_SIM_TEST(SingleFlightTest, MayBeDestroyedWhileACallNobodyWaitsForRunsOn) {
  auto held = std::make_shared<int>(0);
  Event may_end;
  {
    Flights flights;
    const auto fetch = [&may_end, held] {
      CancelShield shield;
      EXPECT_TRUE(may_end.Wait().ok());
      return 1;
    };
    EXPECT_TRUE(absl::IsDeadlineExceeded(flights.Do("key", fetch, absl::Seconds(1)).status()));
  }
  may_end.Set();
  LetOthersPark();
  EXPECT_EQ(held.use_count(), 1);
}

FIBER_SIM_TEST(SingleFlightTest, NothingIsKeptWhenItIsDone) {
  SingleFlight<int, std::shared_ptr<int>> flights;
  auto captured = std::make_shared<int>(0);
  auto result = std::make_shared<int>(1);
  EXPECT_EQ(flights.Do(1, [captured, result] { return result; }).value(), result);
  LetOthersPark();
  EXPECT_EQ(captured.use_count(), 1);
  EXPECT_EQ(result.use_count(), 1);
}

FIBER_SIM_TEST(SingleFlightTest, BoundValuesAreTheFirstCallers) {
  static const Inherited<int> number(0);
  Bind bind(number, 7);
  Flights flights;
  EXPECT_EQ(flights.Do("key", [] { return number.get(); }).value(), 7);
}

FIBER_SIM_TEST(SingleFlightTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Flights flights;
  const auto fail = [] {
    ADD_FAILURE();
    return 0;
  };
  EXPECT_TRUE(absl::IsDeadlineExceeded(flights.Do("key", fail, absl::ZeroDuration()).status()));
  auto child = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return flights.Do("key", fail);
  });
  child.Cancel();
  EXPECT_TRUE(absl::IsCancelled(child.Join().status()));
}

TEST(SingleFlightTest, LeavingRacesTheEndAndThoseWhoCome) {
  int schedules = 0, served = 0, expired = 0;
  sim::SimulateInTest({.schedules = tests::Scaled(10'000), .late_probability = 0.1}, [&] {
    auto flights = std::make_unique<Flights>();
    const auto fetch = [] {
      const absl::Status status = Sleep(absl::Milliseconds(1));
      return status.ok() ? absl::StatusOr<int>(42) : absl::StatusOr<int>(status);
    };
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 3; ++i) {
      fibers.push_back(Spawn([&] {
        const absl::StatusOr<int> result = flights->Do("key", fetch, absl::Milliseconds(1));
        // Nobody who waits gets the result of a call that was cancelled.
        EXPECT_TRUE(result.ok() || absl::IsDeadlineExceeded(result.status())) << result.status();
        ++(result.ok() ? served : expired);
      }));
    }
    for (auto& each : fibers) each.Join();
    flights.reset();
    ++schedules;
  });
  if (schedules > 1) {
    EXPECT_GT(served, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(SingleFlightTest, InEveryOrderTwoWhoAskAreServed) {
  sim::ExploreInTest({.max_preemptions = 1}, [] {
    SingleFlight<int, int> flights;
    int calls = 0;
    const auto fetch = [&calls] { return ++calls; };
    auto other = Spawn([&] { return flights.Do(1, fetch); });
    const absl::StatusOr<int> mine = flights.Do(1, fetch);
    const absl::StatusOr<int> others = other.Join();
    EXPECT_TRUE(mine.ok() && others.ok());
    EXPECT_LE(calls, 2);
    EXPECT_EQ(calls == 1, *mine == *others);
  });
}

FIBER_TEST_ON(SingleFlightTest, ManyAskForFewKeys, 1, 2, 8) {
  SingleFlight<int, int> flights;
  // Kept by the functions: one that nobody waits for any more may run when this has returned.
  const auto calls = std::make_shared<std::atomic<int>>(0);
  std::vector<JoinHandle<void>> fibers;
  const int rounds = tests::Scaled(1'000);
  for (int me = 0; me < 8; ++me) {
    fibers.push_back(Spawn([&, me] {
      for (int round = 0; round < rounds; ++round) {
        const int key = round / 8 % 3;
        const auto fetch = [calls, key] {
          calls->fetch_add(1, std::memory_order_relaxed);
          Yield();
          return key;
        };
        const Deadline deadline =
            (me + round) % 5 == 0 ? Deadline(absl::Microseconds(round % 30)) : Deadline::Never();
        const absl::StatusOr<int> result = flights.Do(key, fetch, deadline);
        if (result.ok()) {
          EXPECT_EQ(*result, key);
        } else {
          EXPECT_TRUE(absl::IsDeadlineExceeded(result.status())) << result.status();
        }
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_LE(calls->load(std::memory_order_relaxed), 8 * rounds);
}

TEST(SingleFlightTest, WorksOnPlainThreads) {
  sched::Runtime runtime({.workers = 2});
  Flights flights;
  EXPECT_EQ(flights.Do("key", [] { return CurrentId() == 0 ? 0 : 1; }).value(), 1);
}

TEST(SingleFlightDeathTest, AFunctionThatAsksForItsOwnKeyEndsTheProcessByName) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               SingleFlight<int, int> flight;
                               const auto again = [&] { return flight.Do(1, [] { return 2; }); };
                               (void)flight.Do(1, [&] { return again().value_or(3); });
                             }),
               "fiber::SingleFlight 0x[0-9a-f]+: Do\\(\\) for a key by the function that runs for it");
}

}  // namespace
}  // namespace fiber
