// SPDX-License-Identifier: Apache-2.0
//
// Who touches the event last. A waiter may destroy it once it has seen kSet, which it may do
// without ever having parked:
//
//   Set()                                        Wait()
//   nobody waits: CAS in kSet    ← last touch    sees kSet: returns
//   else: lock the queue                         else: lock the queue
//         claim and unlink all                         kSet there: unlock, return
//         store kSet, unlocking  ← last touch          else link, unlock, park
//         unpark the claimed                     claimed: returns, without touching the event
//                                                gave up: lock, unlink, unlock, return
//
// No wake-up is lost: both sides change the one word, by CAS or under its lock, so either Set()
// finds kHasWaiters or the waiter finds kSet.
#include "fiber/event.h"

#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;
using internal::Waiter;

void Event::Set() {
  internal::SchedulePoint();
  uint64_t word = word_.AwaitUnlocked();
  while ((word & StateWord::kHasWaiters) == 0) {
    if ((word & kSet) != 0 || word_.TryGive(word, word | kSet)) return;
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }
  word_.LockQueue();  // another Set() may have come first: then there is nobody to claim
  ClaimedWaiters claimed;
  while (Waiter* first = waiters_.first()) claimed.Claim(waiters_, *first);
  word_.UnlockQueue(kSet);
  claimed.Unpark();
}

absl::Status Event::Wait(Deadline deadline) {
  internal::Wait wait(WaitReason::kEvent, this);
  return WaitAs(wait, deadline);
}

void Event::WaitUninterrupted() {
  internal::Wait wait(WaitReason::kEvent, this, internal::Interruptible::kNo);
  WaitAs(wait, Deadline::Never()).IgnoreError();  // nothing else can end it
}

absl::Status Event::WaitAs(internal::Wait& wait, Deadline deadline) {
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
  if (is_set()) return absl::OkStatus();

  const uint64_t word = word_.LockQueue();
  if ((word & kSet) != 0) {
    word_.UnlockQueue(word);
    return absl::OkStatus();
  }
  return internal::ParkInQueue(wait, word_, word, waiters_, deadline);
}

bool Event::TryLink(Waiter& waiter) {
  const uint64_t word = word_.LockQueue();
  const bool is_set = (word & kSet) != 0;
  if (!is_set) waiters_.PushBack(waiter);
  word_.UnlockQueue(is_set ? word : word | StateWord::kHasWaiters);
  return !is_set;
}

void Event::Unlink(Waiter& waiter) {
  const uint64_t word = word_.LockQueue();
  if (waiter.is_linked) waiters_.Remove(waiter);
  word_.UnlockQueue(waiters_.is_empty() ? word & ~StateWord::kHasWaiters : word);
}

void Event::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::Event %p was destroyed while %zu waited for it", static_cast<void*>(this),
                  count);
}

}  // namespace fiber
