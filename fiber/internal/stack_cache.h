// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_CACHE_H_
#define WEFT_FIBER_INTERNAL_STACK_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "fiber/internal/atomic.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// The link of a free stack. Atomic, since StackCache::Pop() may read the link of a block that
// somebody else has just taken; what it read is then thrown away.
inline WaitBlock* NextFree(WaitBlock& block) {
  return std::atomic_ref<WaitBlock*>(block.next_free).load(std::memory_order_relaxed);
}
inline void SetNextFree(WaitBlock& block, WaitBlock* next) {
  std::atomic_ref<WaitBlock*>(block.next_free).store(next, std::memory_order_relaxed);
}

// StackCache holds the free stacks that one worker uses and everybody may empty.
//
// Push, PushList and Pop: the owner only. TakeAll: anyone. Pop cannot suffer from ABA: only the
// owner puts blocks in, so between its load of the head and its CAS the list can only have become
// empty.
//
// order: stack-cache — release on a push, acquire on taking: the block's fields go with it.
//
// order: stack-wait — a push is seq_cst, and so is the look at whether somebody waits for a stack
// that follows it; see StackDepot.
class StackCache {
 public:
  static constexpr uint32_t kMost = 64;

  // A stack that no fiber has any more.
  void Push(WaitBlock* block) { PushList(block, block, 1); }
  // `count` blocks from `first` to `last`, linked.
  void PushList(WaitBlock* first, WaitBlock* last, uint32_t count) {
    size_ += count;
    WaitBlock* head = head_.load(std::memory_order_relaxed);
    do {
      if (head == nullptr) size_ = count;  // somebody took all
      SetNextFree(*last, head);
    } while (
        !head_.compare_exchange_weak(head, first,
                                     std::memory_order_seq_cst,  // order: stack-cache, stack-wait
                                     std::memory_order_relaxed));
  }

  // A stack to run a fiber on.
  WaitBlock* Pop() {
    WaitBlock* head = head_.load(std::memory_order_relaxed);
    while (head != nullptr) {
      if (head_.compare_exchange_weak(head, NextFree(*head),
                                      std::memory_order_acquire,  // order: stack-cache
                                      std::memory_order_relaxed)) {
        --size_;
        head->is_stack_resident = true;
        return head;
      }
    }
    size_ = 0;
    return nullptr;
  }

  // The whole list, linked by next_free.
  WaitBlock* TakeAll() {
    if (head_.load(std::memory_order_seq_cst) == nullptr) return nullptr;  // order: stack-wait
    return head_.exchange(nullptr, std::memory_order_acquire);             // order: stack-cache
  }

  // Owner only; counts what was taken from outside until the owner finds its list empty.
  uint32_t size() const { return size_; }

  // Whether it was filled before, and this time too: who needs a second handful needs most of it.
  // Owner only.
  bool WasFilled() { return std::exchange(was_filled_, true); }

  StackCache* next_registered = nullptr;  // StackDepot's

 private:
  Atomic<WaitBlock*> head_{nullptr};
  uint32_t size_ = 0;
  bool was_filled_ = false;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_CACHE_H_
