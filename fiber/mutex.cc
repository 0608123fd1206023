// SPDX-License-Identifier: Apache-2.0
//
// Two ways to pass a mutex on, and when to use which.
//
// Handing it over to the first waiter is fair, and slow: from the unlock until that waiter runs
// nobody can have it, every lock of a busy mutex then parks, and the program moves at the pace of
// wake-ups (a convoy). Letting whoever runs have it is fast, and may starve those who wait. So, as
// in Go: the second, until somebody has waited for 1 ms; then the first, until those who wait have
// waited for less.
//
//   unlock(), others wait                        who waits
//   kWoken: somebody is on his way: CAS out kHeld
//   normal: lock the queue                       parked
//     claim the first with kTryAgain
//     store kWoken, no kHeld     ← last touch
//     unpark it                                  lock the queue, clear kWoken
//                                                free: take it, unlock
//                                                held again: queue in front, set kStarving if
//                                                  1 ms is over, unlock, park
//   starving: lock the queue                     parked
//     claim the first with kYours
//     store, with kHeld          ← last touch
//     unpark it, yield to it                     returns, without touching the word
//
// Why lock() sets kHeld by fetch_or: while others wait the word is never what a CAS from "free"
// expects, and looking first costs as much as it saves where nobody waits. Whoever finds kHeld
// clear may have it, whatever else the word says, so nothing is ever given back; a mutex that is
// handed over has it set.
//
// No wake-up is lost: a waiter links itself under the queue's lock while kHeld is set, so an
// unlock() comes after it and finds kWake. Whoever is claimed with kTryAgain always goes on:
// it takes the mutex, or finds it held and clears kWoken, and the holder's unlock() sees that. It
// gives up only when it parks again, where it can be claimed again.
//
// Who gives up while parked has not been claimed by an unlock(), so it owes nobody anything: it
// unlinks itself and goes.
#include "fiber/mutex.h"

#include "fiber/internal/context.h"
#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;
using internal::Waiter;

namespace {

// Outcomes of a waiter's wait.
constexpr uint32_t kTryAgain = 0;
constexpr uint32_t kYours = 1;

constexpr int64_t kStarvingNs = 1'000'000;

// When a waiter first came, in its `value`.
static_assert(sizeof(void*) >= sizeof(int64_t));
void SetSince(Waiter& waiter, int64_t ns) { waiter.value = reinterpret_cast<void*>(ns); }
int64_t SinceOf(const Waiter& waiter) { return reinterpret_cast<int64_t>(waiter.value); }

// The caller has handed a mutex over and would only keep it waiting. Not while it is about to park
// itself.
void YieldToNewHolder() {
  const internal::Record* current = internal::ThisThread().current;
  if (current == nullptr ||
      current->state.load(std::memory_order_relaxed) != internal::State::kRunning) {
    return;
  }
  internal::YieldFiber();
}

}  // namespace

bool Mutex::try_lock() {
  internal::SchedulePoint();
  return TryTakeFree();
}

bool Mutex::TryTakeFree() {
  // Looking first leaves the line alone when it is held.
  return (word_.Peek() & kHeld) == 0 && word_.TrySet(kHeld);
}

bool Mutex::TryTakeFreeLocked(uint64_t& word) {
  if ((word & kHeld) != 0) return false;
  word |= kHeld;
  return word_.TrySet(kHeld);  // else one that did not wait was faster
}

void Mutex::UnlockQueue(uint64_t word) {
  const bool is_to_wake = !waiters_.is_empty() && (word & kWoken) == 0;
  word_.UnlockQueue(is_to_wake ? word | kWake : word & ~kWake);
}

void Mutex::LockSlow() {
  internal::Wait wait(WaitReason::kMutex, this, internal::Interruptible::kNo);
  // Neither a deadline nor a cancellation can end it.
  LockQueued(wait, Deadline::Never()).IgnoreError();
}

absl::Status Mutex::Lock(Deadline deadline) {
  internal::Wait wait(WaitReason::kMutex, this);
  if (absl::Status status = wait.Check(deadline); !status.ok()) return status;
  if (TryTakeFree()) return absl::OkStatus();
  return LockQueued(wait, deadline);
}

absl::Status Mutex::LockQueued(internal::Wait& wait, Deadline deadline) {
  const int64_t since = internal::NowNs();
  uint64_t word = word_.LockQueue();
  if (TryTakeFreeLocked(word)) {
    UnlockQueue(word);
    return absl::OkStatus();
  }
  Waiter& waiter = wait.Open();
  SetSince(waiter, since);
  waiters_.PushBack(waiter);
  UnlockQueue(word);

  for (;;) {
    const uint32_t outcome = wait.Park(deadline);
    if (outcome == kYours) return absl::OkStatus();
    if (outcome != kTryAgain) {
      word_.LockQueue();
      if (waiter.is_linked) waiters_.Remove(waiter);
      word_.UnlockQueueClearing(waiters_.is_empty() ? kWake | kStarving : 0);
      return wait.StatusOf(outcome);
    }
    const bool is_starving = internal::NowNs() - since >= kStarvingNs;
    word = word_.LockQueue() & ~kWoken;
    if (TryTakeFreeLocked(word)) {
      UnlockQueue(word);
      return absl::OkStatus();
    }
    wait.Open();  // the same waiter
    SetSince(waiter, since);
    waiters_.PushFront(waiter);
    UnlockQueue(word | (is_starving ? kStarving : 0));
  }
}

void Mutex::UnlockSlow() {
  uint64_t word = word_.AwaitUnlocked();
  while ((word & kWake) == 0) {
    if ((word & kHeld) == 0) DieUnheld("unlock");
    if (word_.TryGive(word, word & ~kHeld)) return;
    if ((word & StateWord::kQueueLock) != 0) word = word_.AwaitUnlocked();
  }

  word = word_.LockQueue();
  if ((word & kHeld) == 0) DieUnheld("unlock");
  const bool is_handed_over = (word & kStarving) != 0;
  ClaimedWaiters claimed;
  Waiter* first;
  do {
    first = waiters_.first();
  } while (first != nullptr &&
           !claimed.Claim(waiters_, *first, is_handed_over ? kYours : kTryAgain));
  if (first == nullptr) {  // all have given up
    word &= ~(kHeld | kStarving);
  } else if (!is_handed_over) {
    word = (word & ~kHeld) | kWoken;
  } else if (waiters_.is_empty() || internal::NowNs() - SinceOf(*first) < kStarvingNs) {
    word &= ~kStarving;
  }
  UnlockQueue(word);
  claimed.Unpark();
  if (is_handed_over && first != nullptr) YieldToNewHolder();
}

void Mutex::DieUnheld(const char* operation) const {
  internal::Fatal("fiber::Mutex %p: %s() of one that nobody holds", static_cast<const void*>(this),
                  operation);
}

void Mutex::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size() + ((word & kWoken) != 0 ? 1 : 0);
  word_.UnlockQueue(word);
  internal::Fatal("fiber::Mutex %p was destroyed while %zu waited for it", static_cast<void*>(this),
                  count);
}

}  // namespace fiber
