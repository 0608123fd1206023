// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/explore.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "fiber/sim/internal/exploration.h"
#include "fiber/sim/internal/replay.h"
#include "fiber/sim/internal/schedule.h"
#include "fiber/sim/sim.h"

namespace fiber::sim {

ExploreResult Explore(const ExploreOptions& options, absl::FunctionRef<void()> body,
                      std::source_location site) {
  internal::CheckCall("Explore", site, options.max_schedules);
  SimOptions simulated;
  simulated.max_steps = options.max_steps;
  simulated.default_stack_bytes = options.default_stack_bytes;
  simulated.has_failed = options.has_failed;
  const internal::Bounds bounds = {options.max_preemptions, options.max_late_timers};

  std::optional<internal::Exploration> only = internal::ScheduleFromEnvironment();
  if (!only.has_value() && !options.only_schedule.empty()) {
    only = internal::ParseSchedule("ExploreOptions::only_schedule = ", options.only_schedule);
  }
  internal::Exploration exploration = only.value_or(internal::Exploration());
  ExploreResult result;
  for (;;) {
    const internal::ScheduleEnd end =
        internal::RunSchedule(simulated, 0, body, site, &exploration, bounds);
    ++result.schedules;
    result.steps += end.steps;
    if (!end.failure.empty()) {
      result.ok = false;
      result.schedule = exploration.schedule();
      result.message = absl::StrCat(end.failure, "; WEFT_SCHEDULE='", result.schedule,
                                    "' in the environment replays it");
      return result;
    }
    if (only.has_value()) return result;
    if (!exploration.Next()) {
      result.is_complete = true;
      return result;
    }
    if (result.schedules == options.max_schedules) {
      result.is_cut_short = true;
      return result;
    }
  }
}

}  // namespace fiber::sim
