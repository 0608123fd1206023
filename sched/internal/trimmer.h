// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_TRIMMER_H_
#define WEFT_SCHED_INTERNAL_TRIMMER_H_

#include <cstddef>
#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/stack_pages.h"

namespace sched::internal {

// Trimmer gives back what nobody uses: the pages that deep excursions leave behind, below the stack pointer of parked
// fibers, and those of free stacks beyond what the depot is to keep.
//
// Problem: nothing on the way into a park tells how deep the stack was used in between, and asking the kernel costs more
// than the switch. Rejected: asking at every park or at a sample of them (0.5 us, or missed), a sentinel word further
// down (a page fault a stack, a cache miss a park), asking only when the run was long (a clock a park).
// Chosen: workers that come by, or have nothing to do, walk the slab of all records a few at a time. A fiber that is in
// the same wait as when the last walk came by is held, and the kernel is asked; once a wait. So a busy fiber costs next to
// nothing, and keeps its pages until it rests.
//
// Free stacks beyond the bound that rest lose their pages kMostDiscards a step, a million in ten seconds.
//
// Rate: steps kStepNs apart of at most kMostLooks stacks that the kernel is asked about: some per cent of one CPU. From the end
// of a walk to the next one it is kRestFactor times as long as the walk took, so that a fiber that runs now and then does not
// have a million others looked at again and again; kWalkNs if one fiber in kManyRuns may have run meanwhile. When a whole walk
// has found nothing new and no fiber has run meanwhile, it is over until one has.
//
// Thread safety: Step from any worker; one at a time does it.
class Trimmer {
 public:
  explicit Trimmer(const fiber::Scheduler* owner) : owner_(owner) {}

  // Does a step if one is due. `activity` counts how often fibers have run. By a worker on its own stack.
  void Step(int64_t now_ns, uint64_t activity);

  // When to call Step next if nothing else happens; kNeverNs: nothing is left to look at.
  int64_t NextDue(int64_t now_ns, uint64_t activity) const;

 private:
  static constexpr int64_t kWalkNs = 100'000'000;
  static constexpr int64_t kStepNs = 10'000'000;
  static constexpr size_t kMostVisits = 4096;
  static constexpr size_t kMostLooks = 512;
  static constexpr int64_t kRestFactor = 1000;  // 0.1 % of a CPU
  static constexpr uint64_t kManyRuns = 16;
  static constexpr size_t kMostDiscards = 1024;  // 0.6 ms, six per cent of a CPU
  // Fewer pages than that are not worth the system call and the faults when they are touched again.
  static constexpr size_t kThresholdPages = 4;

  bool IsWalkOver(uint64_t activity) const {
    return activity == seen_activity_.load(std::memory_order_relaxed);
  }
  int64_t EarlyWalk(uint64_t activity) const;
  void Walk(int64_t now_ns, uint64_t activity) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  bool Look(fiber::internal::Record& fiber) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  const fiber::Scheduler* const owner_;
  fiber::internal::SpinLock lock_;
  size_t cursor_ ABSL_GUARDED_BY(lock_) = 0;
  fiber::internal::Residency residency_ ABSL_GUARDED_BY(lock_);  // as it was at the beginning of a step, or later
  // This walk: how many records it has seen, the time it took, and waits for the next one to look at.
  uint64_t visited_ ABSL_GUARDED_BY(lock_) = 0;
  int64_t cost_ns_ ABSL_GUARDED_BY(lock_) = 0;
  bool has_found_new_ ABSL_GUARDED_BY(lock_) = false;
  int64_t next_walk_ns_ ABSL_GUARDED_BY(lock_) = 0;
  uint64_t walk_activity_ ABSL_GUARDED_BY(lock_) = 0;  // when it began
  fiber::internal::Atomic<uint64_t> seen_activity_{0};  // no fiber has run since a walk that saw all: then it is over
  fiber::internal::Atomic<int64_t> next_step_ns_{0};
  fiber::internal::Atomic<int64_t> next_discard_ns_{fiber::internal::kNeverNs};  // as of the last step
  // Between walks: as soon as so much has run, the next one may come from then on.
  fiber::internal::Atomic<uint64_t> many_runs_{0};
  fiber::internal::Atomic<int64_t> early_walk_ns_{0};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_TRIMMER_H_
