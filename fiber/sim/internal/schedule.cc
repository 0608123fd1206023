// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/internal/schedule.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/sim/internal/exploration.h"
#include "fiber/sim/internal/replay.h"
#include "fiber/sim/internal/simulation.h"

namespace fiber::sim::internal {
namespace {

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

}  // namespace

ScheduleEnd RunSchedule(const SimOptions& options, uint64_t seed, absl::FunctionRef<void()> body,
                        std::source_location site, Exploration* exploration, Bounds bounds) {
  auto simulation = std::make_unique<Simulation>(options, seed, exploration, bounds);
  {
    ScheduleOnAbort say_which(seed, exploration);
    simulation->Run(body, site);
  }
  ScheduleEnd end;
  end.steps = simulation->steps();
  std::string failure = simulation->failure();
  if (failure.empty() && options.has_failed != nullptr && options.has_failed()) {
    failure = "the body found a failure";
  }
  if (exploration != nullptr) {
    if (const std::string divergence = exploration->Divergence(); !divergence.empty()) {
      absl::StrAppend(&failure, failure.empty() ? "" : "\n  ",
                      "it is not the schedule that was to be repeated (", divergence,
                      "): the body does not do the same each time");
    }
  }
  if (!failure.empty()) {
    end.failure =
        absl::StrCat(simulation->name(), ": ", failure, "\n  after ", end.steps, " steps, at ",
                     absl::FormatDuration(absl::Nanoseconds(simulation->NowNs())),
                     " of the virtual clock (which starts at 1s)");
  }
  if (simulation->is_abandoned()) KeepForEver(std::move(simulation));
  return end;
}

void CheckCall(const char* function, std::source_location site, int64_t schedules) {
  const fiber::internal::ThreadState& thread = fiber::internal::ThisThread();
  if (thread.scheduler != nullptr || thread.blocks_for != nullptr) {
    fiber::internal::Fatal("%s() is called on a worker, at %s:%u; it takes a plain thread",
                           function, site.file_name(), static_cast<unsigned>(site.line()));
  }
  if (schedules < 1) {
    fiber::internal::Fatal("%s() of %lld schedules, at %s:%u: nothing would be tested", function,
                           static_cast<long long>(schedules), site.file_name(),
                           static_cast<unsigned>(site.line()));
  }
}

}  // namespace fiber::sim::internal
