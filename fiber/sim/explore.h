// SPDX-License-Identifier: Apache-2.0
//
// Run fibers on every schedule there is: what a small body cannot do on any of them, it cannot do.
//
//   const fiber::sim::ExploreResult result = fiber::sim::Explore({}, [] {
//     int hits = 0;
//     auto child = fiber::Spawn([&] { ++hits; });
//     ++hits;
//     child.Join();
//     assert(hits == 2);
//   });
//   std::cout << result.schedules << " schedules" << (result.is_complete ? ": all" : "") << "\n";
//   if (!result.ok) std::cerr << result.message << "\n";
//
// fiber/sim/gtest.h wraps this for GoogleTest.
#ifndef WEFT_FIBER_SIM_EXPLORE_H_
#define WEFT_FIBER_SIM_EXPLORE_H_

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

#include "absl/functional/function_ref.h"

namespace fiber::sim {

// ExploreOptions says which schedules there are, and how many of them to run at most.
struct ExploreOptions {
  // How often in a schedule a fiber that could go on is made to give way to another, or one that
  // yields goes on before all others have run. Most races need one or two.
  int max_preemptions = 2;
  // How often in a schedule the clock jumps though fibers are runnable, as if they were slow:
  // timeouts then race with what they bound.
  int max_late_timers = 0;

  int64_t max_schedules = 1'000'000;  // then it stops, and is not complete
  int64_t max_steps = 10'000;         // switches and timers of one schedule; more is a livelock
  size_t default_stack_bytes = 0;     // as in SimOptions
  bool (*has_failed)() = nullptr;     // asked after each schedule: whether the body found a failure
  std::string only_schedule = {};     // runs this one and no other; empty: all
};

// ExploreResult says how the schedules went.
struct ExploreResult {
  bool ok = true;
  bool is_complete = false;   // all were run, and none failed
  bool is_cut_short = false;  // there are more than max_schedules
  std::string schedule{};     // of the one that failed: the choices it was made of
  std::string message{};      // what was wrong, with the fibers concerned; several lines
  int64_t schedules = 0;      // how many were run
  int64_t steps = 0;          // switches and timers, of all of them
};

// Runs `body` once for each schedule within the bounds, in an order that is always the same, and
// stops at the first that fails. What a schedule is, on which clock it runs and when it fails, is
// said at Simulate(). Blocks the thread.
//
// Enumerated are: who goes on where a fiber parks, ends or yields; whether and to whom it gives way
// at each point where on several workers somebody else could have come first; the order of timers
// that are due; each ChooseBelow(). Two or three fibers that make a few calls each have some
// hundreds or thousands of schedules; each further call, fiber or preemption multiplies them.
//
// A body that loops with Yield() until others have done something has finitely many schedules all
// the same: who yields lets all others go first, but for max_preemptions.
//
// WEFT_SCHEDULE=CHOICES in the environment runs that schedule and no other; the message of a
// failure has it. It replays as long as the body and the bounds stay as they are.
//
// REQUIRES: the caller is on a plain thread, not in a fiber; `body` does the same each time, but
// for what it asks ChooseBelow().
ExploreResult Explore(const ExploreOptions& options, absl::FunctionRef<void()> body,
                      std::source_location site = std::source_location::current());

}  // namespace fiber::sim

#endif  // WEFT_FIBER_SIM_EXPLORE_H_
