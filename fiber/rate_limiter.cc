// SPDX-License-Identifier: Apache-2.0
//
// Who waits stands in the queue of a semaphore with one permit, so in the order of coming; the one who has it sleeps until
// there are tokens, and takes them when it has woken up, never before. So there is nothing to give back by one who gives up,
// and the next one moves up by itself.
//
// Rejected: to take tokens at once, on credit, and sleep until they are earned, as Go's x/time/rate. Who gives up then
// has to return them, but those behind have been told already how long to sleep.
//
// Time is kept in nanoseconds as doubles: exact to one for a hundred days, to 2^-52 of itself after that.
#include "fiber/rate_limiter.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "fiber/internal/context.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/this_fiber.h"

namespace fiber {

using internal::SpinLockHolder;

namespace {

// It counts as a turn, like a deadline that has passed: whoever asks again at once must not keep its worker to itself.
absl::Status TooLate() {
  internal::SpendTurn();
  return absl::DeadlineExceededError("the tokens would come after the deadline");
}

}  // namespace

RateLimiter::RateLimiter(double per_second, int burst)
    : interval_ns_(std::min(1e9 / per_second, 1e18)), burst_(burst) {
  if (!(per_second > 0) || burst <= 0) {
    internal::Fatal(
        "fiber::RateLimiter %p: %g tokens per second, a burst of %d: both must be more than zero",
        static_cast<void*>(this), per_second, burst);
  }
}

double RateLimiter::EnoughAtLocked(double n, int64_t now_ns) const {
  const double full_since = static_cast<double>(now_ns) - burst_ * interval_ns_;
  return std::max(empty_at_ns_, full_since) + n * interval_ns_;
}

Deadline RateLimiter::Instant(double ns) {
  ns = std::ceil(ns);
  return ns >= 9e18 ? Deadline::Never() : Deadline::AtNanos(static_cast<int64_t>(ns));
}

bool RateLimiter::TryAcquire(int n) {
  if (n < 0) DieOfCount("TryAcquire", n);
  internal::SchedulePoint();
  if (n > burst_) return false;
  const int64_t now_ns = internal::NowNs();
  SpinLockHolder hold(lock_);
  const double enough_at = EnoughAtLocked(n, now_ns);
  if (n > 0 && (wanted_ > 0 || enough_at > static_cast<double>(now_ns))) return false;
  empty_at_ns_ = enough_at;
  return true;
}

absl::Status RateLimiter::Acquire(int n, Deadline deadline) {
  if (n < 0) DieOfCount("Acquire", n);
  if (absl::Status status = internal::CheckCaller(deadline); !status.ok()) return status;
  if (n > burst_) {
    internal::SpendTurn();
    return absl::InvalidArgumentError(
        absl::StrCat(n, " tokens are asked of a fiber::RateLimiter with a burst of ", burst_));
  }
  if (TryAcquire(n)) return absl::OkStatus();
  deadline = Deadline::Earlier(deadline, CurrentDeadline());
  const int64_t now_ns = internal::NowNs();
  bool is_late;
  {
    SpinLockHolder hold(lock_);
    is_late = Instant(EnoughAtLocked(static_cast<double>(wanted_ + n), now_ns)) > deadline;
    if (!is_late) wanted_ += n;
  }
  if (is_late) return TooLate();
  bool has_turn = false;
  absl::Status status;
  try {
    status = turn_.Acquire(1, deadline);
    has_turn = status.ok();
    if (has_turn) status = AwaitTokens(n, deadline);
  } catch (...) {  // no memory for a status
    GiveUp(n, has_turn);
    throw;
  }
  if (status.ok()) {
    turn_.Release();
  } else {
    GiveUp(n, has_turn);
  }
  return status;
}

void RateLimiter::GiveUp(int n, bool has_turn) {
  {
    SpinLockHolder hold(lock_);
    wanted_ -= n;
  }
  if (has_turn) turn_.Release();
}

absl::Status RateLimiter::AwaitTokens(int n, Deadline deadline) {
  double enough_at;
  {
    const int64_t now_ns = internal::NowNs();
    SpinLockHolder hold(lock_);
    enough_at = EnoughAtLocked(n, now_ns);
  }
  if (Instant(enough_at) > deadline) return TooLate();  // those before were late
  if (absl::Status status = Sleep(Instant(enough_at)); !status.ok()) return status;
  SpinLockHolder hold(lock_);
  empty_at_ns_ = enough_at;  // as if it had woken up in time: nobody else has taken any
  wanted_ -= n;
  return absl::OkStatus();
}

void RateLimiter::DieOfCount(const char* operation, int n) const {
  internal::Fatal("fiber::RateLimiter %p: %s(%d): a count must not be negative",
                  static_cast<const void*>(this), operation, n);
}

}  // namespace fiber
