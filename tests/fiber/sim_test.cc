// SPDX-License-Identifier: Apache-2.0
// The simulator itself: that it finds what it is for, that seeds replay, and what it reports.
#include "fiber/sim/sim.h"

#include <stdlib.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/join.h"
#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/internal/random.h"
#include "fiber/this_fiber.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fiber/commands.h"
#include "tests/leaks/leaks.h"

namespace fiber::sim {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using tests::LineAfter;
using tests::Output;
using tests::RunCommand;
using tests::ThisProgram;

// Parks until somebody cancels the fiber.
absl::Status ParkForEver() {
  fiber::internal::Wait wait(WaitReason::kEvent, nullptr);
  if (absl::Status status = wait.Check({}); !status.ok()) return status;
  wait.Open();
  return wait.StatusOf(wait.Park({}));
}

// Parks for good: cancelling does not help.
void Hang() {
  fiber::internal::Wait wait(WaitReason::kMutex, reinterpret_cast<void*>(0x1234),
                             fiber::internal::Interruptible::kNo);
  wait.Open();
  (void)wait.Park({});
}

// What a few fibers did, in the order in which they did it.
using Trace = std::vector<int>;

Trace RunTraced(uint64_t seed) {
  Trace trace;
  const Result result = Simulate({.first_seed = seed, .schedules = 1}, [&trace] {
    std::vector<JoinHandle<void>> children;
    for (int i = 0; i < 4; ++i) {
      children.push_back(Spawn([&trace, i] {
        for (int step = 0; step < 4; ++step) {
          trace.push_back(10 * i + step);
          if (step == 2) {
            EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
          } else {
            Yield();
          }
        }
      }));
    }
    for (auto& child : children) child.Join();
  });
  EXPECT_TRUE(result.ok) << result.message;
  return trace;
}

TEST(SimTest, TheSameSeedGivesTheSameSchedule) {
  for (uint64_t seed = 1; seed <= 50; ++seed) EXPECT_EQ(RunTraced(seed), RunTraced(seed)) << seed;
}

TEST(SimTest, DifferentSeedsGiveDifferentInterleavings) {
  std::set<Trace> traces;
  for (uint64_t seed = 1; seed <= 200; ++seed) traces.insert(RunTraced(seed));
  EXPECT_GT(traces.size(), 190u);
}

// All orders of three fibers, and both outcomes of a spawn: the child first, or the parent.
TEST(SimTest, EveryOrderOfAFewFibersComesUp) {
  std::set<std::vector<int>> orders;
  const Result result = Simulate({}, [&orders] {
    std::vector<int> order;
    std::vector<JoinHandle<void>> children;
    for (int i = 1; i <= 3; ++i) children.push_back(Spawn([&order, i] { order.push_back(i); }));
    order.push_back(0);
    for (auto& child : children) child.Join();
    orders.insert(order);
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(orders.size(), 4u * 3 * 2 * 1);
}

// Reference values: the same on every platform, or seeds from elsewhere do not replay here.
TEST(SimTest, TheGeneratorIsTheSameEverywhere) {
  internal::Random random(1);
  EXPECT_EQ(random.Next(), 12966619160104079557u);
  EXPECT_EQ(random.Next(), 9600361134598540522u);
  internal::Random other(2);
  EXPECT_NE(other.Next(), 12966619160104079557u);
  for (uint64_t count : {1, 2, 3, 1000}) {
    std::set<uint64_t> seen;
    for (int i = 0; i < 20000; ++i) {
      const uint64_t value = random.Below(count);
      ASSERT_LT(value, count);
      seen.insert(value);
    }
    EXPECT_EQ(seen.size(), count);
  }
  int heads = 0;
  for (int i = 0; i < 10000; ++i) heads += random.Chance(0.25);
  EXPECT_NEAR(heads, 2500, 200);
  EXPECT_FALSE(random.Chance(0));
  EXPECT_TRUE(random.Chance(1));
}

TEST(SimTest, TheSeedIsKnownInside) {
  std::vector<uint64_t> seeds;
  EXPECT_EQ(CurrentSeed(), 0u);
  const Result result =
      Simulate({.first_seed = 7, .schedules = 3}, [&] { seeds.push_back(CurrentSeed()); });
  EXPECT_TRUE(result.ok);
  EXPECT_EQ(result.schedules, 3);
  EXPECT_EQ(seeds, (std::vector<uint64_t>{7, 8, 9}));
  EXPECT_EQ(CurrentSeed(), 0u);
}

// Thousands of virtual hours, in a test that is over in a moment.
TEST(SimTest, HoursPassInMilliseconds) {
  const auto start = std::chrono::steady_clock::now();
  const Result result = Simulate({.schedules = 100}, [] {
    const absl::Duration began = Now();
    auto child = Spawn([] {
      for (int i = 0; i < 24; ++i) EXPECT_TRUE(Sleep(absl::Hours(1)).ok());
      return Now();
    });
    EXPECT_TRUE(Sleep(absl::Minutes(90)).ok());
    EXPECT_EQ(Now() - began, absl::Minutes(90));
    EXPECT_EQ(child.Join() - began, absl::Hours(24));
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

FIBER_SIM_TEST(SimClockTest, SleepsEndExactlyInOrderAndNeverEarly) {
  const absl::Duration began = Now();
  EXPECT_NE(began, absl::ZeroDuration());
  std::vector<int> woken;
  std::vector<JoinHandle<void>> children;
  for (int i : {5, 1, 4, 2, 3}) {
    children.push_back(Spawn([i, began, &woken] {
      EXPECT_TRUE(Sleep(absl::Milliseconds(i)).ok());
      EXPECT_EQ(Now() - began, absl::Milliseconds(i));
      woken.push_back(i);
    }));
  }
  for (auto& child : children) child.Join();
  EXPECT_EQ(woken, (std::vector<int>{1, 2, 3, 4, 5}));
}

// The clock stands still while anything is runnable.
FIBER_SIM_TEST(SimClockTest, ComputingTakesNoTime) {
  const absl::Duration began = Now();
  auto sleeper = Spawn([] { return Sleep(absl::Nanoseconds(1)); });
  for (int i = 0; i < 20; ++i) Yield();
  EXPECT_EQ(Now(), began);
  EXPECT_TRUE(sleeper.Join().ok());
  EXPECT_EQ(Now() - began, absl::Nanoseconds(1));
}

TEST(SimClockTest, TimersOfTheSameInstantFireInAnyOrder) {
  std::set<std::vector<int>> orders;
  const Result result = Simulate({.schedules = 200}, [&orders] {
    std::vector<int> order;
    const Deadline at = absl::Seconds(1);
    std::vector<JoinHandle<void>> children;
    for (int i = 0; i < 3; ++i) {
      children.push_back(Spawn([&order, at, i] {
        EXPECT_TRUE(Sleep(at).ok());
        order.push_back(i);
      }));
    }
    for (auto& child : children) child.Join();
    orders.insert(order);
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(orders.size(), 6u);
}

// Without late_probability the timeout, which is later, would never win.
TEST(SimClockTest, LateSchedulesLetTimeoutsWinAgainstRunnableFibers) {
  int timeouts = 0, ends = 0;
  const auto body = [&] {
    auto child = Spawn([] {
      for (int i = 0; i < 3; ++i) Yield();
    });
    const absl::Status status = child.Wait(absl::Seconds(1));
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    ++(status.ok() ? ends : timeouts);
    child.Join();
  };
  EXPECT_TRUE(Simulate({.schedules = 200}, body).ok);
  EXPECT_EQ(timeouts, 0);
  EXPECT_EQ(ends, 200);
  EXPECT_TRUE(Simulate({.schedules = 200, .late_probability = 0.2}, body).ok);
  EXPECT_GT(timeouts, 10);
  EXPECT_GT(ends, 210);
}

// A block that served a timeout in one schedule serves a wait in the next one, whose clock starts
// anew.
TEST(SimClockTest, TimersLeftOverDoNotReachTheNextSchedule) {
  const Result result = Simulate({.schedules = 20}, [] {
    auto child = Spawn([] { EXPECT_TRUE(Sleep(absl::Seconds(5)).ok()); });
    EXPECT_TRUE(child.Wait(absl::Seconds(6)).ok());  // leaves an entry at 6 s
    child.Join();
    const absl::Duration began = Now();
    EXPECT_TRUE(Sleep(absl::Seconds(30)).ok());
    EXPECT_EQ(Now() - began, absl::Seconds(30));
  });
  EXPECT_TRUE(result.ok) << result.message;
}

// Two fibers, no lock: the increment of one is lost if the other comes between load and store.
void LoseAnUpdate(int* counter) {
  const int value = *counter;
  Yield();
  *counter = value + 1;
}

Result FindLostUpdate(SimOptions options) {
  static bool was_lost;
  was_lost = false;
  options.has_failed = [] { return was_lost; };
  return Simulate(options, [] {
    int counter = 0;
    auto other = Spawn([&counter] { LoseAnUpdate(&counter); });
    LoseAnUpdate(&counter);
    other.Join();
    was_lost = counter != 2;
  });
}

TEST(SimTest, APlantedLostUpdateIsFoundAndItsSeedReplaysIt) {
  const Result found = FindLostUpdate({});
  ASSERT_FALSE(found.ok);
  EXPECT_THAT(found.message, HasSubstr(absl::StrCat("seed ", found.seed)));
  EXPECT_EQ(found.schedules, static_cast<int64_t>(found.seed));
  for (int i = 0; i < 3; ++i) {
    const Result again = FindLostUpdate({.first_seed = found.seed, .schedules = 1});
    EXPECT_FALSE(again.ok);
    EXPECT_EQ(again.seed, found.seed);
  }
  // Neither in every schedule nor in almost none.
  int losses = 0;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    losses += !FindLostUpdate({.first_seed = seed, .schedules = 1}).ok;
  }
  EXPECT_GT(losses, 200);
  EXPECT_LT(losses, 990);
}

TEST(SimTest, TheEnvironmentNamesTheOneSeedToRun) {
  setenv("WEFT_SEED", "42", 1);
  std::vector<uint64_t> seeds;
  const Result result = Simulate({}, [&] { seeds.push_back(CurrentSeed()); });
  unsetenv("WEFT_SEED");
  EXPECT_TRUE(result.ok);
  EXPECT_EQ(seeds, std::vector<uint64_t>{42});
}

TEST(SimDeathTest, ASeedThatIsNoNumberIsRefused) {
  setenv("WEFT_SEED", "12x", 1);
  EXPECT_DEATH(Simulate({}, [] {}), "WEFT_SEED=12x: a seed is a number");
  unsetenv("WEFT_SEED");
}

// Run by the test below only.
FIBER_SIM_TEST(SimReplayTest, DISABLED_LosesAnUpdate) {
  int counter = 0;
  auto other = Spawn([&counter] { LoseAnUpdate(&counter); });
  LoseAnUpdate(&counter);
  other.Join();
  EXPECT_EQ(counter, 2);
}

TEST(SimTest, TheCommandInAFailureReplaysIt) {
  const std::string also = " --gtest_also_run_disabled_tests";
  const std::string program = ThisProgram();
  const Output first =
      RunCommand(program + " --gtest_filter=SimReplayTest.DISABLED_LosesAnUpdate" + also);
  ASSERT_EQ(first.exit_status, 1) << first.text;
  const std::string command = LineAfter(first.text, "To replay it:\n");
  ASSERT_THAT(command, HasSubstr("--gtest_filter=SimReplayTest.DISABLED_LosesAnUpdate --seed="));
  const std::string seed = command.substr(command.find("--seed=") + 7);
  const Output again = RunCommand(command + also);
  EXPECT_EQ(again.exit_status, 1) << again.text;
  EXPECT_THAT(again.text, HasSubstr(absl::StrCat("seed ", seed, ": the body found a failure")));
  // By the environment, too; and a seed that does not fail passes.
  const Output other =
      RunCommand(absl::StrCat("WEFT_SEED=", seed, " ", program,
                              " --gtest_filter=SimReplayTest.DISABLED_LosesAnUpdate", also));
  EXPECT_EQ(other.exit_status, 1) << other.text;
  uint64_t good = 1;
  while (!FindLostUpdate({.first_seed = good, .schedules = 1}).ok) ++good;
  EXPECT_EQ(
      RunCommand(absl::StrCat(program, also,
                              " --gtest_filter=SimReplayTest.DISABLED_LosesAnUpdate --seed=", good))
          .exit_status,
      0);
}

TEST(SimTest, ABodyThatThrowsFailsItsSchedule) {
  const Result result =
      Simulate({.first_seed = 3}, [] { throw std::runtime_error("out of cheese"); });
  EXPECT_FALSE(result.ok);
  EXPECT_EQ(result.seed, 3u);
  EXPECT_EQ(result.schedules, 1);
  EXPECT_THAT(result.message, HasSubstr("the body ended with an exception: out of cheese"));
}

TEST(SimTest, ASchedulePointIsNotAlwaysTaken) {
  const auto preemptions = [](double probability) {
    int others_first = 0;
    EXPECT_TRUE(Simulate({.schedules = 400, .preempt_probability = probability}, [&] {
                  bool ran = false;
                  auto child = Spawn([&ran] { ran = true; });
                  others_first += ran;
                  child.Join();
                }).ok);
    return others_first;
  };
  EXPECT_EQ(preemptions(0), 0);
  const int some = preemptions(0.25), most = preemptions(1);
  EXPECT_GT(some, 10);
  EXPECT_LT(some, most);
  EXPECT_LT(most, 400);  // who gives way may be picked again
}

TEST(SimReportTest, ADeadlockIsReportedWithWhatEveryFiberWaitsFor) {
  ::testing::internal::CaptureStderr();
  const int spawn_line = __LINE__ + 2;
  const Result result = Simulate({.schedules = 1}, [] {
    auto child = Spawn(FiberOptions{.name = "stuck"}, [] { (void)ParkForEver(); });
    child.Join();
  });
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(
      result.message,
      HasSubstr("seed 1: deadlock: nothing is runnable, no timer is armed, 2 fibers are left"));
  EXPECT_THAT(result.message,
              MatchesRegex("(.|\n)*fiber [0-9]+ 'main' \\(spawned at .*sim_test.cc:"
                           "[0-9]+\\): waits: join of fiber [0-9]+ 'stuck'(.|\n)*"));
  EXPECT_THAT(result.message,
              MatchesRegex("(.|\n)*fiber [0-9]+ 'stuck' \\(spawned at .*sim_test.cc:"
                           "[0-9]+\\): waits: event\n(.|\n)*"));
  EXPECT_THAT(result.message, HasSubstr(absl::StrCat("sim_test.cc:", spawn_line)));
  EXPECT_THAT(result.message, HasSubstr("WEFT_SEED=1"));
  EXPECT_THAT(log, HasSubstr("weft: seed 1: deadlock:"));
  EXPECT_THAT(log, HasSubstr("'stuck'"));
}

// A lost wake-up: the setter comes between the waiter's look and its saying that it waits.
TEST(SimReportTest, ADeadlockIsFoundInTheSchedulesThatHaveIt) {
  const auto body = [] {
    bool is_set = false;
    bool is_waiting = false;
    auto waiter = Spawn([&] {
      if (is_set) return;
      Yield();
      is_waiting = true;
      (void)ParkForEver();
    });
    Yield();
    is_set = true;
    if (is_waiting) waiter.Cancel();
    waiter.Join();
  };
  int deadlocks = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Result result = Simulate({.first_seed = seed, .schedules = 1}, body);
    if (result.ok) continue;
    ++deadlocks;
    EXPECT_THAT(result.message, HasSubstr("deadlock"));
  }
  EXPECT_GT(deadlocks, 10);
  EXPECT_LT(deadlocks, 190);
}

TEST(SimReportTest, WhatStuckFibersOwnIsDestroyed) {
  auto owned = std::make_shared<int>(1);
  const Result result = Simulate({.schedules = 1}, [&owned] {
    for (int i = 0; i < 10; ++i) {
      Go([owned] { EXPECT_TRUE(absl::IsCancelled(ParkForEver())); });
    }
    (void)ParkForEver();
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, Not(HasSubstr("never be freed")));
  EXPECT_EQ(owned.use_count(), 1);
}

TEST(SimReportTest, FibersThatOutliveTheBodyAreReportedAsLeaked) {
  const int spawn_line = __LINE__ + 1;
  const Result result = Simulate({.schedules = 1}, [] { Go([] { (void)ParkForEver(); }); });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message,
              HasSubstr("leaked fibers: the body has ended: nothing is runnable, no "
                        "timer is armed, 1 fiber is left"));
  EXPECT_THAT(result.message, HasSubstr(absl::StrCat("sim_test.cc:", spawn_line)));
}

TEST(SimReportTest, FibersThatOutliveTheBodyMayEndByThemselves) {
  int ended = 0;
  const Result result = Simulate({.schedules = 50}, [&ended] {
    Go([&ended] {
      EXPECT_TRUE(Sleep(absl::Hours(10)).ok());
      ++ended;
    });
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(ended, 50);
}

TEST(SimReportTest, ALivelockIsReportedOnceItsStepsAreUsedUp) {
  const Result result = Simulate({.schedules = 1, .max_steps = 1000}, [] {
    auto child = Spawn(FiberOptions{.name = "spinner"}, [] {
      while (CheckCancelled().ok()) Yield();
    });
    EXPECT_TRUE(absl::IsCancelled(Sleep(absl::Hours(1))));
    child.Join();
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, HasSubstr("livelock: after 1000 steps 2 fibers have not ended"));
  EXPECT_THAT(result.message, HasSubstr("'main'"));
  EXPECT_THAT(result.message, HasSubstr("waits: sleep, for 1h"));
  EXPECT_THAT(result.message, MatchesRegex("(.|\n)*'spinner'[^\n]*: runnable(.|\n)*"));
  EXPECT_THAT(result.message, Not(HasSubstr("never be freed")));
}

TEST(SimReportTest, AFiberThatSleepsForEverAfterTheBodyIsALivelock) {
  const Result result = Simulate({.schedules = 1, .max_steps = 500}, [] {
    Go([] {
      while (Sleep(absl::Seconds(1)).ok()) {
      }
    });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, HasSubstr("after 500 steps the body has ended, but 1 fiber has not"));
}

TEST(SimReportTest, AFiberThatHangsForGoodIsAbandonedAndTheNextSimulationRuns) {
  tests::AllowAbandonedFibers(1);
  const Result result = Simulate({.schedules = 5}, [] {
    Go(FiberOptions{.name = "hung"}, [] { Hang(); });
    Go([] { (void)ParkForEver(); });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_EQ(result.schedules, 1);
  EXPECT_THAT(result.message, HasSubstr("2 fibers are left"));
  EXPECT_THAT(result.message, HasSubstr("waits: mutex at 0x1234"));
  EXPECT_THAT(result.message, HasSubstr("1 fiber did not end when cancelled"));
  EXPECT_TRUE(Simulate({.schedules = 5}, [] { Yield(); }).ok);
}

TEST(SimReportTest, ASpinnerThatIgnoresCancellationIsAbandoned) {
  tests::AllowAbandonedFibers(1);
  const Result result = Simulate({.schedules = 1, .max_steps = 1000}, [] {
    Go([] {
      for (;;) Yield();
    });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, HasSubstr("livelock"));
  EXPECT_THAT(result.message, HasSubstr("1 fiber did not end when cancelled"));
  EXPECT_TRUE(Simulate({.schedules = 5}, [] { Yield(); }).ok);
}

TEST(SimReportTest, AReportOfManyFibersStaysReadable) {
  const Result result = Simulate({.schedules = 1}, [] {
    for (int i = 0; i < 150; ++i) Go([] { (void)ParkForEver(); });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, HasSubstr("150 fibers are left"));
  EXPECT_THAT(result.message, HasSubstr("and 100 fibers more"));
}

TEST(SimTest, TheThreadIsAPlainOneAgainAfterwards) {
  EXPECT_TRUE(Simulate({.schedules = 1}, [] { EXPECT_NE(CurrentId(), 0u); }).ok);
  const fiber::internal::ThreadState& thread = fiber::internal::ThisThread();
  EXPECT_EQ(thread.scheduler, nullptr);
  EXPECT_EQ(thread.worker, nullptr);
  EXPECT_EQ(thread.current, nullptr);
  EXPECT_EQ(CurrentId(), 0u);
  EXPECT_TRUE(Sleep(absl::ZeroDuration()).ok());
}

TEST(SimTest, SimulationsOfSeveralThreadsDoNotMeet) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([] {
      for (uint64_t seed = 1; seed <= 20; ++seed) EXPECT_EQ(RunTraced(seed), RunTraced(seed));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void NestSimulations() {
  Simulate({.schedules = 1}, [] { Simulate({.schedules = 1}, [] {}); });
}

TEST(SimDeathTest, ASimulationInAFiberIsRefusedByName) {
  EXPECT_DEATH(NestSimulations(), "Simulate\\(\\) is called on a worker, at .*sim_test.cc");
}

void CancelFromAnotherThread() {
  Simulate({.first_seed = 12, .schedules = 1, .preempt_probability = 1}, [] {
    auto child = Spawn([] { (void)ParkForEver(); });
    for (int i = 0; i < 20; ++i) Yield();
    std::thread([&child] { child.Cancel(); }).join();
    child.Join();
  });
}

TEST(SimDeathTest, AnUnparkByAnotherThreadIsRefusedByName) {
  EXPECT_DEATH(CancelFromAnotherThread(),
               "fiber .* of a simulation was unparked by another thread");
}

void Abort(uint64_t seed) {
  Simulate({.first_seed = seed}, [] {
    Yield();
    abort();
  });
}

TEST(SimDeathTest, AProcessThatAbortsInAScheduleSaysItsSeed) {
  EXPECT_DEATH(Abort(7), "weft: aborted in the schedule of seed 7\n");
  EXPECT_DEATH(Abort(12345678901234567890u), "schedule of seed 12345678901234567890\n");
}

TEST(SimTest, ALargerStackIsGivenToWhomItIsMeantFor) {
  const auto deep = [] {
    volatile char frame[900 << 10];
    frame[0] = 1;
    frame[sizeof frame - 1] = 2;
    EXPECT_EQ(frame[0] + frame[sizeof frame - 1], 3);
  };
  EXPECT_TRUE(Simulate({.schedules = 3, .default_stack_bytes = 4 << 20}, deep).ok);
}

TEST(SimTest, AHundredThousandFibersRunInOneSchedule) {
  constexpr int kFibers = 100'000;
  int ended = 0;
  const Result result = Simulate({.schedules = 1, .preempt_probability = 0}, [&ended] {
    for (int i = 0; i < kFibers; ++i) Go([&ended] { ++ended; });
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(ended, kFibers);
}

TEST(SimClockTest, ADeadlineOfTheThreadThatSimulatesIsOneOfAnotherClock) {
  DeadlineScope bound(absl::Milliseconds(1));
  const sim::Result result = sim::Simulate({.schedules = 1}, [] {
    EXPECT_TRUE(Sleep(absl::Hours(1000)).ok());
  });
  EXPECT_TRUE(result.ok) << result.message;
}

}  // namespace
}  // namespace fiber::sim
