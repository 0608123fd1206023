// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_CGROUP_H_
#define WEFT_SCHED_INTERNAL_CGROUP_H_

#include <cstddef>
#include <optional>
#include <string>

namespace sched::internal {

// CgroupSources says where the kernel's files are.
struct CgroupSources {
  // Put before /proc/self/... and before every mount point read there; tests put a directory here.
  std::string root = "";
};

// The limits that control groups put on this process: version 1, version 2, or both at once. A
// limit holds for everything below it, so each directory counts, from the process's own group up to
// the mount point; above that nothing can be seen from inside a container. What is missing,
// unreadable or not understood is no limit.
//
// They read a handful of files, 0.3 ms in all. Blocks the thread.
// Thread safety: any thread.

// The tightest CPU quota in whole CPUs, rounded up, at least 1; nothing if there is none.
std::optional<int> CgroupCpuQuota(const CgroupSources& sources = {});

// The tightest memory limit in bytes, SIZE_MAX if there is none.
size_t CgroupMemoryMax(const CgroupSources& sources = {});

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_CGROUP_H_
