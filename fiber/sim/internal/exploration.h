// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SIM_INTERNAL_EXPLORATION_H_
#define WEFT_FIBER_SIM_INTERNAL_EXPLORATION_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"

namespace fiber::sim::internal {

// Exploration makes the choices of one schedule after the other, depth first: each schedule repeats
// the last one up to a choice, takes the next alternative there, and the first one ever after.
//
//   Exploration exploration;
//   do RunSchedule(exploration); while (exploration.Next());
//
// Written down, a schedule is its choices in order, without the zeros at its end: one digit each,
// base 36, larger ones in decimal between brackets. "0" is the schedule of zeros only.
//
// Thread safety: one thread.
class Exploration {
 public:
  // From the schedule of zeros on.
  Exploration() = default;
  // The schedule that is written so; none if `text` is not one.
  static std::optional<Exploration> Parse(std::string_view text);

  // One of 0 … count - 1. REQUIRES: count > 0
  uint32_t Choose(uint32_t count);

  // The schedule has ended: goes on to the next. False: that was the last.
  bool Next();

  // What was chosen so far in this schedule, written down.
  std::string schedule() const;
  // The same, piece by piece; async-signal-safe if `emit` is.
  void Print(absl::FunctionRef<void(std::string_view)> emit) const;

  // What differs from the schedule that was to be repeated: a body that does not do the same each
  // time. Empty: nothing. When the schedule has ended.
  std::string Divergence() const;

 private:
  struct Step {
    uint32_t chosen;
    uint32_t count;  // 0: not known, of a schedule that was written down
  };

  std::vector<Step> steps_;
  size_t done_ = 0;  // how many of them this schedule has made
  std::string divergence_;
};

}  // namespace fiber::sim::internal

#endif  // WEFT_FIBER_SIM_INTERNAL_EXPLORATION_H_
