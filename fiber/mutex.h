// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_MUTEX_H_
#define WEFT_FIBER_MUTEX_H_

#include <cstdint>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

namespace internal {
class Wait;
}

// Mutex is held by one fiber or thread at a time. It may be held across calls that park.
//
//   class Account {
//    public:
//     void Deposit(int64_t cents) {
//       fiber::MutexLock hold(mu_);
//       balance_ += cents;
//     }
//
//    private:
//     fiber::Mutex mu_;
//     int64_t balance_ ABSL_GUARDED_BY(mu_) = 0;
//   };
//
// std::lock_guard, std::unique_lock and std::scoped_lock work too: it is a std Lockable. Clang
// checks the annotations with -Wthread-safety. Not recursive. It belongs to nobody: who unlocks
// need not be who locked.
//
// Thread safety: any fiber, any thread.
// Fairness: who waits is served in the order of coming, but whoever runs and finds the mutex free
// may take it first, for that is much faster. Once somebody has waited for 1 ms and found it taken
// again, it is handed over from one to the next in order, until those who wait have waited for
// less.
// Memory ordering: what happened before unlock() is visible after the next lock().
// Lifetime: may be destroyed as soon as the last holder has unlocked it: an unlock() that let the
// last one in may still be about to return. Destroying it while somebody waits ends the process.
class ABSL_LOCKABLE Mutex {
 public:
  constexpr Mutex() = default;
  ~Mutex() {
    if (word_.Peek() & (kWake | kWoken)) [[unlikely]] DieWithWaiters();
  }
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // Takes the mutex. Parks the fiber while somebody else holds it; blocks the thread when called
  // from a plain one. Not interrupted by cancellation: Lock() is.
  void lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    internal::SchedulePoint();
    if (!word_.TrySet(kHeld)) LockSlow();
  }

  // Takes the mutex if nobody holds it or is about to be handed it. Never blocks.
  [[nodiscard]] bool try_lock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true);

  // Gives the mutex up. When that hands it over to a fiber that has waited for long, the caller
  // yields to it. Never blocks. REQUIRES: it is held
  void unlock() ABSL_UNLOCK_FUNCTION() {
    // A load of the word itself would have to wait for the lock() before it.
    uint64_t word = kHeld;
    if (LooksContended()) {
      word = word_.Peek();
    } else if (word_.TryGive(word, 0)) [[likely]] {
      return;
    }
    if ((word & (kHeld | kWake | internal::StateWord::kQueueLock)) != kHeld ||
        !word_.TryGive(word, word & ~kHeld)) {
      UnlockSlow();
    }
  }

  // Takes the mutex, or gives up: kDeadlineExceeded or kCancelled: it was not taken. Parks the
  // fiber while somebody else holds it; blocks the thread when called from a plain one.
  //
  //   if (absl::Status status = mu_.Lock(absl::Milliseconds(5)); !status.ok()) return status;
  //   mu_.AssertHeld();       // tells clang's analysis, which cannot read a Status
  //   fiber::MutexLock hold(mu_, std::adopt_lock);
  [[nodiscard]] absl::Status Lock(Deadline deadline);

  // Ends the process unless somebody holds the mutex. Never blocks.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {
    if ((word_.Peek() & kHeld) == 0) [[unlikely]] DieUnheld("AssertHeld");
  }

 private:
  // | state  | kHeld | others          | who comes | unlock()                              |
  // |--------|-------|-----------------|-----------|---------------------------------------|
  // | free   |       | kWoken          | takes it  | misuse                                |
  // | held   | set   | kWoken or kWake | queues    | frees it; with kWake, wakes the first |
  // | handed | set   | kWake kStarving | queues    | hands it to the first, kHeld stays    |
  //
  // kHeld: set by TrySet(), so nobody may store a word without it but the one who holds the mutex.
  // kWake: somebody waits and nobody has been woken: the queue is the unlock()'s business.
  // kWoken: somebody was claimed to try again and has not done so yet. Nobody else is woken
  // meanwhile, so one that locks and unlocks in a loop wakes one at a time, and those who wait keep
  // their order. Set by unlock(), cleared by the one who was woken.
  // kStarving: set by one who was woken, has waited for long and lost again; cleared by the
  // unlock() that hands over to the last, or to one who has not waited for long, or by the last as
  // it gives up.
  //
  // While the queue is unlocked: kWake if and only if the queue is not empty and kWoken is not set;
  // kStarving implies kWake; kWake implies kHeld.
  static constexpr uint64_t kHeld = uint64_t{1} << internal::StateWord::kFirstBit;
  static constexpr uint64_t kWake = kHeld << 1;
  static constexpr uint64_t kWoken = kHeld << 2;
  static constexpr uint64_t kStarving = kHeld << 3;

  // A guess, by one who holds the mutex and not the queue's lock.
  bool LooksContended() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return !waiters_.LooksEmpty(); }
  bool TryTakeFree();
  // Takes the mutex if it is free; anyway kHeld is set then and stays so while the queue is locked.
  bool TryTakeFreeLocked(uint64_t& word) ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_);
  // Stores `word`, with kWake as it should be. REQUIRES: kHeld is set
  void UnlockQueue(uint64_t word) ABSL_UNLOCK_FUNCTION(word_);
  void LockSlow();
  absl::Status LockQueued(internal::Wait& wait, Deadline deadline);
  void UnlockSlow();
  [[noreturn]] void DieUnheld(const char* operation) const;
  [[noreturn]] void DieWithWaiters();

  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
};

// MutexLock holds a Mutex for the length of a scope.
//
//   fiber::MutexLock hold(mu_);
//
// Thread safety: one fiber or thread.
class ABSL_SCOPED_LOCKABLE [[nodiscard]] MutexLock {
 public:
  // Takes it. Parks the fiber; blocks the thread when called from a plain one.
  explicit MutexLock(Mutex& mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex.lock();
  }
  // Takes over one that is held already. Never blocks.
  MutexLock(Mutex& mutex, std::adopt_lock_t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) : mutex_(mutex) {}
  // Gives it up. Never blocks.
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_MUTEX_H_
