// SPDX-License-Identifier: Apache-2.0
// Exploration: that all schedules are run, each once, and that what fails replays.
#include "fiber/sim/explore.h"

#include <stdlib.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/internal/exploration.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fiber/commands.h"

namespace fiber::sim {
namespace {

using internal::Exploration;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Without: an exploration that says "all" has left some out, or run some twice.
TEST(ExploreTest, ChoicesOfTheBodyAreEachTakenOnce) {
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  const ExploreResult result = Explore({}, [&pairs] {
    const uint32_t first = ChooseBelow(2);
    pairs.emplace_back(first, ChooseBelow(first == 0 ? 3 : 1));
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_TRUE(result.is_complete);
  EXPECT_EQ(result.schedules, 4);
  EXPECT_EQ(pairs, (std::vector<std::pair<uint32_t, uint32_t>>{{0, 0}, {0, 1}, {0, 2}, {1, 0}}));
}

using Trace = std::vector<int>;

// Three fibers that do two things each, and yield in between.
ExploreResult TraceThree(int max_preemptions, std::set<Trace>* traces) {
  Trace trace;
  return Explore({.max_preemptions = max_preemptions, .has_failed = nullptr}, [&] {
    // The schedule before has ended by now.
    if (!trace.empty()) traces->insert(std::exchange(trace, {}));
    for (int i = 0; i < 3; ++i) {
      Go([&trace, i] {
        trace.push_back(10 * i);
        Yield();
        trace.push_back(10 * i + 1);
      });
    }
    trace.reserve(6);
  });
}

// Without: orders of fibers are left out, or run more than once.
TEST(ExploreTest, OrdersOfFibersAreEachRunOnce) {
  std::set<Trace> traces;
  ExploreResult result = TraceThree(0, &traces);
  EXPECT_TRUE(result.is_complete) << result.message;
  // All three go before one goes again: 3! orders, twice.
  EXPECT_EQ(result.schedules, 36);
  EXPECT_EQ(traces.size(), 35u);  // the last one's is still there

  traces.clear();
  result = TraceThree(3, &traces);
  EXPECT_TRUE(result.is_complete) << result.message;
  EXPECT_EQ(traces.size(), 90u) << "6! / 2!^3 orders";
  EXPECT_GT(result.schedules, 90);
}

// Loads, lets go where another worker could come in between, and stores.
void LoseAnUpdate(int* counter) {
  static Mutex elsewhere;
  const int value = *counter;
  MutexLock hold(elsewhere);
  *counter = value + 1;
}

ExploreResult FindLostUpdate(ExploreOptions options) {
  static bool was_lost;
  was_lost = false;
  options.has_failed = [] { return was_lost; };
  return Explore(options, [] {
    int counter = 0;
    auto other = Spawn([&counter] { LoseAnUpdate(&counter); });
    LoseAnUpdate(&counter);
    other.Join();
    was_lost = counter != 2;
  });
}

// Without: the bound bounds something else, or a schedule that failed cannot be had again.
TEST(ExploreTest, ARaceThatTakesOnePreemptionIsFoundWithOneAndReplays) {
  const ExploreResult none = FindLostUpdate({.max_preemptions = 0});
  EXPECT_TRUE(none.ok) << none.message;
  EXPECT_TRUE(none.is_complete);

  const ExploreResult found = FindLostUpdate({.max_preemptions = 1});
  ASSERT_FALSE(found.ok);
  EXPECT_FALSE(found.is_complete);
  EXPECT_THAT(
      found.message,
      AllOf(HasSubstr(absl::StrCat("schedule ", found.schedule, ": the body found a failure")),
            HasSubstr(absl::StrCat("WEFT_SCHEDULE='", found.schedule, "'"))));
  for (int i = 0; i < 3; ++i) {
    const ExploreResult again =
        FindLostUpdate({.max_preemptions = 1, .only_schedule = found.schedule});
    EXPECT_FALSE(again.ok);
    EXPECT_EQ(again.schedule, found.schedule);
    EXPECT_EQ(again.schedules, 1);
  }
  const ExploreResult first = FindLostUpdate({.max_preemptions = 1, .only_schedule = "0"});
  EXPECT_TRUE(first.ok) << first.message;
  EXPECT_EQ(first.schedules, 1);
  EXPECT_FALSE(first.is_complete);
}

// Without: what two fibers can only do on few of many schedules goes unseen.
TEST(ExploreTest, MutexesThatAreLockedInTwoOrdersAreFoundToMeet) {
  const auto lock_both = [](Mutex& first, Mutex& second) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    MutexLock hold(first);
    absl::Status status = second.Lock(absl::Hours(1));
    if (status.ok()) second.unlock();
    return status;
  };
  const auto body = [&](bool is_ordered) {
    Mutex a, b;
    auto other = Spawn([&] { return is_ordered ? lock_both(a, b) : lock_both(b, a); });
    const absl::Status mine = lock_both(a, b);
    const absl::Status others = other.Join();
    return mine.ok() && others.ok();
  };
  static bool is_dead;
  is_dead = false;
  const ExploreOptions options = {.has_failed = [] { return is_dead; }};
  const ExploreResult fine = Explore(options, [&] { is_dead = !body(true); });
  EXPECT_TRUE(fine.is_complete) << fine.message;
  const ExploreResult found = Explore(options, [&] { is_dead = !body(false); });
  EXPECT_FALSE(found.ok);
  EXPECT_THAT(found.message, HasSubstr("at 1h1s of the virtual clock"));
}

// Without: a timeout that comes too late in every schedule hides what it does when it wins.
TEST(ExploreTest, LateTimersLetTimeoutsWin) {
  int timeouts = 0, ends = 0;
  const auto body = [&] {
    auto child = Spawn([] {
      for (int i = 0; i < 2; ++i) Yield();
    });
    ++(child.Wait(absl::Seconds(1)).ok() ? ends : timeouts);
    child.Join();
  };
  EXPECT_TRUE(Explore({}, body).is_complete);
  EXPECT_EQ(timeouts, 0);
  EXPECT_GT(ends, 0);
  EXPECT_TRUE(Explore({.max_late_timers = 1}, body).is_complete);
  EXPECT_GT(timeouts, 0);
}

// Without: one loop that waits for another by yielding has schedules without end.
TEST(ExploreTest, LoopsThatYieldUntilOthersHaveRunAreFinite) {
  const ExploreResult result = Explore({}, [] {
    bool is_set = false;
    int rounds = 0;
    const auto spin = [&] {
      while (!is_set) {
        ++rounds;
        Yield();
      }
    };
    auto one = Spawn(spin);
    auto two = Spawn(spin);
    Go([&is_set] { is_set = true; });
    one.Join();
    two.Join();
    EXPECT_LT(rounds, 20);
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_TRUE(result.is_complete);
}

// Without: "all" is said of what was cut short.
TEST(ExploreTest, WhatIsCutShortIsNotComplete) {
  const auto body = [] {
    (void)ChooseBelow(7);
    EXPECT_EQ(CurrentSeed(), 0u);
  };
  ExploreResult result = Explore({.max_schedules = 6}, body);
  EXPECT_TRUE(result.ok);
  EXPECT_FALSE(result.is_complete);
  EXPECT_TRUE(result.is_cut_short);
  EXPECT_EQ(result.schedules, 6);
  result = Explore({.max_schedules = 7}, body);
  EXPECT_TRUE(result.is_complete);
  EXPECT_FALSE(result.is_cut_short);
}

// Without: a body that depends on more than its choices is explored in part, and nobody is told.
TEST(ExploreTest, ABodyThatDoesNotDoTheSameEachTimeIsToldSo) {
  int runs = 0;
  const ExploreResult result = Explore({}, [&runs] {
    (void)ChooseBelow(++runs == 1 ? 3 : 2);
    (void)ChooseBelow(2);
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message,
              HasSubstr("(choice 1 is one of 2 and was one of 3): the body does not "
                        "do the same each time"));
}

// Without: leaked fibers of an exploration are not seen, or not named.
TEST(ExploreTest, FibersThatAreLeftAreNamed) {
  const int spawn_line = __LINE__ + 3;
  const ExploreResult result = Explore({}, [] {
    static Event never;
    Go([] { EXPECT_TRUE(absl::IsCancelled(never.Wait())); });
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, AllOf(HasSubstr("leaked fibers"),
                                    HasSubstr(absl::StrCat("explore_test.cc:", spawn_line))));
}

// Without: schedules of bodies with many alternatives cannot be written down.
TEST(ExplorationTest, SchedulesAreReadAsTheyAreWritten) {
  for (const char* text : {"0", "1", "001z", "(36)", "0(1234567)02"}) {
    std::optional<Exploration> exploration = Exploration::Parse(text);
    ASSERT_TRUE(exploration.has_value()) << text;
    for (int i = 0; i < 10; ++i) (void)exploration->Choose(2'000'000);
    EXPECT_EQ(exploration->schedule(), text);
    EXPECT_EQ(exploration->Divergence(), "");
  }
  for (const char* text : {"", "A", "-1", "(", "(12", "()", "1 2", "(99999999999)"}) {
    EXPECT_FALSE(Exploration::Parse(text).has_value()) << text;
  }
  std::optional<Exploration> exploration = Exploration::Parse("05");
  (void)exploration->Choose(3);
  EXPECT_THAT(exploration->Divergence(), HasSubstr("ended after 1 of 2"));
  EXPECT_EQ(exploration->Choose(3), 2u);
  EXPECT_THAT(exploration->Divergence(), HasSubstr("choice 2 is one of 3 and was number 5"));
}

// Run by the test below only.
FIBER_EXPLORE_TEST(ExploreReplayTest, DISABLED_LosesAnUpdate) {
  int counter = 0;
  auto other = Spawn([&counter] { LoseAnUpdate(&counter); });
  LoseAnUpdate(&counter);
  other.Join();
  EXPECT_EQ(counter, 2);
}

// Without: the command that a failure prints does not work.
TEST(ExploreTest, TheCommandInAFailureReplaysIt) {
  const std::string filter = " --gtest_filter=ExploreReplayTest.DISABLED_LosesAnUpdate";
  const std::string also = " --gtest_also_run_disabled_tests";
  const std::string program = tests::ThisProgram();
  const tests::Output first = tests::RunCommand(program + filter + also);
  ASSERT_EQ(first.exit_status, 1) << first.text;
  const std::string command = tests::LineAfter(first.text, "To replay it:\n");
  ASSERT_THAT(command, HasSubstr(filter + " --schedule='"));
  const std::string schedule = command.substr(command.find("--schedule=") + 11);
  const std::string complaint = absl::StrCat("schedule ", schedule.substr(1, schedule.size() - 2),
                                             ": the body found a failure");
  for (const std::string& replay :
       {command + also, absl::StrCat("WEFT_SCHEDULE=", schedule, " ", program, filter, also)}) {
    const tests::Output again = tests::RunCommand(replay);
    EXPECT_EQ(again.exit_status, 1) << again.text;
    EXPECT_THAT(again.text, HasSubstr(complaint));
  }
  EXPECT_EQ(tests::RunCommand(absl::StrCat(program, filter, also, " --schedule=0")).exit_status, 0);
}

// Without: the test's face of an exploration fails where nothing does.
FIBER_EXPLORE_TEST(ExploreGtestTest, ACounterUnderAMutexIsRightOnAllSchedules) {
  Mutex mutex;
  int counter = 0;
  const auto add = [&] {
    MutexLock hold(mutex);
    LoseAnUpdate(&counter);
  };
  auto other = Spawn(add);
  add();
  other.Join();
  EXPECT_EQ(counter, 2);
}

void AbortInSecond() {
  Explore({}, [] {
    if (ChooseBelow(2) == 1) abort();
  });
}

void ChooseOutside() { (void)ChooseBelow(2); }

TEST(ExploreDeathTest, MisuseIsNamed) {
  EXPECT_DEATH(AbortInSecond(), "weft: aborted in schedule 1\n");
  EXPECT_DEATH(ChooseOutside(), "ChooseBelow\\(\\) outside of any simulation");
  EXPECT_DEATH(Explore({.max_schedules = 0}, [] {}),
               "Explore\\(\\) of 0 schedules, at .*explore_test");
  EXPECT_DEATH(Explore({.only_schedule = "-"}, [] {}), "only_schedule = -: a schedule is digits");
}

}  // namespace
}  // namespace fiber::sim
