// SPDX-License-Identifier: Apache-2.0
//
// It is always handed over: whoever is let in is counted in the word by the one that lets it in,
// under the lock of the queues, and only after it was claimed. So no hold is lost between an unlock
// and a deadline: a waiter that gave up was not claimed, hence not counted.
//
//   the last holder leaves                       a waiter gives up
//   nobody waits: CAS it out     ← last touch    the timer, or a canceller, claims it
//   else: lock the queues, subtract              lock the queues
//     a writer left: claim and add all readers   unlink, unless somebody has met it and done so
//     nobody is inside: claim the first writer,  no writer waits or holds it any more: claim and
//       or, if all have given up, all readers      add the readers it has held back
//   store the word, unlocking    ← last touch    store the word, unlocking
//   unpark the claimed                           unpark the claimed
//
// Nobody barges. With kHasWaiters set a CAS takes nothing away and lets nobody in, but for a reader
// that leaves others inside. Rejected: a mutex among writers, as in Go's RWMutex, where a running
// writer may come before one that waits. It needs two waits for one lock, and whoever holds a lock
// that is mostly read seldom has another writer run beside it.
//
// Two queues, since the readers behind a writer overtake the writers behind that one.
#include "fiber/shared_mutex.h"

#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;
using internal::Waiter;

bool SharedMutex::TryTake(uint64_t hold) {
  internal::SchedulePoint();
  uint64_t word = word_.AwaitUnlocked();
  while (MayTake(word, hold)) {
    if (word_.TryTake(word, word + hold)) return true;
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }
  return false;
}

void SharedMutex::LockUninterrupted(uint64_t hold) {
  if (TryTake(hold)) return;
  internal::Wait wait(WaitReason::kSharedMutex, this, internal::Interruptible::kNo);
  // Neither a deadline nor a cancellation can end it.
  LockQueued(wait, hold, Deadline::Never()).IgnoreError();
}

absl::Status SharedMutex::LockOrFail(uint64_t hold, Deadline deadline) {
  internal::Wait wait(WaitReason::kSharedMutex, this);
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
  if (TryTake(hold)) return absl::OkStatus();
  return LockQueued(wait, hold, deadline);
}

absl::Status SharedMutex::LockQueued(internal::Wait& wait, uint64_t hold, Deadline deadline) {
  uint64_t word = word_.LockQueue();
  if (MayTake(word, hold)) {
    word_.UnlockQueue(word + hold);
    return absl::OkStatus();
  }
  internal::WaitQueue& queue = hold == kWriter ? writers_ : readers_;
  Waiter& waiter = wait.Open();
  queue.PushBack(waiter);
  word_.UnlockQueue(word | StateWord::kHasWaiters);
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == waiter.clause) return absl::OkStatus();

  ClaimedWaiters admitted;
  word = word_.LockQueue();
  if (waiter.is_linked) queue.Remove(waiter);
  word_.UnlockQueue(Admit(word, admitted));
  admitted.Unpark();
  return wait.StatusOf(outcome);
}

void SharedMutex::unlock() {
  internal::SchedulePoint();
  uint64_t word = kWriter;
  if (word_.TryGive(word, 0)) return;
  word = word_.LockQueue();
  if ((word & kWriter) == 0) DieUnheld("unlock");
  ClaimedWaiters admitted;
  word_.UnlockQueue(Admit(AdmitReaders(word - kWriter, admitted), admitted));
  admitted.Unpark();
}

void SharedMutex::unlock_shared() {
  internal::SchedulePoint();
  uint64_t word = word_.AwaitUnlocked();
  // All but the last, and the last if nobody waits, just go.
  while ((word & StateWord::kHasWaiters) == 0 || word >= 2 * kReader) {
    if (word < kReader) DieUnheld("unlock_shared");
    if (word_.TryGive(word, word - kReader)) return;
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }
  ClaimedWaiters admitted;
  word = word_.LockQueue();
  if (word < kReader) DieUnheld("unlock_shared");
  word_.UnlockQueue(Admit(word - kReader, admitted));
  admitted.Unpark();
}

uint64_t SharedMutex::AdmitReaders(uint64_t word, ClaimedWaiters& admitted) {
  while (Waiter* first = readers_.first()) {
    if (admitted.Claim(readers_, *first)) word += kReader;
  }
  return word;
}

uint64_t SharedMutex::Admit(uint64_t word, ClaimedWaiters& admitted) {
  word &= ~StateWord::kHasWaiters;
  while (word == 0 && !writers_.is_empty()) {
    if (admitted.Claim(writers_, *writers_.first())) word = kWriter;
  }
  if ((word & kWriter) == 0 && writers_.is_empty()) word = AdmitReaders(word, admitted);
  return readers_.is_empty() && writers_.is_empty() ? word : word | StateWord::kHasWaiters;
}

void SharedMutex::DieUnheld(const char* operation) const {
  const uint64_t word = word_.Peek();
  if ((word & kWriter) != 0) {
    internal::Fatal("fiber::SharedMutex %p: %s() of one that is held for writing",
                    static_cast<const void*>(this), operation);
  }
  internal::Fatal("fiber::SharedMutex %p: %s() of one that %s", static_cast<const void*>(this),
                  operation, word < kReader ? "nobody holds" : "is held for reading");
}

void SharedMutex::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t readers = readers_.size(), writers = writers_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::SharedMutex %p was destroyed while %zu waited to read and %zu to write",
                  static_cast<void*>(this), readers, writers);
}

}  // namespace fiber
