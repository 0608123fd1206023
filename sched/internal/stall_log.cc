// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/stall_log.h"

#include <string>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "fiber/internal/thread_state.h"

namespace sched::internal {

// File names are literals: those of one place are one pointer, but for templates that several files instantiate, which are
// then reported once for each.
bool StallLog::ShouldReport(const std::source_location& site, int64_t now_ns) {
  Reported* oldest = &sites_[0];
  for (Reported& reported : sites_) {
    if (reported.file == site.file_name() && reported.line == site.line() && reported.column == site.column()) {
      if (now_ns - reported.at_ns < kIntervalNs) return false;
      reported.at_ns = now_ns;
      return true;
    }
    if (oldest->file == nullptr) continue;
    if (reported.file == nullptr || reported.at_ns < oldest->at_ns) oldest = &reported;
  }
  if (oldest->file != nullptr && now_ns - oldest->at_ns < kIntervalNs) return false;
  *oldest = {.file = site.file_name(), .line = site.line(), .column = site.column(), .at_ns = now_ns};
  return true;
}

void WriteStall(const Stall& stall) {
  const std::string text = stall.ToString();
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    fiber::internal::LogLine("%.*s", static_cast<int>(line.size()), line.data());
  }
}

}  // namespace sched::internal
