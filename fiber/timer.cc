// SPDX-License-Identifier: Apache-2.0
#include "fiber/timer.h"

#include <algorithm>

#include "fiber/internal/thread_state.h"

namespace fiber {

Ticker::Ticker(absl::Duration period, std::source_location site)
    : timer_(Deadline::Never(), [this] { Tick(); }, site) {
  Reset(period);
}

void Ticker::Stop() {
  MutexLock hold(mu_);
  StopLocked();
}

void Ticker::Reset(absl::Duration period) {
  if (period <= absl::ZeroDuration()) {
    internal::Fatal("fiber::Ticker %p: a period of %s: it must be more than zero",
                    static_cast<void*>(this), absl::FormatDuration(period).c_str());
  }
  MutexLock hold(mu_);
  StopLocked();
  period_ns_ = std::max(absl::ToInt64Nanoseconds(period), int64_t{1});
  next_ = Deadline(absl::Nanoseconds(period_ns_));
  timer_.Reset(next_);
}

void Ticker::StopLocked() {
  timer_.Stop();
  next_ = Deadline::Never();
  ticks_.TryReceive().IgnoreError();  // a tick from before, that nobody has received
}

// A call that was set off before a Stop() or Reset(), and comes after it, finds that nothing is due.
void Ticker::Tick() {
  MutexLock hold(mu_);
  if (!next_.is_past()) return;
  ticks_.TrySend(absl::Nanoseconds(next_.nanos())).IgnoreError();  // no room: it is missed
  // The next one that is still to come.
  const int64_t late_ns = internal::NowNs() - next_.nanos();
  const int64_t missed = late_ns / period_ns_;
  const int64_t due_ns = next_.nanos() + missed * period_ns_;  // not after now
  next_ =
      period_ns_ > INT64_MAX - due_ns ? Deadline::Never() : Deadline::AtNanos(due_ns + period_ns_);
  timer_.Reset(next_);
}

}  // namespace fiber
