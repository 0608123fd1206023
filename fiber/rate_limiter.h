// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_RATE_LIMITER_H_
#define WEFT_FIBER_RATE_LIMITER_H_

#include <cstdint>
#include <limits>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/semaphore.h"

namespace fiber {

// RateLimiter lets so much through a second: a bucket of tokens that holds `burst`, starts full and gets `per_second`.
//
//   fiber::RateLimiter limiter(/*per_second=*/100, /*burst=*/10);
//   for (const Request& request : requests) {
//     if (absl::Status status = limiter.Acquire(1, absl::Seconds(1)); !status.ok()) return status;
//     Send(request);
//   }
//
// Thread safety: any fiber, any thread.
// Fairness: tokens are taken in the order of coming, and nobody passes by who waits, TryAcquire() included. Who gives up
// has taken none: those behind move up.
// Lifetime: may be destroyed when no call is under way.
class RateLimiter {
 public:
  // `per_second` may be infinite. Never blocks. REQUIRES: per_second > 0, burst > 0
  RateLimiter(double per_second, int burst);
  RateLimiter(const RateLimiter&) = delete;
  RateLimiter& operator=(const RateLimiter&) = delete;

  // Takes `n` tokens, all at once. Parks the fiber until there are as many; blocks the thread when called from a plain one.
  // kDeadlineExceeded: there would not be enough by the deadline (the earlier of `deadline` and the ambient one), which is
  // said at once; kInvalidArgument: more than `burst`; kCancelled. None was taken then. REQUIRES: n >= 0
  [[nodiscard]] absl::Status Acquire(int n = 1, Deadline deadline = {});

  // Takes `n` tokens if there are as many and nobody waits. Never blocks. REQUIRES: n >= 0
  [[nodiscard]] bool TryAcquire(int n = 1);

 private:
  // When there will be `n` tokens, or have been, if nobody takes any: in nanoseconds on the clock. To take them is to make
  // that the time when it was empty.
  double EnoughAtLocked(double n, int64_t now_ns) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The same as an instant, never early.
  static Deadline Instant(double ns);
  // Waits by the one whose turn it is.
  absl::Status AwaitTokens(int n, Deadline deadline);
  void GiveUp(int n, bool has_turn);
  [[noreturn]] void DieOfCount(const char* operation, int n) const;

  const double interval_ns_;  // a token takes
  const int burst_;
  Semaphore turn_{1};  // who has it is first; the others are in its queue
  internal::SpinLock lock_;
  // When the bucket was empty, had it no bound; what is taken moves that on. Long ago: it is full.
  double empty_at_ns_ ABSL_GUARDED_BY(lock_) = -std::numeric_limits<double>::infinity();
  int64_t wanted_ ABSL_GUARDED_BY(lock_) = 0;  // by all who wait
};

}  // namespace fiber

#endif  // WEFT_FIBER_RATE_LIMITER_H_
