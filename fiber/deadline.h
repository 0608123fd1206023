// SPDX-License-Identifier: Apache-2.0
#if __cplusplus < 202002L
#error "Weft is C++20: build with -std=c++20 (Bazel: build --cxxopt=-std=c++20)"
#endif
#ifndef WEFT_FIBER_DEADLINE_H_
#define WEFT_FIBER_DEADLINE_H_

#include <chrono>
#include <compare>
#include <cstdint>
#include <type_traits>

#include "absl/time/time.h"

namespace fiber {

// Time since an arbitrary start, on the clock of the caller's scheduler: the machine's monotonic clock, or a
// virtual one in simulation. Never blocks.
absl::Duration Now();

// Deadline is a point on the scheduler's monotonic clock, or never. It is the last parameter that you give to calls
// that park and may fail, and converts from a duration:
//
//   auto n = stream.Read(buffer, absl::Seconds(2));         // two seconds for this call
//
//   const fiber::Deadline all = absl::Seconds(10);          // ten seconds for all three
//   if (!slots.Acquire(1, all).ok() || !done.Wait(all).ok()) return;
//
// Calls without one (Scope::Wait, WithScope, ForEach, Select) are bounded by the ambient deadline: ScopeOptions::deadline,
// DeadlineScope; Select also by OnDeadline().
//
// A call that would have to park, and for whose timer there is no memory, fails with kResourceExhausted.
//
// It is an instant, taken when it is made: a `static const Deadline kTimeout = …` is a bug, keep the duration. It
// belongs to the clock it was made under and means nothing under another.
//
// Thread safety: a value.
class Deadline {
 public:
  // Never. Never blocks.
  constexpr Deadline() = default;
  // `from_now` after now; zero or less is already past, infinite is never. Never blocks.
  Deadline(absl::Duration from_now);  // NOLINT: implicit by design
  template <class Rep, class Period>
  Deadline(std::chrono::duration<Rep, Period> from_now)  // NOLINT: implicit by design
      : Deadline(ToAbsl(from_now)) {}

  // No deadline. Never blocks.
  static constexpr Deadline Never() { return Deadline(); }
  // The earlier of the two. Never blocks.
  static constexpr Deadline Earlier(Deadline a, Deadline b) { return a.ns_ < b.ns_ ? a : b; }
  // The instant `ns` nanoseconds after the clock's start; less than zero is zero. Never blocks.
  static constexpr Deadline AtNanos(int64_t ns) {
    Deadline deadline;
    deadline.ns_ = ns < 0 ? 0 : ns;
    return deadline;
  }

  // Never blocks.
  bool is_never() const { return ns_ == INT64_MAX; }
  // Whether it has passed. Never blocks.
  bool is_past() const;
  // Until it passes: zero if it has, infinite for never. Never blocks.
  absl::Duration remaining() const;
  // Nanoseconds since the clock's start; INT64_MAX for never. Never blocks.
  constexpr int64_t nanos() const { return ns_; }

  friend constexpr auto operator<=>(Deadline, Deadline) = default;

 private:
  template <class Rep, class Period>
  static absl::Duration ToAbsl(std::chrono::duration<Rep, Period> duration) {
    if constexpr (std::is_floating_point_v<Rep>) {
      return absl::Seconds(std::chrono::duration<double>(duration).count());
    } else {
      if constexpr (std::is_unsigned_v<Rep> && sizeof(Rep) >= sizeof(int64_t)) {
        if (duration.count() > uint64_t{INT64_MAX}) return absl::InfiniteDuration();  // or it would be negative below
      }
      return absl::Seconds(static_cast<int64_t>(duration.count())) * static_cast<int64_t>(Period::num) /
             static_cast<int64_t>(Period::den);
    }
  }

  int64_t ns_ = INT64_MAX;
};

}  // namespace fiber

#endif  // WEFT_FIBER_DEADLINE_H_
