// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_RUN_QUEUE_H_
#define WEFT_SCHED_INTERNAL_RUN_QUEUE_H_

#include <cstddef>
#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"
#include "sched/internal/ring.h"
#include "sched/internal/timer_queue.h"
#include "sched/internal/unstarted_deque.h"

namespace sched::internal {

// RunQueue is what a worker runs from: an object of its own that does not depend on the worker's thread. Everything in it
// can be taken from outside, so that the fibers of a worker that is stuck in user code need not wait for it.
//
// The owner is the worker that runs from it; "anyone" is any worker of the runtime.
struct alignas(64) RunQueue {
  static constexpr size_t kRingSlots = fiber::internal::kIsModel ? 4 : 2048;
  static constexpr size_t kUnstartedSlots = fiber::internal::kIsModel ? 4 : 1024;

  // `owner`: the runtime.
  explicit RunQueue(const void* owner) : timers(owner) {}

  // The fiber unparked last by the one that runs: it runs next, while what it needs is in the cache. Owner and anyone:
  // exchange. order: idle-wake — the exchange that fills it is a "push".
  Atomic<Record*> next_slot{nullptr};
  // Fibers taken to run, and yields that found nobody else; written by the owner. Stands still while it stays in a fiber.
  Atomic<uint64_t> runs{0};
  // The run that has lasted for too long: its fiber is to yield when it can. Written by the monitor.
  Atomic<uint64_t> slice_over{UINT64_MAX};
  // Since when the owner has left fibers here at each of its scheduling points at which others had nothing to do; 0: it has
  // not. Written by the owner; a hint for thieves.
  Atomic<int64_t> waiting_since_ns{0};
  // At this tick of its owner the thread's own stack has a turn. Written by the owner, and set to zero by the monitor, which
  // is lost if the owner is just writing: then the monitor comes again.
  Atomic<uint64_t> maintenance_at{0};

  Ring<kRingSlots> ring;
  UnstartedDeque<kUnstartedSlots> unstarted;
  TimerQueue timers;

  // Written by the owner, summed up by the runtime.
  alignas(64) Atomic<uint64_t> spawned{0};
  Atomic<uint64_t> ended{0};
  Atomic<uint64_t> steals{0};
  Atomic<uint64_t> polls{0};

  // The idle protocol's look.
  bool has_fibers() const {
    return next_slot.load(std::memory_order_seq_cst) != nullptr ||  // order: idle-wake
           !ring.is_empty() || !unstarted.is_empty();
  }
  // More than a moment's: worth a thief's trouble at once.
  bool has_many() const {
    constexpr uint64_t kMany = 4;
    return ring.apparent_size() + unstarted.apparent_size() >= kMany;
  }
};

// For counters that have one writer.
inline void AddOne(Atomic<uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_RUN_QUEUE_H_
