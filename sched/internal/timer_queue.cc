// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/timer_queue.h"

#include <algorithm>
#include <new>
#include <vector>

#include "fiber/internal/park.h"
#include "fiber/internal/thread_state.h"

namespace sched::internal {

using fiber::internal::Fatal;
using fiber::internal::kNeverNs;
using fiber::internal::OnTimer;
using fiber::internal::SpinLockHolder;
using fiber::internal::WaitBlock;

TimerQueue::TimerQueue(const void* owner) : owner_(owner), wheel_(fiber::internal::MonotonicNs()) {}

bool TimerQueue::File(WaitBlock& block, int64_t deadline_ns, int64_t now_ns) {
  SpinLockHolder hold(lock_);
  if (wheel_.size() >= sweep_at_) {
    wheel_.Sweep([](const TimerWheel::Entry& entry) {
      const int64_t filed_ns =
          static_cast<const WaitBlock*>(entry.key)->timer.filed_ns.load(std::memory_order_relaxed);
      // Busy: by an entry of the same instant, which may be another runtime's, and then this one counts.
      return filed_ns == entry.deadline_ns || filed_ns == fiber::internal::DeadlineTimer::kBusyNs;
    });
    sweep_at_ = std::max(kSmallestSweep, 2 * wheel_.size());
  }
  wheel_.Insert(&block, deadline_ns, now_ns);
  const int64_t due = wheel_.NextDue();
  if (due == next_due_ns_.load(std::memory_order_relaxed)) return false;
  const bool is_earlier = due < next_due_ns_.load(std::memory_order_relaxed);
  next_due_ns_.store(due, std::memory_order_seq_cst);  // order: idle-wake
  return is_earlier;
}

bool TimerQueue::Expire(int64_t now_ns) try {
  // The caller is a worker on its own stack: it does not migrate.
  thread_local std::vector<TimerWheel::Entry> due;
  expiring_.fetch_add(1, std::memory_order_seq_cst);  // order: idle-wake
  bool has_more = next_due_ns() <= now_ns;
  bool is_earlier = false;
  while (has_more) {
    {
      SpinLockHolder hold(lock_);
      has_more = wheel_.Expire(now_ns, kBatch, &due);
      next_due_ns_.store(wheel_.NextDue(), std::memory_order_seq_cst);  // order: idle-wake
    }
    for (const TimerWheel::Entry& entry : due) {
      auto& block = *static_cast<WaitBlock*>(entry.key);
      const int64_t later = OnTimer(block, entry.deadline_ns, now_ns, owner_);
      if (later != kNeverNs && File(block, later, now_ns)) is_earlier = true;
    }
    due.clear();
  }
  expiring_.fetch_sub(1, std::memory_order_seq_cst);  // order: idle-wake
  return is_earlier;
} catch (const std::bad_alloc&) {
  // What was taken off the wheel would never be due again, and the sleepers have no way to fail by now.
  Fatal("no memory to expire timers: the heap is exhausted (the memory limit, ulimit -v)");
}

}  // namespace sched::internal
