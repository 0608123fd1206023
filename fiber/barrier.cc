// SPDX-License-Identifier: Apache-2.0
//
// Who decides whether a phase is complete, when somebody gives up at that moment. Not the claims of
// those who wait: the last to arrive cannot claim all of them at once, and could not take back what
// it has claimed when it meets one that has given up. So the count does, which an arrival is taken
// back from under the lock only:
//
//   the last to arrive                           a waiter gives up
//   lock the queue                               the timer, or a canceller, claims it
//   all others are counted: unlink them all,     lock the queue
//     claiming those that have not given up        still linked: unlink, count it out: failed
//   store 0: the next phase     ← last touch       unlinked: the phase was complete with it: OK
//   unpark the claimed                           unlock
//
// Those who have arrived are those who are linked, so a waiter's link says whether its own phase is
// complete, whatever has come to the next one meanwhile.
//
// Hence a barrier may not be destroyed by the first that returns while another might be giving up:
// that one has yet to look.
#include "fiber/barrier.h"

#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::Waiter;

absl::Status Barrier::ArriveAndWait(Deadline deadline) {
  internal::Wait wait(WaitReason::kBarrier, this);
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;

  const auto arrived = static_cast<uint32_t>(word_.LockQueue() >> kArrivedShift) + 1;
  if (arrived == parties_) {
    ClaimedWaiters claimed;
    while (Waiter* first = waiters_.first()) claimed.Claim(waiters_, *first);
    word_.UnlockQueue(WordOf(0));
    claimed.Unpark();
    return absl::OkStatus();
  }
  Waiter& waiter = wait.Open();
  waiters_.PushBack(waiter);
  word_.UnlockQueue(WordOf(arrived));
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == waiter.clause) return absl::OkStatus();

  const uint64_t word = word_.LockQueue();
  if (!waiter.is_linked) {
    word_.UnlockQueue(word);
    return absl::OkStatus();
  }
  waiters_.Remove(waiter);
  word_.UnlockQueue(WordOf(static_cast<uint32_t>(word >> kArrivedShift) - 1));
  return wait.StatusOf(outcome);
}

void Barrier::DieOfParties(int parties) const {
  internal::Fatal("fiber::Barrier %p: made for %d parties: there must be one at least",
                  static_cast<const void*>(this), parties);
}

void Barrier::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::Barrier %p was destroyed while %zu waited for it",
                  static_cast<void*>(this), count);
}

}  // namespace fiber
