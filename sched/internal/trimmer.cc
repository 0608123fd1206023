// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/trimmer.h"

#include <algorithm>

#include "fiber/internal/park.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/wait_block.h"

namespace sched::internal {

using fiber::internal::Record;
using fiber::internal::StackDepot;
using fiber::internal::State;
using fiber::internal::WaitBlock;

void Trimmer::Step(int64_t now_ns, uint64_t activity) {
  if (NextDue(now_ns, activity) > now_ns || !lock_.TryLock()) return;
  const int64_t next_discard = StackDepot::Get().DiscardExcess(now_ns, kMostDiscards);
  if (cursor_ != 0 || (now_ns >= next_walk_ns_ && !IsWalkOver(activity))) Walk(now_ns, activity);
  const int64_t next = std::min(next_discard, cursor_ != 0 ? now_ns : next_walk_ns_);
  next_step_ns_.store(std::max(next, now_ns + kStepNs), std::memory_order_relaxed);
  lock_.Unlock();
}

int64_t Trimmer::NextDue(int64_t now_ns, uint64_t activity) const {
  if (IsWalkOver(activity) && StackDepot::Get().Excess() == 0) return fiber::internal::kNeverNs;
  return std::max(now_ns, next_step_ns_.load(std::memory_order_relaxed));
}

void Trimmer::Walk(int64_t now_ns, uint64_t activity) {
  if (cursor_ == 0) {
    next_walk_ns_ = now_ns + kWalkNs;
    walk_activity_ = activity;
    has_found_new_ = false;
  }
  size_t looks = 0;
  cursor_ = fiber::internal::VisitRecords(
      cursor_, kMostVisits, [this, &looks](Record& fiber) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        if (Look(fiber)) ++looks;
        return looks < kMostLooks;
      });
  if (cursor_ == 0 && !has_found_new_) seen_activity_.store(walk_activity_, std::memory_order_relaxed);
}

namespace {

// What is noted of a wait: that a walk has passed it, that the kernel was asked about its stack.
uint64_t Passed(uint64_t word) { return word << 1; }
uint64_t Asked(uint64_t word) { return word << 1 | 1; }

}  // namespace

// True if the kernel was asked.
bool Trimmer::Look(Record& fiber) {
  if (fiber::internal::SchedulerOf(fiber) != owner_ ||
      fiber.state.load(std::memory_order_relaxed) != State::kParked) {
    return false;
  }
  // A block outlives its fiber, so this look before holding is safe; what it says is looked at again.
  WaitBlock* block = fiber.block.load(std::memory_order_acquire);  // order: owner
  if (block == nullptr) return false;
  const uint64_t seen = block->trimmed_word.load(std::memory_order_relaxed);
  const uint64_t word = block->word.Load();
  if (seen == Asked(word)) return false;
  if (seen != Passed(word)) {
    block->trimmed_word.store(Passed(word), std::memory_order_relaxed);
    has_found_new_ = true;
    return false;
  }
  if (!fiber::internal::TryHold(fiber)) return false;
  if (fiber.is_bound()) {  // its thread stands on its stack while it is parked
    fiber::internal::Release(fiber);
    return false;
  }
  WaitBlock& held = *fiber.block.load(std::memory_order_relaxed);
  held.trimmed_word.store(Asked(held.word.Load()), std::memory_order_relaxed);
  const void* stack_pointer = fiber.context.load(std::memory_order_relaxed);
  fiber::internal::TrimStackBelow(held, static_cast<const char*>(stack_pointer), kThresholdPages);
  fiber::internal::Release(fiber);
  return true;
}

}  // namespace sched::internal
