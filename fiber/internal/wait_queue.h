// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_WAIT_QUEUE_H_
#define WEFT_FIBER_INTERNAL_WAIT_QUEUE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// WaitQueue is the waiters of one thing, in the order of their coming. One pointer, no memory of
// its own.
//
// Protection: the lock of whatever it belongs to, which also protects `next`, `prev` and
// `is_linked` of the waiters.
//
// A waiter in it may have given up already (its deadline or a cancellation has claimed it) without
// having come to take itself out: whoever meets it takes it out, and it finds that done.
class WaitQueue {
 public:
  constexpr WaitQueue() = default;
  WaitQueue(const WaitQueue&) = delete;
  WaitQueue& operator=(const WaitQueue&) = delete;

  bool is_empty() const { return first() == nullptr; }
  // Null: there is none.
  Waiter* first() const { return first_.load(std::memory_order_relaxed); }
  // A guess of is_empty() by one who does not hold the queue's lock.
  bool LooksEmpty() const { return is_empty(); }
  // Walks the queue: for messages.
  size_t size() const;

  // REQUIRES: !waiter.is_linked
  void PushBack(Waiter& waiter);
  void PushFront(Waiter& waiter);
  // REQUIRES: waiter.is_linked, in this queue
  void Remove(Waiter& waiter);

 private:
  void SetFirst(Waiter* waiter) { first_.store(waiter, std::memory_order_relaxed); }

  // A ring: first->prev is the last. Written under the lock only. Atomic for LooksEmpty(), and no
  // Atomic: no protocol may rely on a guess.
  std::atomic<Waiter*> first_{nullptr};
};

// Parks in `queue`, locked by `state`, which read `word`; unlocks it. OK: a peer claimed the wait; otherwise its status, and
// the waiter is out of the queue. For waiters that stand in nobody's way: one that goes lets no other go ahead.
absl::Status ParkInQueue(Wait& wait, StateWord& state, uint64_t word, WaitQueue& queue,
                         Deadline deadline) ABSL_UNLOCK_FUNCTION(state);

// ClaimedWaiters is what a waker takes away from under the lock: waiters it has claimed, to be
// unparked when the lock is dropped.
//
//   ClaimedWaiters claimed;
//   lock
//   while (Waiter* first = queue.first()) claimed.Claim(queue, *first);
//   unlock                                      ← last touch of the object
//   claimed.Unpark();
//
// A waiter that is claimed stays put until its own unpark, so the list runs through the waiters
// themselves.
class ClaimedWaiters {
 public:
  // Takes `waiter` out of `queue` and completes its wait with `outcome`. False: it has given up,
  // and takes what it finds when it next holds the lock. By whoever holds the queue's lock.
  bool Claim(WaitQueue& queue, Waiter& waiter, uint32_t outcome);
  // Likewise, with the outcome the waiter expects.
  bool Claim(WaitQueue& queue, Waiter& waiter) { return Claim(queue, waiter, waiter.clause); }

  // Makes all of them runnable, in order. Without any lock.
  void Unpark() {
    if (first_ != nullptr) UnparkAll();
  }

 private:
  void UnparkAll();

  Waiter* first_ = nullptr;
  Waiter* last_ = nullptr;
};

// What follows is on the way of every message between two fibers.

inline void WaitQueue::PushBack(Waiter& waiter) {
  waiter.is_linked = true;
  Waiter* const first = this->first();
  if (first == nullptr) {
    waiter.next = waiter.prev = &waiter;
    SetFirst(&waiter);
    return;
  }
  Waiter* last = first->prev;
  waiter.prev = last;
  waiter.next = first;
  last->next = first->prev = &waiter;
}

inline void WaitQueue::Remove(Waiter& waiter) {
  waiter.is_linked = false;
  if (waiter.next == &waiter) {
    SetFirst(nullptr);
    return;
  }
  waiter.prev->next = waiter.next;
  waiter.next->prev = waiter.prev;
  if (first() == &waiter) SetFirst(waiter.next);
}

inline bool ClaimedWaiters::Claim(WaitQueue& queue, Waiter& waiter, uint32_t outcome) {
  const bool is_claimed = waiter.TryClaim();
  queue.Remove(waiter);
  if (!is_claimed) return false;
  waiter.block->outcome = outcome;
  waiter.next = nullptr;
  (last_ == nullptr ? first_ : last_->next) = &waiter;
  last_ = &waiter;
  return true;
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_WAIT_QUEUE_H_
