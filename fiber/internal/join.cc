// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/join.h"

#include "fiber/internal/park.h"
#include "fiber/internal/spin_lock.h"

namespace fiber::internal {

void DiscardIfDetached(Record& fiber) {
  if (fiber.run != nullptr &&
      fiber.join.load(std::memory_order_acquire) == kJoinDetached) {  // order: join
    fiber.run(fiber);
  }
}

bool FinishJoin(ThreadState& thread, Record& fiber) {
  uintptr_t word = fiber.join.load(std::memory_order_relaxed);
  for (;;) {
    if (word == kJoinDetached) {
      if (fiber.run != nullptr) return false;
      FreeRecord(thread, fiber);
      return true;
    }
    const uintptr_t next = word == 0 ? kJoinDone : word | kJoinLocked;
    if (fiber.join.compare_exchange_weak(word, next, std::memory_order_acq_rel,  // order: join
                                         std::memory_order_acquire)) {
      break;
    }
  }
  if (word == 0) return true;
  Waiter& waiter = *reinterpret_cast<Waiter*>(word);
  WaitBlock& block = *waiter.block;
  const bool is_claimed = waiter.TryClaim();
  if (is_claimed) block.outcome = waiter.clause;
  fiber.join.store(kJoinDone, std::memory_order_release);  // order: join
  if (is_claimed) Unpark(block);
  return true;
}

bool TryLinkJoin(Record& fiber, Waiter& waiter) {
  uintptr_t word = 0;
  if (fiber.join.compare_exchange_strong(word, reinterpret_cast<uintptr_t>(&waiter),
                                         std::memory_order_acq_rel,  // order: join
                                         std::memory_order_acquire)) {
    return true;
  }
  if (word != kJoinDone) Fatal("%s is joined twice at once", Describe(fiber).c_str());
  return false;
}

bool UnlinkJoin(Record& fiber, Waiter& waiter) {
  Backoff backoff;
  for (;;) {
    uintptr_t word = reinterpret_cast<uintptr_t>(&waiter);
    if (fiber.join.compare_exchange_weak(word, 0, std::memory_order_acq_rel,  // order: join
                                         std::memory_order_acquire)) {
      return true;
    }
    if (word == kJoinDone) return false;
    backoff.Pause();
  }
}

absl::Status WaitDone(Record& fiber, Deadline deadline, Interruptible interruptible) {
  Wait wait(WaitReason::kJoin, &fiber, interruptible);
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
  if (IsDone(fiber)) return absl::OkStatus();
  Waiter& waiter = wait.Open();
  if (!TryLinkJoin(fiber, waiter)) {
    // Not linked: only a deadline (not armed yet) or a cancellation could have claimed.
    if (!wait.CloseUnclaimed()) (void)wait.Park(Deadline::Never());
    return absl::OkStatus();
  }
  const uint32_t outcome = wait.Park(deadline);
  if (!IsFailure(outcome) || !UnlinkJoin(fiber, waiter)) return absl::OkStatus();
  return wait.StatusOf(outcome);
}

bool Detach(Record& fiber) {
  uintptr_t word = 0;
  if (fiber.join.compare_exchange_strong(word, kJoinDetached,
                                         std::memory_order_acq_rel,  // order: join
                                         std::memory_order_acquire)) {
    return false;
  }
  if (word != kJoinDone) Fatal("%s is detached while somebody joins it", Describe(fiber).c_str());
  return true;
}

}  // namespace fiber::internal
