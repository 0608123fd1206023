// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_POOL_H_
#define WEFT_FIBER_INTERNAL_STACK_POOL_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// A free list of stacks that one worker uses and everybody may empty.
//
// Push and Pop: the owner only. TakeAll: anyone. Pop cannot suffer from ABA: only the owner puts blocks in, so
// between its load of the head and its CAS the list can only have become empty.
// order: stack-cache — release on a push, acquire on taking: the block's fields travel with it.
class StackCache {
 public:
  static constexpr uint32_t kMost = 64;
  void Push(WaitBlock* block) {
    ++size_;
    WaitBlock* head = head_.load(std::memory_order_relaxed);
    do {
      if (head == nullptr) size_ = 1;  // somebody took all
      block->next_free = head;
    } while (!head_.compare_exchange_weak(head, block, std::memory_order_release,  // order: stack-cache
                                          std::memory_order_relaxed));
  }
  WaitBlock* Pop() {
    WaitBlock* head = head_.load(std::memory_order_relaxed);
    while (head != nullptr) {
      if (head_.compare_exchange_weak(head, head->next_free,
                                      std::memory_order_acquire,  // order: stack-cache
                                      std::memory_order_acquire)) {
        --size_;
        return head;
      }
    }
    size_ = 0;
    return nullptr;
  }
  // The whole list, linked by next_free.
  WaitBlock* TakeAll() {
    return head_.exchange(nullptr, std::memory_order_acquire);  // order: stack-cache
  }
  // Owner only; counts what was taken from outside until the owner finds its list empty.
  uint32_t size() const { return size_; }

 private:
  Atomic<WaitBlock*> head_{nullptr};
  uint32_t size_ = 0;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_POOL_H_
