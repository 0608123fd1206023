// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_SHARED_QUEUE_H_
#define WEFT_SCHED_INTERNAL_SHARED_QUEUE_H_

#include <cstddef>

#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"
#include "fiber/internal/spin_lock.h"

namespace sched::internal {

using fiber::internal::Atomic;
using fiber::internal::Record;

// SharedQueue is a queue of fibers that any thread fills and empties, without bound: the fibers' own links make it up,
// so nothing is ever full. First in, first out.
//
// A runtime has two: one for runnable fibers (unparked from outside, or overflow of a ring), one for unstarted ones.
class SharedQueue {
 public:
  void Push(Record& fiber) {
    fiber.next = nullptr;
    PushList(&fiber, &fiber, 1);
  }
  // Linked by `next`; last->next is null.
  void PushList(Record* first, Record* last, size_t count) {
    fiber::internal::SpinLockHolder hold(lock_);
    if (last_ == nullptr) {
      first_ = first;
    } else {
      last_->next = first;
    }
    last_ = last;
    size_.store(size_.load(std::memory_order_relaxed) + count,
                std::memory_order_seq_cst);  // order: idle-wake
  }

  // Up to `most` of the oldest, linked by `next`; null: empty. *count says how many.
  Record* Take(size_t most, size_t* count) {
    *count = 0;
    if (size() == 0) return nullptr;
    fiber::internal::SpinLockHolder hold(lock_);
    Record* first = first_;
    if (first == nullptr || most == 0) return nullptr;
    Record* last = first;
    size_t taken = 1;
    while (taken < most && last->next != nullptr) {
      last = last->next;
      ++taken;
    }
    first_ = last->next;
    if (first_ == nullptr) last_ = nullptr;
    last->next = nullptr;
    size_.store(size_.load(std::memory_order_relaxed) - taken, std::memory_order_relaxed);
    *count = taken;
    return first;
  }

  // Anyone. The idle protocol's look.
  size_t size() const { return size_.load(std::memory_order_seq_cst); }  // order: idle-wake

 private:
  fiber::internal::SpinLock lock_;
  Record* first_ ABSL_GUARDED_BY(lock_) = nullptr;
  Record* last_ ABSL_GUARDED_BY(lock_) = nullptr;
  Atomic<size_t> size_{0};  // written under lock_
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_SHARED_QUEUE_H_
