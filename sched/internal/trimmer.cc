// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/trimmer.h"

#include <algorithm>

#include "fiber/internal/park.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"

namespace sched::internal {

using fiber::internal::Record;
using fiber::internal::StackDepot;
using fiber::internal::State;
using fiber::internal::WaitBlock;

void Trimmer::Step(int64_t now_ns, uint64_t activity) {
  if (NextDue(now_ns, activity) > now_ns || !lock_.TryLock()) return;
  const int64_t next_discard = StackDepot::Get().DiscardExcess(now_ns, kMostDiscards);
  next_discard_ns_.store(next_discard, std::memory_order_relaxed);
  const int64_t next_walk = std::min(next_walk_ns_, EarlyWalk(activity));
  if (cursor_ != 0 || (now_ns >= next_walk && !IsWalkOver(activity))) Walk(now_ns, activity);
  const int64_t next = std::min(next_discard, cursor_ != 0 ? now_ns : next_walk_ns_);
  next_step_ns_.store(std::max(next, now_ns + kStepNs), std::memory_order_relaxed);
  lock_.Unlock();
}

int64_t Trimmer::EarlyWalk(uint64_t activity) const {
  return activity >= many_runs_.load(std::memory_order_relaxed) ? early_walk_ns_.load(std::memory_order_relaxed)
                                                                : fiber::internal::kNeverNs;
}

int64_t Trimmer::NextDue(int64_t now_ns, uint64_t activity) const {
  int64_t due = next_step_ns_.load(std::memory_order_relaxed);
  if (IsWalkOver(activity)) {
    // Without an excess there may be one that the kernel has refused to take back, for a while.
    if (StackDepot::Get().Excess() == 0) due = next_discard_ns_.load(std::memory_order_relaxed);
  } else {
    due = std::min(due, EarlyWalk(activity));
  }
  return std::max(now_ns, due);
}

void Trimmer::Walk(int64_t now_ns, uint64_t activity) {
  if (cursor_ == 0) {
    walk_activity_ = activity;
    visited_ = 0;
    cost_ns_ = 0;
    has_found_new_ = false;
    many_runs_.store(UINT64_MAX, std::memory_order_relaxed);
  }
  residency_.Forget();
  size_t looks = 0;
  cursor_ = fiber::internal::VisitRecords(
      cursor_, kMostVisits, [this, &looks](Record& fiber) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        ++visited_;
        if (Look(fiber)) ++looks;
        return looks < kMostLooks;
      });
  const int64_t end_ns = fiber::internal::MonotonicNs();
  cost_ns_ += end_ns - now_ns;
  if (cursor_ != 0) return;
  next_walk_ns_ = end_ns + std::max(kWalkNs, cost_ns_ * kRestFactor);
  early_walk_ns_.store(end_ns + kWalkNs, std::memory_order_relaxed);
  many_runs_.store(walk_activity_ + visited_ / kManyRuns, std::memory_order_relaxed);
  if (!has_found_new_) seen_activity_.store(walk_activity_, std::memory_order_relaxed);
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
  fiber::internal::TrimStackBelow(held, static_cast<const char*>(stack_pointer), kThresholdPages, residency_);
  fiber::internal::Release(fiber);
  return true;
}

}  // namespace sched::internal
