// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/wait_queue.h"

#include "fiber/internal/park.h"

namespace fiber::internal {

size_t WaitQueue::size() const {
  const Waiter* const first = this->first();
  if (first == nullptr) return 0;
  size_t count = 1;
  for (const Waiter* waiter = first->next; waiter != first; waiter = waiter->next) ++count;
  return count;
}

void WaitQueue::PushFront(Waiter& waiter) {
  PushBack(waiter);  // on a ring, before the first is behind the last
  SetFirst(&waiter);
}

absl::Status ParkInQueue(Wait& wait, StateWord& state, uint64_t word, WaitQueue& queue,
                         Deadline deadline) {
  Waiter& waiter = wait.Open();
  queue.PushBack(waiter);
  state.UnlockQueue(word | StateWord::kHasWaiters);
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == waiter.clause) return absl::OkStatus();

  word = state.LockQueue();
  if (waiter.is_linked) queue.Remove(waiter);
  state.UnlockQueue(queue.is_empty() ? word & ~StateWord::kHasWaiters : word);
  return wait.StatusOf(outcome);
}

void ClaimedWaiters::UnparkAll() {
  for (Waiter* waiter = first_; waiter != nullptr;) {
    Waiter* next = waiter->next;  // once unparked it may be in its next wait already
    internal::Unpark(*waiter->block);
    waiter = next;
  }
  first_ = last_ = nullptr;
}

}  // namespace fiber::internal
