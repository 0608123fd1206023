// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SIM_INTERNAL_REPLAY_H_
#define WEFT_FIBER_SIM_INTERNAL_REPLAY_H_

#include <cstdint>
#include <optional>
#include <string>

namespace fiber::sim::internal {

// The seed that WEFT_SEED asks for. Ends the process if it is no number.
std::optional<uint64_t> SeedFromEnvironment();

// The seed that `--seed=N` on this process's command line asks for, wherever main() is: a test's
// main() is mostly GoogleTest's. Ends the process if it is no number.
std::optional<uint64_t> SeedFromCommandLine();

// This program, as it can be named to a shell.
std::string ProgramForShell();

// SeedOnAbort says which seed it was if this thread aborts while it lives: a failed check within a
// schedule is not reported by Simulate(), which never returns.
class SeedOnAbort {
 public:
  explicit SeedOnAbort(uint64_t seed);
  ~SeedOnAbort();
  SeedOnAbort(const SeedOnAbort&) = delete;
  SeedOnAbort& operator=(const SeedOnAbort&) = delete;
};

}  // namespace fiber::sim::internal

#endif  // WEFT_FIBER_SIM_INTERNAL_REPLAY_H_
