// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/cpu_count.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "fiber/internal/system_calls.h"

namespace sched::internal {
namespace {

using fiber::internal::System;

int GetOwnAffinity(size_t bytes, cpu_set_t* mask) {
  return System().sched_getaffinity(0, bytes, mask);
}

// The kernel refuses a mask that is smaller than its own with EINVAL, and a cpu_set_t ends at 1024
// CPUs.
int CpusInAffinity(const CpuSources& sources) {
  constexpr size_t kMostCpus = size_t{1} << 20;
  const auto& get = sources.get_affinity ? sources.get_affinity : GetOwnAffinity;
  for (size_t cpus = CPU_SETSIZE; cpus <= kMostCpus; cpus *= 2) {
    std::vector<cpu_set_t> mask(cpus / CPU_SETSIZE);
    const size_t bytes = mask.size() * sizeof(cpu_set_t);
    if (get(bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
    if (errno != EINVAL) break;
  }
  return static_cast<int>(System().sysconf(_SC_NPROCESSORS_ONLN));
}

}  // namespace

int UsableCpus(const CpuSources& sources) {
  const int cpus = std::max(1, CpusInAffinity(sources));
  return std::min(cpus, CgroupCpuQuota(sources.cgroup).value_or(cpus));
}

absl::StatusOr<std::optional<int>> WorkersFromEnv(const char* value) {
  if (value == nullptr || *value == '\0') return std::nullopt;
  const absl::string_view text = value;
  const bool all_digits = std::all_of(text.begin(), text.end(), absl::ascii_isdigit);
  int workers = 0;
  if (all_digits && absl::SimpleAtoi(text, &workers) && workers >= 1 && workers <= kMaxWorkers) {
    return workers;
  }
  constexpr size_t kQuoted = 64;
  return absl::InvalidArgumentError(
      absl::StrCat("WEFT_WORKERS=\"", absl::CHexEscape(text.substr(0, kQuoted)),
                   text.size() > kQuoted ? "..." : "", "\": it has to be a whole number from 1 to ",
                   kMaxWorkers));
}

}  // namespace sched::internal
