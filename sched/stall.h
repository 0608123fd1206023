// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_STALL_H_
#define WEFT_SCHED_STALL_H_

#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace sched {

// Stall is a fiber that keeps its worker to itself: others that are ready wait behind it, or need another thread.
//
//   weft: fiber 12 'resize' (spawned at image.cc:40) has kept its worker for 1.2s: it computes, at
//   weft:   0x5581f3a2c1d4  Scale()
//   weft:   0x5581f3a2c0a1  Thumbnail()
//
// Thread safety: a value.
struct Stall {
  enum class Kind : uint8_t {
    kSpinning,  // it computes: yield now and then, or use threads of your own
    kBlocked,   // it waits in the kernel: a blocking call, or a lock of threads
  };

  Kind kind = Kind::kSpinning;
  uint64_t fiber_id = 0;
  std::string name = {};           // "": it has none
  std::source_location site = {};  // where it was spawned
  absl::Duration duration = {};    // since it was last switched to, as far as was seen
  // Program counters, innermost first; all but the first are return addresses. Empty if the thread would not tell.
  std::vector<void*> stack = {};

  // A line that says who, where from and for how long, then one for each frame, with its symbol. No newline at the end. Reads
  // the program's symbols from disk. Blocks the thread.
  std::string ToString() const;
};

}  // namespace sched

#endif  // WEFT_SCHED_STALL_H_
