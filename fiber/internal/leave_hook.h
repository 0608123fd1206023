// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_LEAVE_HOOK_H_
#define WEFT_FIBER_INTERNAL_LEAVE_HOOK_H_

#include <atomic>

namespace fiber::internal {

struct Record;

enum class Leaving : unsigned char { kPark, kYield };

// Called by a fiber that is about to leave its worker, or would if others were ready; null: nobody looks, which is one load and
// a branch. For //fiber/held_locks. Set before there are fibers, so relaxed.
using LeaveHook = void (*)(const Record& fiber, Leaving leaving);
inline constinit std::atomic<LeaveHook> leave_hook{nullptr};

inline void TellLeaveHook(const Record& fiber, Leaving leaving) {
  if (const LeaveHook hook = leave_hook.load(std::memory_order_relaxed); hook != nullptr) [[unlikely]] {
    hook(fiber, leaving);
  }
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_LEAVE_HOOK_H_
