// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/sim.h"

#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/sim/internal/replay.h"
#include "fiber/sim/internal/simulation.h"

namespace fiber::sim {
namespace {

using internal::Simulation;

// What is left of the schedules that could not be ended: fibers refer to them for ever.
void KeepForEver(std::unique_ptr<Simulation> simulation) {
  struct Abandoned {
    fiber::internal::SpinLock lock;
    std::vector<std::unique_ptr<Simulation>> all ABSL_GUARDED_BY(lock);
  };
  static Abandoned* const abandoned = new Abandoned;
  fiber::internal::SpinLockHolder hold(abandoned->lock);
  abandoned->all.push_back(std::move(simulation));
}

// The simulation whose worker the calling thread is; null: none.
Simulation* Current() { return dynamic_cast<Simulation*>(fiber::internal::ThisThread().scheduler); }

}  // namespace

Result Simulate(const SimOptions& options, absl::FunctionRef<void()> body,
                std::source_location site) {
  if (fiber::internal::ThisThread().scheduler != nullptr) {
    fiber::internal::Fatal("Simulate() is called on a worker, at %s:%u; it takes a plain thread",
                           site.file_name(), static_cast<unsigned>(site.line()));
  }
  const std::optional<uint64_t> only_seed = internal::SeedFromEnvironment();
  const uint64_t first_seed = only_seed.value_or(options.first_seed);
  const int schedules = only_seed.has_value() ? 1 : options.schedules;
  if (schedules < 1) fiber::internal::Fatal("SimOptions::schedules = %d: nothing would be tested", schedules);
  Result result;
  for (int i = 0; i < schedules; ++i) {
    const uint64_t seed = first_seed + static_cast<uint64_t>(i);
    auto simulation = std::make_unique<Simulation>(options, seed);
    {
      internal::SeedOnAbort say_seed(seed);
      simulation->Run(body, site);
    }
    result.schedules = i + 1;
    result.steps += simulation->steps();
    std::string failure = simulation->failure();
    if (failure.empty() && options.has_failed != nullptr && options.has_failed()) {
      failure = "the body found a failure";
    }
    if (!failure.empty()) {
      result.ok = false;
      result.seed = seed;
      result.message =
          absl::StrCat("seed ", seed, ": ", failure, "\n  after ", simulation->steps(),
                       " steps, at ", absl::FormatDuration(absl::Nanoseconds(simulation->NowNs())),
                       " of the virtual clock (which starts at 1s); WEFT_SEED=", seed, " in the environment replays it");
    }
    if (simulation->is_abandoned()) KeepForEver(std::move(simulation));
    if (!result.ok) break;
  }
  return result;
}

uint64_t CurrentSeed() {
  const Simulation* simulation = Current();
  return simulation == nullptr ? 0 : simulation->seed();
}

}  // namespace fiber::sim
