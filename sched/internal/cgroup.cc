// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/cgroup.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"

namespace sched::internal {
namespace {

// A machine with thousands of containers has a mount table of some hundred kilobytes.
constexpr size_t kMaxFileBytes = size_t{16} << 20;

// A process without descriptors would have more workers than CPUs, and more stacks than memory. Once: where one file cannot
// be opened, neither can the others.
void SayIfExhausted(const std::string& path, int error) {
  static fiber::internal::Atomic<bool> was_said{false};
  if (error != EMFILE && error != ENFILE && error != ENOMEM) return;
  if (was_said.exchange(true, std::memory_order_relaxed)) return;
  fiber::internal::LogLine("limits of control groups are not known to this process, and not kept: %s: %s", path.c_str(),
                           strerror(error));
}

// "" for what cannot be read: no limit stands in an empty file. By hand, since these files have no
// size to ask for, and a stream would throw or not, depending on its directory.
std::string ReadFile(const std::string& path) {
  const fiber::internal::SystemCalls& system = fiber::internal::System();
  const int fd = system.open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    SayIfExhausted(path, errno);
    return "";
  }
  std::string contents;
  char buffer[4096];
  while (contents.size() < kMaxFileBytes) {
    const ssize_t count = system.read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) contents.clear();
    if (count <= 0) break;
    contents.append(buffer, static_cast<size_t>(count));
  }
  system.close(fd);
  return contents;
}

// Groups of one controller as this process can see them: a directory, and the names on the way from
// there down to the process's group.
struct Hierarchy {
  std::string mount_point;
  std::vector<std::string> names;
};

struct Mount {
  std::string root;  // which group lies at the mount point
  std::string mount_point;
};

bool ListHas(absl::string_view comma_separated, absl::string_view name) {
  const std::vector<absl::string_view> items = absl::StrSplit(comma_separated, ',');
  return std::find(items.begin(), items.end(), name) != items.end();
}

// Blanks, tabs and backslashes come as \040 and the like.
std::string Unescape(absl::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const absl::string_view digits = text.substr(i + 1, 3);
    const bool is_octal =
        digits.size() == 3 &&
        std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '7'; });
    if (text[i] == '\\' && is_octal) {
      plain +=
          static_cast<char>((digits[0] - '0') * 64 + (digits[1] - '0') * 8 + (digits[2] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// "36 35 98:0 /root /mount/point rw,noatime master:1 - cgroup cgroup rw,cpu": the number of fields
// before the lone dash varies.
std::vector<Mount> MountsOf(absl::string_view mountinfo, absl::string_view controller) {
  std::vector<Mount> mounts;
  for (const absl::string_view line : absl::StrSplit(mountinfo, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (dash - fields.begin() < 6 || fields.end() - dash < 4) continue;
    const bool matches = controller.empty() ? dash[1] == "cgroup2"
                                            : dash[1] == "cgroup" && ListHas(dash[3], controller);
    if (!matches) continue;
    mounts.push_back({.root = Unescape(fields[3]), .mount_point = Unescape(fields[4])});
  }
  return mounts;
}

// The process's group in the controller's hierarchy, "" is version 2: "4:cpu,cpuacct:/path",
// "0::/path".
std::optional<std::string> GroupOf(absl::string_view cgroup, absl::string_view controller) {
  for (const absl::string_view line : absl::StrSplit(cgroup, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3 || !absl::StartsWith(fields[2], "/")) continue;
    if (controller.empty() ? fields[1].empty() : ListHas(fields[1], controller)) {
      return std::string(fields[2]);
    }
  }
  return std::nullopt;
}

std::vector<std::string> NamesOf(absl::string_view path) {
  return absl::StrSplit(path, '/', absl::SkipEmpty());
}

// The names that lead from `root` to `group`, nothing if it is not below. A name ".." is shown for
// what lies outside of the process's cgroup namespace: there is no way to follow.
std::optional<std::vector<std::string>> PathBelow(absl::string_view root, absl::string_view group) {
  const std::vector<std::string> above = NamesOf(root);
  const std::vector<std::string> all = NamesOf(group);
  if (std::find(all.begin(), all.end(), "..") != all.end()) return std::nullopt;
  if (above.size() > all.size() || !std::equal(above.begin(), above.end(), all.begin())) {
    return std::nullopt;
  }
  return std::vector<std::string>(all.begin() + static_cast<ptrdiff_t>(above.size()), all.end());
}

// All mounts from which the process's group can be reached: each may show another part of the way
// to the root. If there is none, a container's namespaces hide it, and the mount point shows the
// container's own group.
std::vector<Hierarchy> HierarchiesOf(const CgroupSources& sources, absl::string_view controller) {
  const std::string self = absl::StrCat(sources.root, "/proc/self/");
  const std::optional<std::string> group = GroupOf(ReadFile(self + "cgroup"), controller);
  if (!group.has_value()) return {};
  const std::vector<Mount> mounts = MountsOf(ReadFile(self + "mountinfo"), controller);
  std::vector<Hierarchy> found;
  for (const Mount& mount : mounts) {
    if (auto names = PathBelow(mount.root, *group)) {
      found.push_back(
          {.mount_point = sources.root + mount.mount_point, .names = *std::move(names)});
    }
  }
  if (found.empty() && !mounts.empty()) {
    found.push_back({.mount_point = sources.root + mounts.front().mount_point, .names = {}});
  }
  return found;
}

// Calls `visit` with the directory of the process's group and of each above it. A group that does
// not exist here is harmless: reading its files finds nothing.
void ForEachGroup(const CgroupSources& sources, absl::string_view controller,
                  absl::FunctionRef<void(const std::string& directory)> visit) {
  for (const Hierarchy& hierarchy : HierarchiesOf(sources, controller)) {
    std::string directory = hierarchy.mount_point;
    visit(directory);
    for (const std::string& name : hierarchy.names) {
      absl::StrAppend(&directory, "/", name);
      visit(directory);
    }
  }
}

// A whole number, nothing else in the file but white space.
std::optional<int64_t> ParseNumber(absl::string_view text) {
  const absl::string_view stripped = absl::StripAsciiWhitespace(text);
  int64_t number = 0;
  if (!absl::SimpleAtoi(stripped, &number)) return std::nullopt;
  return number;
}

std::optional<int64_t> ReadNumber(const std::string& path) { return ParseNumber(ReadFile(path)); }

// quota -1 is version 1's way of saying none.
std::optional<int> CpusFor(std::optional<int64_t> quota_us, std::optional<int64_t> period_us) {
  if (!quota_us || !period_us || *quota_us <= 0 || *period_us <= 0) return std::nullopt;
  const int64_t cpus = *quota_us / *period_us + (*quota_us % *period_us == 0 ? 0 : 1);
  return static_cast<int>(std::min<int64_t>(cpus, INT32_MAX));
}

// cpu.max: "150000 100000", "max 100000".
std::optional<int> ParseCpuMax(absl::string_view text) {
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::StripAsciiWhitespace(text), ' ');
  if (fields.size() != 2) return std::nullopt;
  return CpusFor(ParseNumber(fields[0]), ParseNumber(fields[1]));
}

// Version 1 says the largest multiple of the page size for none, pages being up to 64 KiB. A
// process under a limit of zero would not be here.
size_t BytesFor(std::optional<int64_t> limit) {
  constexpr int64_t kUnlimited = INT64_MAX - 0xffff;
  if (!limit || *limit <= 0 || *limit >= kUnlimited) return SIZE_MAX;
  return static_cast<size_t>(*limit);
}

}  // namespace

std::optional<int> CgroupCpuQuota(const CgroupSources& sources) {
  std::optional<int> tightest;
  const auto tighten = [&](std::optional<int> cpus) {
    if (cpus.has_value()) tightest = std::min(*cpus, tightest.value_or(*cpus));
  };
  ForEachGroup(sources, "", [&](const std::string& directory) {
    tighten(ParseCpuMax(ReadFile(directory + "/cpu.max")));
  });
  ForEachGroup(sources, "cpu", [&](const std::string& directory) {
    tighten(CpusFor(ReadNumber(directory + "/cpu.cfs_quota_us"),
                    ReadNumber(directory + "/cpu.cfs_period_us")));
  });
  return tightest;
}

size_t CgroupMemoryMax(const CgroupSources& sources) {
  size_t tightest = SIZE_MAX;
  const auto visit = [&](const char* file) {
    return [&tightest, file](const std::string& directory) {
      tightest = std::min(tightest, BytesFor(ReadNumber(absl::StrCat(directory, "/", file))));
    };
  };
  ForEachGroup(sources, "", visit("memory.max"));
  ForEachGroup(sources, "memory", visit("memory.limit_in_bytes"));
  return tightest;
}

}  // namespace sched::internal
