// SPDX-License-Identifier: Apache-2.0
//
// Zero is to a wait group what kSet is to an event (event.cc): whoever sees it may destroy the
// group.
//
//   Add() that leads to zero                     Wait()
//   nobody waits: CAS in 0       ← last touch    sees 0: returns
//   else: CAS in the queue's lock, the count     else: lock the queue
//           as it was                                  0 there: unlock, return
//         claim and unlink all                         else link, unlock, park
//         store 0, unlocking     ← last touch    claimed: returns, without touching the group
//         unpark the claimed                     gave up: lock, unlink, unlock, return
//
// So the count is never seen at zero with somebody linked, and the next round may begin at once:
// its Add() finds an empty queue, and those who were claimed do not look at the count again. (Go's
// WaitGroup, whose waiters do, must forbid that.)
#include "fiber/wait_group.h"

#include <climits>

#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;
using internal::Waiter;

void WaitGroup::Add(int n) {
  internal::SchedulePoint();
  uint64_t word = word_.AwaitUnlocked();
  for (;;) {
    const int64_t count = CountIn(word) + n;
    if (count < 0 || count > INT_MAX) DieOfCount(count, n);
    if (count == 0 && (word & StateWord::kHasWaiters) != 0) {
      if (word_.TryLockQueue(word)) break;
    } else {
      const uint64_t flags = word & StateWord::kHasWaiters;
      if (word_.TryGive(word, static_cast<uint64_t>(count) << kCountShift | flags)) return;
    }
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }
  ClaimedWaiters claimed;
  while (Waiter* first = waiters_.first()) claimed.Claim(waiters_, *first);
  word_.UnlockQueue(0);
  claimed.Unpark();
}

absl::Status WaitGroup::Wait(Deadline deadline) {
  internal::Wait wait(WaitReason::kWaitGroup, this);
  return WaitAs(wait, deadline);
}

absl::Status WaitGroup::WaitThrough(Deadline deadline) {
  internal::Wait wait(WaitReason::kWaitGroup, this, internal::Interruptible::kNo);
  return WaitAs(wait, deadline);
}

absl::Status WaitGroup::WaitAs(internal::Wait& wait, Deadline deadline) {
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
  if (CountIn(word_.Load()) == 0) return absl::OkStatus();

  const uint64_t word = word_.LockQueue();
  if (CountIn(word) == 0) {
    word_.UnlockQueue(word);
    return absl::OkStatus();
  }
  return internal::ParkInQueue(wait, word_, word, waiters_, deadline);
}

void WaitGroup::DieOfCount(int64_t count, int n) const {
  internal::Fatal("fiber::WaitGroup %p: Add(%d) %s", static_cast<const void*>(this), n,
                  count < 0 ? "makes the count negative" : "makes the count overflow");
}

void WaitGroup::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::WaitGroup %p was destroyed while %zu waited for it",
                  static_cast<void*>(this), count);
}

}  // namespace fiber
