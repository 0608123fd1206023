// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_WAIT_GROUP_H_
#define WEFT_FIBER_WAIT_GROUP_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

// WaitGroup counts work that is under way; Wait() returns when there is none.
//
//   class Mailer {
//    public:
//     void Send(Mail mail) {
//       work_.Add();                           // before it starts: within, Wait() could come first
//       fiber::Go([this, mail] { Deliver(mail); work_.Done(); });
//     }
//     absl::Status Flush() { return work_.Wait(absl::Seconds(10)); }
//
//    private:
//     fiber::WaitGroup work_;
//   };
//
// It does not keep what the work refers to alive when Wait() gives up: JoinHandle does.
//
// It can be used again and again. A new round may begin as soon as the count was zero, while those
// whom that released have not returned yet: each is released by the zero it waited for.
//
// Thread safety: any fiber, any thread. An Add() that takes the count from zero must happen before
// the Wait() that is to wait for it, or that one may return at once.
// Fairness: zero releases all who wait, in the order of their coming.
// Memory ordering: what happened before the calls of Done() that led to zero is visible after the
// Wait() they end.
// Lifetime: may be destroyed as soon as Wait() has returned OK, even while the Done() that led to
// zero is about to return; but no other call may be under way. Destroying it while somebody waits
// ends the process.
class WaitGroup {
 public:
  constexpr WaitGroup() = default;
  ~WaitGroup() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  WaitGroup(const WaitGroup&) = delete;
  WaitGroup& operator=(const WaitGroup&) = delete;

  // Adds `n`, which may be negative, to the count. At zero, releases everybody who waits. Never
  // blocks.
  // REQUIRES: the count stays within 0 to INT_MAX
  void Add(int n = 1);

  // Add(-1). Never blocks.
  void Done() { Add(-1); }

  // Waits until the count is zero: OK. Parks the fiber; blocks the thread when called from a plain
  // one. kDeadlineExceeded or kCancelled: it was not zero in time.
  [[nodiscard]] absl::Status Wait(Deadline deadline = {});

 private:
  friend class Scope;

  // As Wait(), whoever is cancelled, and under no deadline but this one.
  absl::Status WaitThrough(Deadline deadline);
  absl::Status WaitAs(internal::Wait& wait, Deadline deadline);

  // The word's upper half. Never more than INT_MAX.
  static constexpr int kCountShift = 32;

  static int64_t CountIn(uint64_t word) { return static_cast<int64_t>(word >> kCountShift); }

  [[noreturn]] void DieOfCount(int64_t count, int n) const;
  [[noreturn]] void DieWithWaiters();

  // While the queue is unlocked, a count of zero implies that nobody is linked.
  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
};

}  // namespace fiber

#endif  // WEFT_FIBER_WAIT_GROUP_H_
