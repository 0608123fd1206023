// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/gtest.h"

#include <cstdint>
#include <optional>

#include "fiber/sim/internal/replay.h"

namespace fiber::sim {

void SimulateInTest(SimOptions options, absl::FunctionRef<void()> body, std::source_location site) {
  if (const std::optional<uint64_t> seed = internal::SeedFromCommandLine(); seed.has_value()) {
    options.first_seed = *seed;
    options.schedules = 1;
  }
  if (options.has_failed == nullptr) {
    options.has_failed = [] { return ::testing::Test::HasFailure(); };
  }
  const Result result = Simulate(options, body, site);
  if (result.ok) return;
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  ADD_FAILURE_AT(site.file_name(), static_cast<int>(site.line()))
      << result.message << "\nTo replay it:\n  " << internal::ProgramForShell()
      << " --gtest_filter=" << test.test_suite_name() << "." << test.name()
      << " --seed=" << result.seed;
}

}  // namespace fiber::sim
