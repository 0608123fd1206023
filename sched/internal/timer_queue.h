// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_TIMER_QUEUE_H_
#define WEFT_SCHED_INTERNAL_TIMER_QUEUE_H_

#include <cstddef>
#include <cstdint>

#include "fiber/internal/spin_lock.h"
#include "fiber/internal/wait_block.h"
#include "sched/internal/timer_wheel.h"

namespace sched::internal {

// TimerQueue holds the deadline timers armed on one run queue. Anybody may expire it.
//
// Disarming does not come here, nor does arming what is filed already (wait_block.h, DeadlineTimer). Entries that do not
// count any more stay until they are due, or are swept when there are twice as many entries as after the last sweep.
class TimerQueue {
 public:
  // `owner`: whose entries these are (see DeadlineTimer::filed_by).
  explicit TimerQueue(const void* owner = nullptr);

  // Files an entry for the block. True: the queue's earliest instant became earlier. Throws std::bad_alloc.
  [[nodiscard]] bool File(fiber::internal::WaitBlock& block, int64_t deadline_ns, int64_t now_ns);

  // Unparks those whose deadline has passed at `now_ns`. True: the queue's earliest instant became earlier meanwhile, since
  // entries were filed anew under later deadlines. By a worker on its own stack.
  [[nodiscard]] bool Expire(int64_t now_ns);

  // Nothing is filed, and nobody is about to file anew what he has taken off. It stays so if there is no owner who files.
  //
  // Whoever expires takes entries off, so that the earliest instant may be never for a moment, and may file some anew. If he
  // is seen to be at it, the answer is no. If he had ended by then, the second reading finds what he filed; whoever begins
  // later than the first reading found nothing to take.
  bool is_at_rest() const {
    return next_due_ns() == fiber::internal::kNeverNs &&
           expiring_.load(std::memory_order_seq_cst) == 0 &&  // order: idle-wake
           next_due_ns() == fiber::internal::kNeverNs;
  }

  // How late an entry may fall due (TimerWheel's widest slot).
  static constexpr int64_t kLatenessNs = int64_t{1} << 20;

  // When to call Expire() next; kNeverNs: nothing is filed. Any thread.
  int64_t next_due_ns() const {
    return next_due_ns_.load(std::memory_order_seq_cst);  // order: idle-wake
  }

 private:
  // Entries are taken off under the lock, so many at a time, and looked at without it.
  static constexpr size_t kBatch = 64;
  static constexpr size_t kSmallestSweep = 1024;

  const void* const owner_;
  fiber::internal::SpinLock lock_;
  TimerWheel wheel_ ABSL_GUARDED_BY(lock_);
  size_t sweep_at_ ABSL_GUARDED_BY(lock_) = kSmallestSweep;
  fiber::internal::Atomic<uint32_t> expiring_{0};  // so many are in Expire
  fiber::internal::Atomic<int64_t> next_due_ns_{fiber::internal::kNeverNs};  // written under lock_
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_TIMER_QUEUE_H_
