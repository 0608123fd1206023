// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SOAK_WORLD_H_
#define WEFT_TESTS_SOAK_WORLD_H_

#include <atomic>
#include <memory>
#include <source_location>
#include <utility>
#include <vector>

#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "sched/runtime.h"
#include "tests/soak/random.h"
#include "tests/soak/tally.h"

namespace soak {

// World is what all of a round share: its runtimes, and the wish to end.
//
// Thread safety: any fiber, any thread.
struct World {
  std::vector<std::unique_ptr<sched::Runtime>> runtimes;
  std::atomic<bool> is_ending{false};

  bool ending() const { return is_ending.load(std::memory_order_relaxed); }
  sched::Runtime& AnyRuntime(Random& random) { return *runtimes[random.Below(runtimes.size())]; }

  // On the caller's runtime; on any from a plain thread.
  template <class F>
  auto Spawn(Random& random, F fn, std::source_location site = std::source_location::current()) {
    Count(Op::kSpawn);
    return fiber::CurrentId() != 0 ? fiber::Spawn(std::move(fn), site)
                                   : AnyRuntime(random).Spawn(std::move(fn), site);
  }
};

// Gives others the time to come in between, mostly.
inline void Pause(Random& random) {
  switch (random.Below(4)) {
    case 0:
      fiber::Yield();
      Count(Op::kYield);
      break;
    case 1:
      (void)fiber::Sleep(random.ShortTime());
      break;
  }
}

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_WORLD_H_
