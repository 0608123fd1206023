// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_SCHEDULE_POINT_H_
#define WEFT_FIBER_INTERNAL_SCHEDULE_POINT_H_

#include <cstdint>

#include "fiber/internal/atomic.h"

namespace fiber::internal {

// How many simulations there are in this process: none but in tests, and then a fast path pays for
// its schedule point with one load of a word that nobody writes. Counted by Scheduler.
inline constinit Atomic<int32_t> simulation_count{0};

void GiveWayInSimulation();

// For simulation: somebody else may run here, as another worker would.
inline void SchedulePoint() {
  if (simulation_count.load(std::memory_order_relaxed) != 0) [[unlikely]] GiveWayInSimulation();
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_SCHEDULE_POINT_H_
