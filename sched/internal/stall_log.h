// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_STALL_LOG_H_
#define WEFT_SCHED_INTERNAL_STALL_LOG_H_

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "sched/stall.h"

namespace sched::internal {

// StallLog keeps stalls from filling the log: of fibers spawned at one place the first is reported at once, then at most one
// a minute. So many places at most count as reported within a minute; with more than that, the others are not.
//
// Thread safety: one thread.
class StallLog {
 public:
  static constexpr int64_t kIntervalNs = 60'000'000'000;
  static constexpr size_t kSites = 64;

  // Whether a stall of a fiber spawned at `site` is to be reported now. Never blocks.
  bool ShouldReport(const std::source_location& site, int64_t now_ns) const { return PlaceFor(site, now_ns) >= 0; }
  // It was. Never blocks.
  void NoteReported(const std::source_location& site, int64_t now_ns);

 private:
  struct Reported {
    const char* file = nullptr;  // null: free
    uint32_t line = 0;
    uint32_t column = 0;
    int64_t at_ns = 0;
  };
  int PlaceFor(const std::source_location& site, int64_t now_ns) const;

  Reported sites_[kSites];
};

// To stderr: a write for each line, since stacks are longer than what one write keeps together. Blocks the thread.
void WriteStall(const Stall& stall);

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_STALL_LOG_H_
