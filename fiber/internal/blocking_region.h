// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_BLOCKING_REGION_H_
#define WEFT_FIBER_INTERNAL_BLOCKING_REGION_H_

#include <cstdint>

#include "fiber/internal/record.h"

namespace fiber {
class Scheduler;
}

namespace fiber::internal {

// BlockingRegion makes the running fiber's thread a plain one while it lives: fiber::Blocking.
class BlockingRegion {
 public:
  BlockingRegion();
  ~BlockingRegion();
  BlockingRegion(const BlockingRegion&) = delete;
  BlockingRegion& operator=(const BlockingRegion&) = delete;

 private:
  void Begin();

  Record* fiber_ = nullptr;  // null: there was nothing to do
  Scheduler* scheduler_ = nullptr;
  uint64_t fork_generation_ = 0;
};

// BoundRegion keeps the running fiber on its thread while it lives: fiber::NoMigrate. The thread is nobody's worker then, but
// still the fiber's scheduler's: whatever parks or yields looks at Record::is_bound() first and waits with its thread.
class BoundRegion {
 public:
  BoundRegion();
  ~BoundRegion();
  BoundRegion(const BoundRegion&) = delete;
  BoundRegion& operator=(const BoundRegion&) = delete;

 private:
  Record* fiber_;  // null: there was nothing to do
};

// The bound fiber `self`, whose wait is open, waits with its thread until it is unparked.
void ParkBound(Record& self);
// It was made Ready: by QueueReady, in place of queueing it.
void WakeBound(Record& fiber);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_BLOCKING_REGION_H_
