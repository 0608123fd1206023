// SPDX-License-Identifier: Apache-2.0
//
// No signal is missed: a waiter is in the queue before it gives the mutex up, so whoever then takes
// the mutex, changes what it protects and signals, finds it there.
//
//   Wait()                                       Signal()
//   lock the queue, link, unlock                 nobody waits: that is all
//   unlock the mutex                             lock the queue
//   park                                           claim the first that has not given up
//   claimed: lock the mutex                        unlink all that were met
//   gave up: lock the queue, unlink, unlock,     unlock                       ← last touch
//     lock the mutex                             unpark the claimed
//
// No signal is stolen or lost: it ends a wait by a claim or has no effect. A waiter that its
// deadline or a cancellation has claimed cannot be claimed by a signal, which goes on to the next;
// one that a signal has claimed returns OK, whatever comes before it holds the mutex again. Who
// comes after a signal is not in the queue that it looked at.
//
// The mutex is unlocked between Open() and Park(), while this fiber counts as parking: to unlock
// opens no wait, and a mutex that is handed over does not make a fiber yield that is about to park.
//
// Rejected: to move those who are signalled into the mutex's queue, where they would wait without
// waking up first. It saves a switch where the mutex is held by the one that signals, and ties both
// protocols together.
#include "fiber/condition.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;
using internal::Waiter;

absl::Status Condition::Wait(Mutex& mutex, Deadline deadline) {
  internal::Wait wait(WaitReason::kCondition, this);
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;

  uint64_t word = word_.LockQueue();
  Waiter& waiter = wait.Open();
  waiters_.PushBack(waiter);
  word_.UnlockQueue(word | StateWord::kHasWaiters);
  mutex.unlock();
  const uint32_t outcome = wait.Park(deadline);
  const bool is_signalled = outcome == waiter.clause;
  if (!is_signalled) {
    word = word_.LockQueue();
    if (waiter.is_linked) waiters_.Remove(waiter);
    word_.UnlockQueue(waiters_.is_empty() ? word & ~StateWord::kHasWaiters : word);
  }
  mutex.lock();  // before what may throw: the caller has it, whatever comes of this
  return is_signalled ? absl::OkStatus() : wait.StatusOf(outcome);
}

void Condition::SignalUpTo(size_t count) {
  internal::SchedulePoint();
  if ((word_.Load() & StateWord::kHasWaiters) == 0) return;
  ClaimedWaiters claimed;
  word_.LockQueue();
  Waiter* first;
  while (count > 0 && (first = waiters_.first()) != nullptr) {
    if (claimed.Claim(waiters_, *first)) --count;
  }
  word_.UnlockQueue(waiters_.is_empty() ? 0 : StateWord::kHasWaiters);
  claimed.Unpark();
}

void Condition::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::Condition %p was destroyed while %zu waited for it",
                  static_cast<void*>(this), count);
}

}  // namespace fiber
