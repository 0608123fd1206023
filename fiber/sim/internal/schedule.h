// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SIM_INTERNAL_SCHEDULE_H_
#define WEFT_FIBER_SIM_INTERNAL_SCHEDULE_H_

#include <cstdint>
#include <source_location>
#include <string>

#include "absl/functional/function_ref.h"
#include "fiber/sim/sim.h"

namespace fiber::sim::internal {

class Exploration;

// How many choices of a schedule that is explored may be out of the ordinary.
struct Bounds {
  int preemptions = 0;
  int late_timers = 0;
};

// ScheduleEnd says how one schedule went.
struct ScheduleEnd {
  int64_t steps = 0;
  // Empty: nothing was wrong. Else "NAME: what, with the fibers concerned", and when.
  std::string failure;
};

// Runs one schedule to its end: that of `seed`, or if `exploration` is not null, the one it chooses
// within `bounds`. Blocks the thread.
ScheduleEnd RunSchedule(const SimOptions& options, uint64_t seed, absl::FunctionRef<void()> body,
                        std::source_location site, Exploration* exploration = nullptr,
                        Bounds bounds = {});

// Ends the process if the calling thread is a worker, or nothing would be run.
void CheckCall(const char* function, std::source_location site, int64_t schedules);

}  // namespace fiber::sim::internal

#endif  // WEFT_FIBER_SIM_INTERNAL_SCHEDULE_H_
