// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_LOCAL_SLOT_H_
#define WEFT_FIBER_INTERNAL_LOCAL_SLOT_H_

#include <cstdint>

#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// One fiber's value of one FiberLocal. In a list that hangs off the fiber's block, the newest first.
struct LocalSlot {
  LocalSlot* next = nullptr;
  uint64_t key = 0;
  void (*destroy)(LocalSlot* self) = nullptr;
};

// A key that no other FiberLocal has or had.
uint64_t NewLocalKey();
// The caller's value of `key`; null: it has none yet.
LocalSlot* FindLocal(uint64_t key);
// Adds a value that the caller does not have yet. The caller's block owns it from here on.
void AddLocal(LocalSlot& slot);
// Destroys all values of who has `block`, the newest first; those too that their destructors make. By itself, at its end.
void DropLocals(WaitBlock& block);
// Those, and what is inherited; until neither has made more of the other. By itself, at its end.
void DropValues(WaitBlock& block);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_LOCAL_SLOT_H_
