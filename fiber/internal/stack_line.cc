// SPDX-License-Identifier: Apache-2.0
//
// StackDepot's line: the fibers that found no stack, and how they come to try again.
#include "absl/strings/string_view.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/scheduler.h"

namespace fiber::internal {
namespace {

constexpr int64_t kLogIntervalNs = 10'000'000'000;

}  // namespace

bool StackDepot::WaitInLine(StackClass cls, Record& fiber, const absl::Status& why) {
  bool is_log_due = false;
  {
    SpinLockHolder hold(lock_);
    waiting_.fetch_add(1, std::memory_order_seq_cst);  // order: stack-wait
    for (StackCache* caches = registered_; caches != nullptr; caches = caches->next_registered) {
      for (int i = 0; i < kStackClasses; ++i) {
        StackChain resident;
        StackChain discarded;
        Sort(caches[i].TakeAll(), &resident, &discarded);
        PushLocked(resident, discarded);
      }
    }
    Pool& pool = pools_[static_cast<int>(cls)];
    if (TakeableLocked(pool, LayoutOf(cls)) > 0) {
      waiting_.fetch_sub(1, std::memory_order_relaxed);
      return false;
    }
    fiber.next = nullptr;
    (pool.last_waiting != nullptr ? pool.last_waiting->next : pool.first_waiting) = &fiber;
    pool.last_waiting = &fiber;
    ++pool.waiting;
    ++waits_;
    if (const int64_t now = MonotonicNs(); now >= next_log_ns_) {
      next_log_ns_ = now + kLogIntervalNs;
      is_log_due = true;
    }
  }
  if (is_log_due) {
    const absl::string_view limit = LimitIn(why);
    LogLine("%.*s; until then fibers wait unstarted", static_cast<int>(limit.size()), limit.data());
  }
  return true;
}

Record* StackDepot::PopWaiterLocked(Pool& pool, Record* list) {
  Record* fiber = pool.first_waiting;
  pool.first_waiting = fiber->next;
  if (pool.first_waiting == nullptr) pool.last_waiting = nullptr;
  --pool.waiting;
  waiting_.fetch_sub(1, std::memory_order_relaxed);
  fiber->next = list;
  return fiber;
}

Record* StackDepot::PopWaitersLocked() {
  Record* list = nullptr;
  if (waiting_.load(std::memory_order_relaxed) == 0) return list;
  for (int i = 0; i < kStackClasses; ++i) {
    Pool& pool = pools_[i];
    if (pool.waiting == 0) continue;
    for (size_t most = TakeableLocked(pool, kStackLayouts[i]); most > 0 && pool.waiting > 0;
         --most) {
      list = PopWaiterLocked(pool, list);
    }
  }
  return list;
}

void StackDepot::Start(Record* list) {
  Record* in_order = nullptr;  // it was linked backwards
  while (list != nullptr) {
    Record* next = list->next;
    list->next = in_order;
    in_order = list;
    list = next;
  }
  while (in_order != nullptr) {
    Record* next = in_order->next;
    in_order->scheduler->RequeueNew(*in_order);
    in_order = next;
  }
}

void StackDepot::RetryWaiters() {
  Record* list = nullptr;
  {
    SpinLockHolder hold(lock_);
    for (Pool& pool : pools_) {
      if (pool.waiting > 0) list = PopWaiterLocked(pool, list);
    }
  }
  Start(list);
}

}  // namespace fiber::internal
