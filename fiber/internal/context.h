// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_CONTEXT_H_
#define WEFT_FIBER_INTERNAL_CONTEXT_H_

#include <algorithm>
#include <cstdint>

#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {

// Leaves the running fiber (or the thread's own stack) for `to`, which is Ready or New with a stack bound; null: the
// thread's own stack. The next context does `after` for the one that was left. Returns when somebody switches back,
// with the state of the thread it is then on: no other pointer to a ThreadState may be used after that.
//
// C++ exception state goes with the fiber; errno is the caller's to keep. No lock may be held.
ThreadState& Switch(ThreadState& thread, Record* to, After after);

// Asks the caches for what a fiber that is to run soon touches first: the innermost frames of its stack. Only a hint: the
// fiber may run elsewhere meanwhile, or be no more.
//
// Twelve lines: from a switch up through a parked read to the first bytes of a buffer of its caller's. In a server with a
// thousand fibers that echo over TCP, 5 instead of 14 % of the samples of a profile are then outside of the kernel.
//
// Not beyond the page: behind it may be the next stack's guard, and a page that is not there is looked for every time anew.
inline void PrefetchStack(const Record& fiber) {
  constexpr uintptr_t kBytes = 12 * 64;
  const auto top = reinterpret_cast<uintptr_t>(fiber.context.load(std::memory_order_relaxed));
  const uintptr_t end = std::min(top + kBytes, (top | 4095) + 1);
  for (uintptr_t line = top; line < end; line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
  }
}

// Ends the process with a message if the CPU keeps a second stack of return addresses for it: a switch would be an error to it.
void RefuseShadowStacks();

// Binds a stack and wait block to a New fiber: `spare` if it is of the right class, else a free one. False: there is
// none, and the fiber waits in the depot's list until somebody returns one. By a worker.
bool BindStack(ThreadState& thread, Record& fiber, WaitBlock* spare);

// A call that may park has returned without parking. So that a fiber whose sockets are always ready, whose channels always
// have an item or room, or whose deadline has passed, does not keep its worker to itself, it yields after so many of them.
// (Wait::SpendTurn has the quick one, for channels.) Holding no lock of ours; nothing happens on a plain thread.
inline constexpr int32_t kOperationsATurn = 16;             // system calls, and calls that fail
inline constexpr int32_t kChannelOperationsATurn = 1024;    // in memory
inline constexpr int32_t kTurn = kChannelOperationsATurn;
void SpendTurn(int32_t cost = kTurn / kOperationsATurn);

// The running fiber yields: Running → Ready, behind the others. Returns at once if there are none.
void YieldFiber();

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_CONTEXT_H_
