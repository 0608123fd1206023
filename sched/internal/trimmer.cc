// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/trimmer.h"

#include "fiber/internal/park.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/wait_block.h"

namespace sched::internal {

using fiber::internal::Record;
using fiber::internal::State;
using fiber::internal::WaitBlock;

void Trimmer::Step(int64_t now_ns, uint64_t activity) {
  if (NextDue(now_ns, activity) > now_ns || !lock_.TryLock()) return;
  next_step_ns_.store(now_ns + kPeriodNs, std::memory_order_relaxed);
  if (cursor_ == 0) walk_activity_ = activity;
  size_t looks = 0;
  cursor_ = fiber::internal::VisitRecords(cursor_, kMostVisits, [this, &looks](Record& fiber) {
    if (Look(fiber)) ++looks;
    return looks < kMostLooks;
  });
  if (cursor_ == 0) seen_activity_.store(walk_activity_, std::memory_order_relaxed);
  lock_.Unlock();
}

int64_t Trimmer::NextDue(int64_t now_ns, uint64_t activity) const {
  if (activity == seen_activity_.load(std::memory_order_relaxed)) return fiber::internal::kNeverNs;
  const int64_t next = next_step_ns_.load(std::memory_order_relaxed);
  return next > now_ns ? next : now_ns;
}

// True if the kernel was asked.
bool Trimmer::Look(Record& fiber) {
  if (fiber::internal::SchedulerOf(fiber) != owner_ ||
      fiber.state.load(std::memory_order_relaxed) != State::kParked) {
    return false;
  }
  // A block outlives its fiber, so this look before holding is safe; what it says is looked at again.
  const auto is_seen = [](const WaitBlock& block) {
    return block.trimmed_word.load(std::memory_order_relaxed) == block.word.Load();
  };
  const WaitBlock* block = fiber.block.load(std::memory_order_acquire);  // order: owner
  if (block == nullptr || is_seen(*block) || !fiber::internal::TryHold(fiber)) return false;
  WaitBlock& held = *fiber.block.load(std::memory_order_relaxed);
  held.trimmed_word.store(held.word.Load(), std::memory_order_relaxed);
  fiber::internal::TrimStackBelow(held, static_cast<const char*>(fiber.context), kThresholdPages);
  fiber::internal::Release(fiber);
  return true;
}

}  // namespace sched::internal
