// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/sim.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fiber/internal/thread_state.h"
#include "fiber/sim/internal/replay.h"
#include "fiber/sim/internal/schedule.h"
#include "fiber/sim/internal/simulation.h"

namespace fiber::sim {
namespace {

// The simulation whose worker the calling thread is; null: none.
internal::Simulation* Current() {
  return dynamic_cast<internal::Simulation*>(fiber::internal::ThisThread().scheduler);
}

}  // namespace

Result Simulate(const SimOptions& options, absl::FunctionRef<void()> body,
                std::source_location site) {
  internal::CheckCall("Simulate", site, options.schedules);
  const std::optional<uint64_t> only_seed = internal::SeedFromEnvironment();
  const uint64_t first_seed = only_seed.value_or(options.first_seed);
  const int schedules = only_seed.has_value() ? 1 : options.schedules;
  Result result;
  while (result.ok && result.schedules < schedules) {
    const uint64_t seed = first_seed + static_cast<uint64_t>(result.schedules);
    internal::ScheduleEnd end = internal::RunSchedule(options, seed, body, site);
    ++result.schedules;
    result.steps += end.steps;
    if (end.failure.empty()) continue;
    result.ok = false;
    result.seed = seed;
    result.message =
        absl::StrCat(end.failure, "; WEFT_SEED=", seed, " in the environment replays it");
  }
  return result;
}

uint64_t CurrentSeed() {
  const internal::Simulation* simulation = Current();
  return simulation == nullptr ? 0 : simulation->seed();
}

uint32_t ChooseBelow(uint32_t count) {
  internal::Simulation* simulation = Current();
  if (simulation == nullptr) fiber::internal::Fatal("ChooseBelow() outside of any simulation");
  if (count == 0) fiber::internal::Fatal("ChooseBelow(0): there is nothing to choose from");
  return simulation->ChooseBelow(count);
}

}  // namespace fiber::sim
