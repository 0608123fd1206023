// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_FUTEX_H_
#define WEFT_FIBER_INTERNAL_FUTEX_H_

#include <cstdint>

#include "fiber/internal/atomic.h"

namespace fiber::internal {

// Blocks the thread while `word` holds `expected`, until a wake or `deadline_ns` on the monotonic clock. Returns for
// any reason at all: the caller looks again. True unless the deadline has passed.
bool FutexWait(Atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns);

// Wakes up to `count` threads that wait on `word`, which may be gone by now.
void FutexWake(Atomic<uint32_t>& word, int count);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_FUTEX_H_
