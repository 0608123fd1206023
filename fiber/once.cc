// SPDX-License-Identifier: Apache-2.0
//
//   who comes                                    whose turn it is
//   sees kDone: returns                          runs the function, without any lock
//   else: lock the queue                         lock the queue
//     kDone there: unlock, return                  it returned: claim all who wait, store kDone
//     not kRunning: store kRunning, its turn       it threw: claim the first, whose turn it is:
//     else link, unlock, park                        kRunning stays; nobody waits: store 0
//   claimed with kItIsDone: returns, without     the store unlocks           ← last touch
//     touching it; with kYourTurn: its turn      unpark the claimed
//
// A turn is handed over, and does not come free: so nobody is woken only to wait again, and those
// who wait try in the order of their coming. Nobody gives up, so whoever is first can be claimed.
#include "fiber/once.h"

#include "fiber/internal/wait.h"

namespace fiber {

using internal::ClaimedWaiters;
using internal::StateWord;

namespace {

// Outcomes of a waiter's wait.
constexpr uint32_t kItIsDone = 0;
constexpr uint32_t kYourTurn = 1;

}  // namespace

bool Once::Begin() {
  internal::Wait wait(WaitReason::kOnce, this, internal::Interruptible::kNo);
  const uint64_t word = word_.LockQueue();
  if ((word & kDone) != 0) {
    word_.UnlockQueue(word);
    return false;
  }
  if ((word & kRunning) == 0) {
    runner_ = &wait.block();
    word_.UnlockQueue(kRunning);
    return true;
  }
  if (internal::IsCallers(runner_)) DieRecursive();
  waiters_.PushBack(wait.Open());
  word_.UnlockQueue(word | StateWord::kHasWaiters);
  return wait.Park(Deadline::Never()) == kYourTurn;
}

void Once::End(bool is_done) {
  ClaimedWaiters claimed;
  word_.LockQueue();
  runner_ = nullptr;
  if (is_done) {
    while (internal::Waiter* first = waiters_.first()) claimed.Claim(waiters_, *first, kItIsDone);
    word_.UnlockQueue(kDone);
  } else if (internal::Waiter* first = waiters_.first(); first != nullptr) {
    runner_ = first->block;
    claimed.Claim(waiters_, *first, kYourTurn);
    word_.UnlockQueue(waiters_.is_empty() ? kRunning : kRunning | StateWord::kHasWaiters);
  } else {
    word_.UnlockQueue(0);
  }
  claimed.Unpark();
}

void Once::DieRecursive() const {
  internal::Fatal("fiber::Once %p: Do() by the function that it runs, which would wait for itself",
                  static_cast<const void*>(this));
}

void Once::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t count = waiters_.size();
  word_.UnlockQueue(word);
  internal::Fatal("fiber::Once %p was destroyed while %zu waited for it", static_cast<void*>(this),
                  count);
}

}  // namespace fiber
