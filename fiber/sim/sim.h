// SPDX-License-Identifier: Apache-2.0
//
// Run fibers on seeded schedules and a virtual clock: tests that find races, and find them again.
//
//   const fiber::sim::Result result = fiber::sim::Simulate({}, [] {
//     int hits = 0;
//     auto child = fiber::Spawn([&] { fiber::Sleep(absl::Hours(1)).IgnoreError(); ++hits; });
//     child.Join();
//     assert(hits == 1);
//   });
//   if (!result.ok) std::cerr << result.message << "\n";
//
// fiber/sim/gtest.h wraps this for GoogleTest; explore.h runs all schedules, where a body has few.
#ifndef WEFT_FIBER_SIM_SIM_H_
#define WEFT_FIBER_SIM_SIM_H_

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

#include "absl/functional/function_ref.h"

namespace fiber::sim {

// SimOptions says which schedules to run.
struct SimOptions {
  uint64_t first_seed = 1;
  int schedules = 1000;  // one for each seed from first_seed on

  // That a fiber gives way where on several workers another one could have come first.
  double preempt_probability = 0.25;
  // That at a switch the clock jumps though fibers are runnable, as if they were slow: timeouts then
  // race with what they bound.
  double late_probability = 0;

  int64_t max_steps = 1'000'000;   // switches and timers of one schedule; more is a livelock
  size_t default_stack_bytes = 0;  // of fibers that ask for none; 0: 256 KiB, more with sanitizers
  bool (*has_failed)() = nullptr;  // asked after each schedule: whether the body found a failure
};

// Result says how the schedules went.
struct Result {
  bool ok = true;
  uint64_t seed = 0;      // of the schedule that failed
  std::string message{};  // what was wrong, with the fibers concerned; several lines
  int64_t schedules = 0;  // how many were run
  int64_t steps = 0;      // switches and timers, of all of them
};

// Runs `body` as the first fiber of a schedule, once for each seed, and stops at the first schedule
// that fails. A schedule lasts until `body` and all fibers started from it have ended. Blocks the
// thread.
//
// One schedule: the calling thread runs all fibers, one at a time. At every switch a generator,
// seeded by the seed, picks who goes on among all that are runnable and all timers that are due; at
// every point where on several workers somebody else could have come first (a call that may park, a
// spawn) the fiber that runs gives way with `preempt_probability`. So what happens depends on the
// seed and the body alone, and the seed replays it: as long as the body does not look at addresses,
// fiber ids, real time or random numbers from elsewhere.
//
// The clock is virtual. It stands still while anything is runnable, then jumps to the earliest
// timer: hours pass in microseconds, and a program that computes takes no time. Timers that are due
// at the same instant fire in any order.
//
// A schedule fails if
//
// - `body` ends with an exception, or `has_failed` says so;
// - nothing is runnable, no timer is armed, and fibers are left: a deadlock, or, if `body` has
//   ended, leaked fibers;
// - it takes more than `max_steps`: a livelock. A loop that neither parks nor yields is not seen,
//   and hangs.
//
// The message names the fibers, what they wait for and where they were spawned; it also goes to
// stderr at once. Then all fibers are cancelled, so that what they own is destroyed. Those that hang
// all the same are abandoned: their records, stacks and what these refer to are never freed.
//
// WEFT_SEED=N in the environment runs the schedule of seed N and no other. A process that aborts
// within a schedule says which seed it was.
//
// What is not simulated: other threads. They may not spawn, unpark or cancel fibers of the
// simulation.
//
// REQUIRES: the caller is on a plain thread, not in a fiber.
Result Simulate(const SimOptions& options, absl::FunctionRef<void()> body,
                std::source_location site = std::source_location::current());

// The seed of the schedule that the caller is in, for choices of a test that are to replay with it;
// 0 outside of any, and where schedules are enumerated (explore.h). Never blocks.
uint64_t CurrentSeed();

// A choice of the test's own, one of 0 … count - 1: by the seed of the schedule that the caller is
// in, or each in turn where schedules are enumerated. Never blocks.
//
//   if (fiber::sim::ChooseBelow(2) == 1) connection.Reset();
//
// REQUIRES: count > 0, and the caller is a fiber of a simulation
uint32_t ChooseBelow(uint32_t count);

}  // namespace fiber::sim

#endif  // WEFT_FIBER_SIM_SIM_H_
