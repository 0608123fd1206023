// SPDX-License-Identifier: Apache-2.0
//
// FIBER_SIM_TEST: a GoogleTest test whose body runs as a fiber, on many seeded schedules and a
// virtual clock.
//
//   FIBER_SIM_TEST(CounterTest, NoIncrementIsLost) {
//     Counter counter;
//     auto other = fiber::Spawn([&] { counter.Increment(); });
//     counter.Increment();
//     other.Join();
//     EXPECT_EQ(counter.value(), 2);
//   }
//
// sim.h says what a schedule is and when it fails. The first schedule in which an EXPECT or ASSERT
// fails is the last that runs. The message then has the command that replays it: `--seed=N` on the
// test's command line, or WEFT_SEED=N in the environment, runs the schedule of that seed and no
// other. Fibers that are left when nothing can go on are failures too, and named.
//
// FIBER_EXPLORE_TEST: the same on all schedules there are (explore.h), for bodies of two or three
// fibers that make a few calls each. It fails, too, if there are more than it may run. The command
// has `--schedule=CHOICES`, and WEFT_SCHEDULE=CHOICES in the environment does the same.
#ifndef WEFT_FIBER_SIM_GTEST_H_
#define WEFT_FIBER_SIM_GTEST_H_

#include <source_location>

#include "absl/functional/function_ref.h"
#include "fiber/sim/explore.h"
#include "fiber/sim/sim.h"
#include "gtest/gtest.h"

namespace fiber::sim {

// Simulate() for the body of a GoogleTest test: EXPECT and ASSERT count as failures, and what fails
// is reported to GoogleTest. Blocks the thread.
void SimulateInTest(SimOptions options, absl::FunctionRef<void()> body,
                    std::source_location site = std::source_location::current());

// Explore(), likewise. Not to have run all schedules is a failure, unless one was asked for. Says on
// stdout how many there were. Blocks the thread.
void ExploreInTest(ExploreOptions options, absl::FunctionRef<void()> body,
                   std::source_location site = std::source_location::current());

}  // namespace fiber::sim

// A test with the defaults of SimOptions. For others: TEST, and SimulateInTest() in it.
#define FIBER_SIM_TEST(Suite, Name)                                                 \
  static void Suite##_##Name##_SimBody();                                           \
  TEST(Suite, Name) { ::fiber::sim::SimulateInTest({}, Suite##_##Name##_SimBody); } \
  static void Suite##_##Name##_SimBody()

// Likewise with the defaults of ExploreOptions, and ExploreInTest().
#define FIBER_EXPLORE_TEST(Suite, Name)                                                    \
  static void Suite##_##Name##_ExploreBody();                                             \
  TEST(Suite, Name) { ::fiber::sim::ExploreInTest({}, Suite##_##Name##_ExploreBody); }     \
  static void Suite##_##Name##_ExploreBody()

#endif  // WEFT_FIBER_SIM_GTEST_H_
