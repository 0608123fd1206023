// SPDX-License-Identifier: Apache-2.0
//
// No permit is lost between a release and a deadline: a permit leaves the word only with a claim,
// and a waiter is claimed once.
//
//   Release()                                    a waiter whose deadline comes
//   nobody waits: CAS them in    ← last touch    the timer claims it
//   else: lock the queue, add                    lock the queue
//     from the front, while there are enough:    unlink, unless a release has met it and done so
//       claim, subtract; one that cannot be      the next may want less: hand over from the
//       claimed has given up: skip it              front, as a release does
//   store the rest, unlocking    ← last touch    unlock
//   unpark the claimed                           unpark the claimed
//
// Nobody barges: who comes late finds kHasWaiters, and takes its place at the end.
#include "fiber/semaphore.h"

#include <climits>

#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;
using internal::Waiter;

absl::Status Semaphore::Acquire(int n, Deadline deadline) {
  if (n < 0) DieOfCount("Acquire", n);
  internal::Wait wait(WaitReason::kSemaphore, this);
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
  if (TryAcquire(n)) return absl::OkStatus();

  const auto wanted = static_cast<uint32_t>(n);
  uint64_t word = word_.LockQueue();
  if (waiters_.is_empty() && PermitsIn(word) >= wanted) {
    word_.UnlockQueue(word - Permits(wanted));
    return absl::OkStatus();
  }
  Waiter& waiter = wait.Open();
  waiter.amount = wanted;
  waiters_.PushBack(waiter);
  word_.UnlockQueue(word | StateWord::kHasWaiters);
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == waiter.clause) return absl::OkStatus();

  ClaimedWaiters granted;
  word = word_.LockQueue();
  if (waiter.is_linked) waiters_.Remove(waiter);
  word_.UnlockQueue(GrantLocked(word, granted));
  granted.Unpark();
  return wait.StatusOf(outcome);
}

bool Semaphore::TryAcquire(int n) {
  if (n < 0) DieOfCount("TryAcquire", n);
  internal::SchedulePoint();
  if (n == 0) return true;
  const auto wanted = static_cast<uint32_t>(n);
  uint64_t word = word_.AwaitUnlocked();
  while ((word & StateWord::kHasWaiters) == 0 && PermitsIn(word) >= wanted) {
    if (word_.TryTake(word, word - Permits(wanted))) return true;
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }
  return false;
}

void Semaphore::Release(int n) {
  if (n < 0) DieOfCount("Release", n);
  internal::SchedulePoint();
  const auto returned = static_cast<uint32_t>(n);
  uint64_t word = word_.AwaitUnlocked();
  while ((word & StateWord::kHasWaiters) == 0) {
    if (PermitsIn(word) + returned > INT_MAX) DieOfCount("Release", n);
    if (word_.TryGive(word, word + Permits(returned))) return;
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }
  ClaimedWaiters granted;
  word = word_.LockQueue();
  if (PermitsIn(word) + returned > INT_MAX) DieOfCount("Release", n);
  word_.UnlockQueue(GrantLocked(word + Permits(returned), granted));
  granted.Unpark();
}

uint64_t Semaphore::GrantLocked(uint64_t word, ClaimedWaiters& granted) {
  while (Waiter* first = waiters_.first()) {
    const uint32_t wanted = first->amount;
    if (wanted > PermitsIn(word)) return word;
    if (granted.Claim(waiters_, *first)) word -= Permits(wanted);
  }
  return word & ~StateWord::kHasWaiters;
}

void Semaphore::DieOfCount(const char* operation, int n) const {
  internal::Fatal("fiber::Semaphore %p: %s(%d) with %d permits: a count must be 0 to %d",
                  static_cast<const void*>(this), operation, n,
                  static_cast<int>(PermitsIn(word_.Peek())), INT_MAX);
}

void Semaphore::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::Semaphore %p was destroyed while %zu waited for it",
                  static_cast<void*>(this), count);
}

}  // namespace fiber
