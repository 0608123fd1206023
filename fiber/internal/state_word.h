// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STATE_WORD_H_
#define WEFT_FIBER_INTERNAL_STATE_WORD_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/spin_lock.h"

namespace fiber::internal {

// StateWord is the one word of a primitive: its state, whether anybody waits, and the lock of its
// wait queue.
//
// Why one word: a primitive may be destroyed as soon as somebody got through, and what lets
// somebody through is a change of its state. So that change must be the changer's last touch. With
// a lock beside the state it is not:
//
//   Event::Set, rejected                            a waiter that never parked
//   lock; is_set = true;                            sees is_set, returns, destroys the event
//   wake the waiters; unlock    ← of what?
//
// | bit         | set by                    | while it is set                                  |
// |-------------|---------------------------|--------------------------------------------------|
// | kQueueLock  | LockQueue, TryLockQueue   | word and queue are the holder's: no other store, |
// |             |                           | but for a TrySet()                               |
// | kHasWaiters | UnlockQueue               | the queue is not empty                           |
// | others      | TryTake, TryGive, TrySet, | the primitive's own                              |
// |             | UnlockQueue               |                                                  |
//
// To change the state: without kQueueLock in the word seen, by one CAS (TryTake, TryGive). To work
// on the queue: lock it, change state and queue, UnlockQueue() with the new word. Either way it is
// one store, the last touch.
//
// TrySet() is for a bit whose setter owns what it stands for, as of a mutex: it needs not know the
// other bits, and sets it even while the queue is locked. So while that bit may be clear, the
// holder of the queue's lock stores by read-modify-write only: UnlockQueueClearing(), or TrySet()
// itself, after which the bit stays set until the lock is dropped.
//
// Rejected: taking a bit by fetch_or, and giving it back if that was wrong. It then comes and goes
// in words that other CASes expect, and with the hand-over of a mutex that hangs: rarely, and only
// under load. Nobody gives back what TrySet() took.
//
// order: state — publish and hand-off. What was done before a TryGive or UnlockQueue is visible to
// whoever takes, locks or loads after it: release there, acquire here. TryTake and TrySet only
// acquire: as read-modify-writes they continue the release sequences of the gives before them.
// UnlockQueue is a plain store and ends them, so LockQueue acquires: what came before reaches those
// after by way of the holder.
class ABSL_LOCKABLE StateWord {
 public:
  static constexpr uint64_t kQueueLock = 1;
  static constexpr uint64_t kHasWaiters = 2;
  static constexpr int kFirstBit = 2;  // the primitive's own bits start here

  constexpr explicit StateWord(uint64_t state = 0) : word_(state) {}

  uint64_t Load() const { return word_.load(std::memory_order_acquire); }  // order: state
  // To judge by, before a TryGive: it neither gives nor takes anything itself.
  uint64_t Peek() const { return word_.load(std::memory_order_relaxed); }

  // Change the state by one CAS. False: `seen` is now what the word holds. REQUIRES: `seen` has no
  // kQueueLock.
  [[nodiscard]] bool TryTake(uint64_t& seen, uint64_t next) {
    return word_.compare_exchange_strong(seen, next, std::memory_order_acquire,  // order: state
                                         std::memory_order_acquire);
  }
  [[nodiscard]] bool TryGive(uint64_t& seen, uint64_t next) {
    return word_.compare_exchange_strong(seen, next, std::memory_order_release,  // order: state
                                         std::memory_order_relaxed);
  }

  // Sets a bit, whatever the others are. False: it was set already.
  [[nodiscard]] bool TrySet(uint64_t bit) {
    return (word_.fetch_or(bit, std::memory_order_acquire) & bit) == 0;  // order: state
  }

  // Locks the queue, if the word still holds `seen`. REQUIRES: `seen` has no kQueueLock.
  [[nodiscard]] bool TryLockQueue(uint64_t& seen) ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    return word_.compare_exchange_strong(seen, seen | kQueueLock,
                                         std::memory_order_acquire,  // order: state
                                         std::memory_order_acquire);
  }
  // Locks the queue. Returns the word, without kQueueLock.
  uint64_t LockQueue() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    SchedulePoint();  // what the caller has seen before may change
    return LockNextQueue();
  }
  // The same by one who holds the lock of another queue already: nobody else runs in between in a simulation.
  uint64_t LockNextQueue() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    uint64_t seen = Load();
    if ((seen & kQueueLock) == 0 && TryLockQueue(seen)) [[likely]] return seen;
    return LockContendedQueue(seen);
  }
  // The word, without kQueueLock, and what it is to be, by who has it locked. For words nobody changes meanwhile by TrySet().
  uint64_t LockedWord() const { return Peek() & ~kQueueLock; }
  void SetLockedWord(uint64_t next) {
    word_.store(next | kQueueLock, std::memory_order_relaxed);
  }
  // Publishes `next` and unlocks the queue: the holder's last touch. REQUIRES: `next` has no
  // kQueueLock.
  void UnlockQueue(uint64_t next) ABSL_UNLOCK_FUNCTION() {
    word_.store(next, std::memory_order_release);  // order: state
  }

  // Unlocks the queue, clears `bits`, and leaves the others to whoever sets them meanwhile.
  void UnlockQueueClearing(uint64_t bits) ABSL_UNLOCK_FUNCTION() {
    word_.fetch_and(~(bits | kQueueLock), std::memory_order_release);  // order: state
  }

  // Waits out a holder of the queue's lock, who is done within a few lines, and returns the word
  // seen then.
  uint64_t AwaitUnlocked() const {
    Backoff backoff;
    for (;;) {
      const uint64_t seen = Load();
      if ((seen & kQueueLock) == 0) return seen;
      backoff.Pause();
    }
  }

 private:
  // Out of line: what is inlined many times is the way without contention.
  //
  // Whoever has the lock has its cache line, too, and can go in and out many times while nobody looks: so between two looks it
  // is left alone, each time for longer. After Anderson, "The Performance of Spin Lock Alternatives", 1990. (Four to four
  // fibers on a channel, two workers: 110 ns an item with looks at every pause, 30 so.)
  [[gnu::noinline]] uint64_t LockContendedQueue(uint64_t seen) ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    Backoff backoff;
    do {
      while ((seen & kQueueLock) != 0) {
        backoff.PauseLonger();
        seen = Load();
      }
    } while (!TryLockQueue(seen));
    return seen;
  }

  Atomic<uint64_t> word_;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STATE_WORD_H_
