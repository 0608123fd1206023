// SPDX-License-Identifier: Apache-2.0
//
// UnstartedDeque: the spawned fibers of one run queue that have not run yet. The owner takes the newest, so that a tree
// of fibers is walked depth first and few are alive at once; thieves take the oldest, the largest subtrees.
//
// The deque of Chase and Lev ("Dynamic Circular Work-Stealing Deque", SPAA 2005), bounded, with the memory orders of Lê
// et al. ("Correct and Efficient Work-Stealing for Weak Memory Models", PPoPP 2013), their fences replaced by seq_cst
// accesses. What does not fit overflows into a shared queue.
//
//   owner, TakeNewest                        thief, TakeOldest
//   bottom_ = b (seq_cst)                    reads top_ = t (seq_cst)
//   reads top_ = t (seq_cst)                 reads bottom_ = b (seq_cst)
//   t < b: slot b is its own                 t < b: reads slot t, CAS top_ → t + 1
//   t = b, the last: CAS top_ → t + 1
//
// If a thief reads a bottom_ from before the owner's store, the owner's read of top_ comes after the thief's, so one of
// them sees the other or both go for the CAS. top_ only grows (63 bits), so a CAS that succeeds read its slot before
// the owner could have used it anew.
//
// order: deque — as above.  order: idle-wake — the store of bottom_ by Push is the "push" of the idle protocol (idle.h).
#ifndef WEFT_SCHED_INTERNAL_UNSTARTED_DEQUE_H_
#define WEFT_SCHED_INTERNAL_UNSTARTED_DEQUE_H_

#include <cstddef>
#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"

namespace sched::internal {

using fiber::internal::Atomic;
using fiber::internal::Record;

template <size_t kSlots>
class UnstartedDeque {
  static_assert((kSlots & (kSlots - 1)) == 0);

 public:
  // Owner only. False: full.
  bool Push(Record& fiber) {
    const int64_t bottom = bottom_.load(std::memory_order_relaxed);
    const int64_t top = top_.load(std::memory_order_acquire);  // order: deque
    if (bottom - top >= static_cast<int64_t>(kSlots)) return false;
    Slot(bottom).store(&fiber, std::memory_order_relaxed);
    bottom_.store(bottom + 1, std::memory_order_seq_cst);  // order: deque, idle-wake
    return true;
  }

  // Owner only.
  Record* TakeNewest() {
    const int64_t bottom = bottom_.load(std::memory_order_relaxed) - 1;
    // Only the owner makes it longer, so this needs no order.
    if (top_.load(std::memory_order_relaxed) > bottom) return nullptr;
    bottom_.store(bottom, std::memory_order_seq_cst);  // order: deque
    int64_t top = top_.load(std::memory_order_seq_cst);  // order: deque
    if (top > bottom) {
      bottom_.store(bottom + 1, std::memory_order_relaxed);
      return nullptr;
    }
    Record* fiber = Slot(bottom).load(std::memory_order_relaxed);
    if (top == bottom) {
      if (!top_.compare_exchange_strong(top, top + 1, std::memory_order_seq_cst,  // order: deque
                                        std::memory_order_relaxed)) {
        fiber = nullptr;
      }
      bottom_.store(bottom + 1, std::memory_order_relaxed);
    }
    return fiber;
  }

  // Anyone. Null: empty.
  Record* TakeOldest() {
    int64_t top = top_.load(std::memory_order_seq_cst);  // order: deque
    for (;;) {
      if (top >= bottom_.load(std::memory_order_seq_cst)) return nullptr;  // order: deque
      Record* fiber = Slot(top).load(std::memory_order_relaxed);
      if (top_.compare_exchange_strong(top, top + 1, std::memory_order_seq_cst,  // order: deque
                                       std::memory_order_seq_cst)) {
        return fiber;
      }
    }
  }

  // Anyone. A guess: the two are not read at once.
  uint64_t apparent_size() const {
    const int64_t top = top_.load(std::memory_order_relaxed);
    const int64_t bottom = bottom_.load(std::memory_order_relaxed);
    return bottom > top ? static_cast<uint64_t>(bottom - top) : 0;
  }

  // Anyone. The idle protocol's look.
  bool is_empty() const {
    return top_.load(std::memory_order_seq_cst) >=  // order: idle-wake
           bottom_.load(std::memory_order_seq_cst);  // order: idle-wake
  }

 private:
  Atomic<Record*>& Slot(int64_t index) {
    return slots_[static_cast<uint64_t>(index) % kSlots];
  }

  alignas(64) Atomic<int64_t> top_{0};
  alignas(64) Atomic<int64_t> bottom_{0};
  Atomic<Record*> slots_[kSlots] = {};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_UNSTARTED_DEQUE_H_
