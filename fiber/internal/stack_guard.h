// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_GUARD_H_
#define WEFT_FIBER_INTERNAL_STACK_GUARD_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// How stacks are kept from running into their neighbours, the best way first. Each way falls back
// to the next at every call, not once for all: what the kernel grants changes (mlockall, seccomp)
// while a program runs.
//
// | way       | costs                      | refused by                                          |
// |-----------|----------------------------|-----------------------------------------------------|
// | kAuto     | 0.5 µs a stack, no mapping | Linux before 6.15, seccomp, gVisor, locked memory   |
// | kMadvise  | 0.8 µs a stack, no mapping | Linux before 6.13, locked memory                    |
// | kMprotect | two mappings a stack       | vm.max_map_count: at some 30,000 stacks             |
// | kCanary   | a look at park and end     | nothing; finds overflows late, and not all of them  |
enum class GuardMode : uint8_t { kAuto, kMadvise, kMprotect, kCanary };

// StackGuards makes the low ends of stacks fault, and counts how.
//
// Thread safety: Install() is for one thread at a time; counts may be read by anyone.
class StackGuards {
 public:
  // `mode`: the best way to try. `mprotect_budget`: how many mappings kMprotect may use; 0: three
  // quarters of vm.max_map_count, the rest being the program's.
  StackGuards(GuardMode mode, size_t mprotect_budget);

  // Makes accesses to ranges[i] fault, where is_guarded[i] says so afterwards. The first that is
  // left without a guard is announced on stderr, with the reason and the remedy.
  void Install(const iovec* ranges, size_t count, bool* is_guarded);

  // Stacks guarded in this way so far.
  size_t Count(GuardMode way) const {
    return counts_[static_cast<int>(way)].load(std::memory_order_relaxed);
  }

 private:
  void Announce(int mprotect_error);

  const GuardMode mode_;
  const size_t mprotect_budget_;
  Atomic<size_t> counts_[4] = {};
  bool is_announced_ = false;
};

// A canary is a run of zeroes below a stack that has no guard, where the guard would be. Zeroes,
// because looking at a page nobody wrote to costs no memory: a pattern would double what a parked
// fiber takes. In exchange an overflow is missed if it leaves nothing but zeroes in the whole run.
inline constexpr size_t kCanaryBytes = 512;

// Ends the process with a message if a stack without a guard was overrun. At every park and end of
// a fiber.
void CheckCanarySlow(const WaitBlock& block);
inline void CheckCanary(const WaitBlock& block) {
  if (!block.is_stack_guarded) [[unlikely]] {
    CheckCanarySlow(block);
  }
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_GUARD_H_
