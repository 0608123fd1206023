// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/gtest.h"

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "fiber/sim/internal/replay.h"

namespace fiber::sim {
namespace {

bool HasTestFailed() { return ::testing::Test::HasFailure(); }

// `replay` is a flag of the command line.
void FailTest(std::source_location site, const std::string& message, const std::string& replay) {
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  ADD_FAILURE_AT(site.file_name(), static_cast<int>(site.line()))
      << message << "\nTo replay it:\n  " << internal::ProgramForShell()
      << " --gtest_filter=" << test.test_suite_name() << "." << test.name() << " " << replay;
}

}  // namespace

void SimulateInTest(SimOptions options, absl::FunctionRef<void()> body, std::source_location site) {
  if (const std::optional<uint64_t> seed = internal::SeedFromCommandLine(); seed.has_value()) {
    options.first_seed = *seed;
    options.schedules = 1;
  }
  if (options.has_failed == nullptr) options.has_failed = &HasTestFailed;
  const Result result = Simulate(options, body, site);
  if (!result.ok) FailTest(site, result.message, "--seed=" + std::to_string(result.seed));
}

void ExploreInTest(ExploreOptions options, absl::FunctionRef<void()> body,
                   std::source_location site) {
  if (std::optional<std::string> schedule = internal::ScheduleFromCommandLine()) {
    options.only_schedule = *std::move(schedule);
  }
  if (options.has_failed == nullptr) options.has_failed = &HasTestFailed;
  const ExploreResult result = Explore(options, body, site);
  const long long count = static_cast<long long>(result.schedules);
  if (!result.ok) {
    FailTest(site, result.message, "--schedule='" + result.schedule + "'");
  } else if (result.is_complete) {
    printf("explored %lld schedules: all with at most %d preemptions and %d late timers\n", count,
           options.max_preemptions, options.max_late_timers);
  } else if (result.is_cut_short) {
    ADD_FAILURE_AT(site.file_name(), static_cast<int>(site.line()))
        << count << " schedules were run, none of which failed, and there are more: lower "
        << "ExploreOptions::max_preemptions, raise max_schedules, or let the body do less";
  }
}

}  // namespace fiber::sim
