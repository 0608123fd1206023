// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_LIST_H_
#define WEFT_FIBER_INTERNAL_STACK_LIST_H_

#include <cstddef>

#include "fiber/internal/stack_cache.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// StackChain is a run of free stacks, or of blocks whose waits somebody has claimed, linked by next_free.
struct StackChain {
  WaitBlock* first = nullptr;
  WaitBlock* last = nullptr;
  size_t count = 0;

  void Append(WaitBlock& block) {
    SetNextFree(block, nullptr);
    if (last == nullptr) {
      first = &block;
    } else {
      SetNextFree(*last, &block);
    }
    last = &block;
    ++count;
  }
};

// StackList is a stack of chains: many stacks change hands without a look at each, which would be a
// cache miss each under a lock.
//
// The first block of a chain holds its length in waiter.amount and the next chain in waiter.value:
// the waiter of a free block is nobody's.
//
// Thread safety: none.
class StackList {
 public:
  void Push(const StackChain& chain);
  // Up to `most` of the stacks that were pushed last, from one chain.
  StackChain Pop(size_t most);
  size_t size() const { return size_; }

 private:
  WaitBlock* top_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_LIST_H_
