// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SIM_INTERNAL_REPLAY_H_
#define WEFT_FIBER_SIM_INTERNAL_REPLAY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fiber/sim/internal/exploration.h"

namespace fiber::sim::internal {

// The seed that WEFT_SEED asks for. Ends the process if it is no number.
std::optional<uint64_t> SeedFromEnvironment();

// The seed that `--seed=N` on this process's command line asks for, wherever main() is: a test's
// main() is mostly GoogleTest's. Ends the process if it is no number.
std::optional<uint64_t> SeedFromCommandLine();

// The same for schedules that are explored: WEFT_SCHEDULE, and `--schedule=CHOICES`.
std::optional<Exploration> ScheduleFromEnvironment();
std::optional<std::string> ScheduleFromCommandLine();
// Ends the process, with a message that begins with `source`, if `text` is no schedule.
Exploration ParseSchedule(const char* source, std::string_view text);

// This program, as it can be named to a shell.
std::string ProgramForShell();

// ScheduleOnAbort says which schedule it was if this thread aborts while it lives: a failed check
// within one is not reported by Simulate() or Explore(), which never return.
class ScheduleOnAbort {
 public:
  // `exploration` may be null: then it is that of `seed`.
  ScheduleOnAbort(uint64_t seed, const Exploration* exploration);
  ~ScheduleOnAbort();
  ScheduleOnAbort(const ScheduleOnAbort&) = delete;
  ScheduleOnAbort& operator=(const ScheduleOnAbort&) = delete;
};

}  // namespace fiber::sim::internal

#endif  // WEFT_FIBER_SIM_INTERNAL_REPLAY_H_
