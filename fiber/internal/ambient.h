// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_AMBIENT_H_
#define WEFT_FIBER_INTERNAL_AMBIENT_H_

#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// Ambient is what surrounds a fiber's code and goes to the fibers it starts: until when, and the values that are bound. A
// list from the innermost outwards, of which a fiber's wait block holds the head.
//
// Elements never change and are counted, so a child shares its parent's list: to spawn costs one count, and only where
// there is a list at all.
//
// order: count — the last release, which destroys, comes after all others: acq_rel.
struct Ambient {
  Atomic<uint32_t> references{1};
  Ambient* outer = nullptr;          // counted; null: the outermost
  int64_t deadline_ns = kNeverNs;    // the earliest from here outwards, up to a shield
  const void* key = nullptr;         // whose value is bound; null: none
  void (*destroy)(Ambient* self) = nullptr;
};

// One more reference. Null is none.
inline Ambient* Retain(Ambient* ambient) {
  if (ambient != nullptr) ambient->references.fetch_add(1, std::memory_order_relaxed);
  return ambient;
}
// One less. The values bound may be destroyed, which is user code.
void Release(Ambient* ambient);

// Makes a new innermost element for the fiber (thread) with `block`, with this deadline. By itself.
void PushDeadline(WaitBlock& block, int64_t deadline_ns);
// Makes `inner`, which is complete but for its place, the innermost element. By itself.
void Push(WaitBlock& block, Ambient& inner);
// Takes the innermost away again. By itself.
void Pop(WaitBlock& block);
// A reference to an element around `outer`, whose reference it takes over, that ends at `deadline_ns` if `outer` does not
// end before.
Ambient* BoundBy(Ambient* outer, int64_t deadline_ns);

// The calling fiber's (thread's) block.
WaitBlock& CallersBlock();

// Makes the list of the fiber (or thread) with `block` end: at the end of a fiber, by itself.
void DropAmbient(WaitBlock& block);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_AMBIENT_H_
