// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/stall_log.h"

#include <string>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "fiber/internal/thread_state.h"

namespace sched::internal {

// Where to note that `site` is reported; -1: it is not to be. File names are literals: those of one place are one pointer, but for
// templates that several files instantiate, which are then reported once for each.
int StallLog::PlaceFor(const std::source_location& site, int64_t now_ns) const {
  size_t oldest = 0;
  for (size_t i = 0; i < kSites; ++i) {
    const Reported& reported = sites_[i];
    if (reported.file == site.file_name() && reported.line == site.line() && reported.column == site.column()) {
      return now_ns - reported.at_ns < kIntervalNs ? -1 : static_cast<int>(i);
    }
    if (sites_[oldest].file == nullptr) continue;
    if (reported.file == nullptr || reported.at_ns < sites_[oldest].at_ns) oldest = i;
  }
  if (sites_[oldest].file != nullptr && now_ns - sites_[oldest].at_ns < kIntervalNs) return -1;
  return static_cast<int>(oldest);
}

void StallLog::NoteReported(const std::source_location& site, int64_t now_ns) {
  const int place = PlaceFor(site, now_ns);
  if (place < 0) return;
  sites_[place] = {.file = site.file_name(), .line = site.line(), .column = site.column(), .at_ns = now_ns};
}

void WriteStall(const Stall& stall) {
  const std::string text = stall.ToString();
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    fiber::internal::LogLine("%.*s", static_cast<int>(line.size()), line.data());
  }
}

}  // namespace sched::internal
