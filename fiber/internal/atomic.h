// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_ATOMIC_H_
#define WEFT_FIBER_INTERNAL_ATOMIC_H_

#include <atomic>

namespace fiber::internal {

// Every atomic of a protocol (park, claim, queues, idle, poll slots, timers) is an Atomic, so that one
// build can turn each access into a schedule point of an explorer. Here it is std::atomic itself.
template <class T>
using Atomic = std::atomic<T>;

// Tells the core that this is a spin loop.
inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_ATOMIC_H_
