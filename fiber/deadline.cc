// SPDX-License-Identifier: Apache-2.0
#include "fiber/deadline.h"

#include "fiber/internal/thread_state.h"

namespace fiber {

absl::Duration Now() { return absl::Nanoseconds(internal::NowNs()); }

Deadline::Deadline(absl::Duration from_now) {
  if (from_now == absl::InfiniteDuration()) return;
  const int64_t now = internal::NowNs();
  if (from_now <= absl::ZeroDuration()) {
    ns_ = now;  // "now" counts as past
    return;
  }
  // Round up, never early; what does not fit is never.
  int64_t wait = absl::ToInt64Nanoseconds(from_now);
  if (wait == INT64_MAX) return;
  if (absl::Nanoseconds(wait) < from_now) ++wait;
  if (wait > INT64_MAX - now) return;
  ns_ = now + wait;
}

bool Deadline::is_past() const { return ns_ != INT64_MAX && internal::NowNs() >= ns_; }

absl::Duration Deadline::remaining() const {
  if (is_never()) return absl::InfiniteDuration();
  const int64_t now = internal::NowNs();
  return now >= ns_ ? absl::ZeroDuration() : absl::Nanoseconds(ns_ - now);
}

}  // namespace fiber
