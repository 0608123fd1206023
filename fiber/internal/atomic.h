// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_ATOMIC_H_
#define WEFT_FIBER_INTERNAL_ATOMIC_H_

#include <atomic>

#ifdef WEFT_MODEL
#include "fiber/internal/model_atomic.h"
#endif

namespace fiber::internal {

// Every atomic of a protocol (park, claim, queues, idle, poll slots, timers) is an Atomic, so that
// the model build can turn each access into a schedule point of an explorer. Otherwise it is
// std::atomic.
#ifndef WEFT_MODEL
template <class T>
using Atomic = std::atomic<T>;
#endif

// The model build: bounds that are small there, so that a case of few steps meets them.
#ifdef WEFT_MODEL
inline constexpr bool kIsModel = true;
#else
inline constexpr bool kIsModel = false;
#endif

// Tells the core that this is a spin loop.
inline void CpuRelax() {
#if defined(WEFT_MODEL)
  ModelSpin();
#elif defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_ATOMIC_H_
