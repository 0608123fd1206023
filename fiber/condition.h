// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_CONDITION_H_
#define WEFT_FIBER_CONDITION_H_

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait.h"
#include "fiber/internal/wait_queue.h"
#include "fiber/mutex.h"

namespace fiber {

// Condition is where one who holds a Mutex waits for others to change what it protects.
//
//   class Inbox {
//    public:
//     void Put(Letter letter) {
//       fiber::MutexLock hold(mu_);
//       letters_.push_back(std::move(letter));
//       filled_.Signal();
//     }
//     absl::StatusOr<Letter> Take(fiber::Deadline deadline = {}) {
//       fiber::MutexLock hold(mu_);
//       const auto has_letters = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
//         return !letters_.empty();
//       };
//       absl::Status status = filled_.Wait(mu_, has_letters, deadline);
//       if (!status.ok()) return status;
//       Letter letter = std::move(letters_.front());
//       letters_.pop_front();
//       return letter;
//     }
//
//    private:
//     fiber::Mutex mu_;
//     fiber::Condition filled_;
//     std::deque<Letter> letters_ ABSL_GUARDED_BY(mu_);
//   };
//
// A channel is often simpler, and takes part in a select.
//
// A signal goes to one who waits at that moment. One who comes later cannot take it away, it is not
// lost to one whose deadline or cancellation comes first, and nobody returns OK without one. But
// when the mutex is held again the others may have been there: what is waited for is looked at
// again, as the Wait() with a predicate does.
//
// Thread safety: any fiber, any thread. Signals may be given with the mutex held or without.
// Fairness: signals reach those who wait in the order of their coming; the mutex is then taken as
// by lock().
// Memory ordering: what happened before the signal is visible after the Wait() it ends.
// Lifetime: may be destroyed as soon as nobody waits, even while the signal that ended the last
// wait is about to return. Destroying it while somebody waits ends the process.
class Condition {
 public:
  constexpr Condition() = default;
  ~Condition() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  Condition(const Condition&) = delete;
  Condition& operator=(const Condition&) = delete;

  // Gives the mutex up, waits for a signal, and takes the mutex again: OK. From the moment in which
  // it is given up, a signal is not missed. Parks the fiber; blocks the thread when called from a
  // plain one. kDeadlineExceeded or kCancelled: there was no signal for it. However it returns the
  // mutex is held; to take it again is not interrupted, however long others hold it.
  // REQUIRES: `mutex` is held
  [[nodiscard]] absl::Status Wait(Mutex& mutex, Deadline deadline = {})
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Waits until is_true(), which is asked with the mutex held, first and after each signal: OK.
  // Parks the fiber; blocks the thread when called from a plain one. kDeadlineExceeded or
  // kCancelled: it was not true in time. Both are looked at first, as everywhere.
  // REQUIRES: `mutex` is held
  template <std::predicate P>
  [[nodiscard]] absl::Status Wait(Mutex& mutex, P is_true, Deadline deadline = {})
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex)
          ABSL_NO_THREAD_SAFETY_ANALYSIS {  // is_true() knows the mutex by its owner's name for it
    absl::Status status = internal::CheckCaller(deadline);
    while (status.ok() && !is_true()) status = Wait(mutex, deadline);
    return status;
  }

  // Ends the wait of the one that has waited longest; no effect if nobody waits. Never blocks.
  void Signal() { SignalUpTo(1); }

  // Ends the waits of all who wait. Never blocks.
  void SignalAll() { SignalUpTo(SIZE_MAX); }

 private:
  void SignalUpTo(size_t count);
  [[noreturn]] void DieWithWaiters();

  // No state but whether somebody waits.
  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
};

}  // namespace fiber

#endif  // WEFT_FIBER_CONDITION_H_
