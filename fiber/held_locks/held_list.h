// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_HELD_LOCKS_HELD_LIST_H_
#define WEFT_FIBER_HELD_LOCKS_HELD_LIST_H_

#include "fiber/held_locks/held_locks.h"
#include "fiber/internal/sanitizer.h"

// For functions that programs call before a sanitizer's run time is there.
#if defined(WEFT_ASAN)
#define WEFT_EARLY WEFT_NO_TSAN __attribute__((no_sanitize("address")))
#else
#define WEFT_EARLY WEFT_NO_TSAN
#endif

namespace fiber::held_locks {

// False until this library's variables are there, and where there is no fiber that could hold the lock: then nothing is to be
// noted. May be called at any time. Never blocks.
bool IsToBeNoted();

// Both: REQUIRES: IsToBeNoted(). Never block. `frame`: of the function that was called to acquire it.
void NoteAcquired(Kind kind, const void* address, void* const* frame);
// Before it is released, since afterwards another may have acquired it.
void NoteReleased(const void* address);

}  // namespace fiber::held_locks

#endif  // WEFT_FIBER_HELD_LOCKS_HELD_LIST_H_
