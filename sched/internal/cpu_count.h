// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_CPU_COUNT_H_
#define WEFT_SCHED_INTERNAL_CPU_COUNT_H_

#include <sched.h>

#include <cstddef>
#include <functional>
#include <optional>

#include "absl/status/statusor.h"
#include "sched/internal/cgroup.h"

namespace sched::internal {

inline constexpr int kMaxWorkers = 1024;
inline constexpr int kMostThreads = 16384;

// CpuSources says where to ask; tests answer for the kernel.
struct CpuSources {
  CgroupSources cgroup = {};
  // Like sched_getaffinity for the calling thread: 0, or -1 and errno. Empty: sched_getaffinity.
  std::function<int(size_t bytes, cpu_set_t* mask)> get_affinity = {};
};

// How many CPUs this process may keep busy: those of the calling thread's affinity mask, but no
// more than the tightest CPU quota of its control groups, rounded up. At least 1. Quotas change
// under a running process: ask again. Blocks the thread.
int UsableCpus(const CpuSources& sources = {});

// What WEFT_WORKERS asks for, given its value or null: nothing if it is unset or empty. Never
// blocks. kInvalidArgument: not a whole number from 1 to kMaxWorkers; the message names the
// variable and its value.
absl::StatusOr<std::optional<int>> WorkersFromEnv(const char* value);

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_CPU_COUNT_H_
