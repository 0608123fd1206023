// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/local_slot.h"

#include "fiber/internal/ambient.h"

namespace fiber::internal {

uint64_t NewLocalKey() {
  static constinit Atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

LocalSlot* FindLocal(uint64_t key) {
  WaitBlock& block = CallersBlock();
  for (LocalSlot* slot = block.locals; slot != nullptr; slot = slot->next) {
    if (slot->key == key) return slot;
  }
  return nullptr;
}

void AddLocal(LocalSlot& slot) {
  WaitBlock& block = CallersBlock();
  slot.next = block.locals;
  block.locals = &slot;
}

void DropLocals(WaitBlock& block) {
  while (LocalSlot* const slot = block.locals) {
    block.locals = slot->next;
    slot->destroy(slot);
  }
}

void DropValues(WaitBlock& block) {
  do {
    DropLocals(block);
    DropAmbient(block);
  } while (block.locals != nullptr || block.ambient != nullptr);
}

}  // namespace fiber::internal
