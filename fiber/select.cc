// SPDX-License-Identifier: Apache-2.0
//
// Select: one wait with many clauses, of which exactly one comes true.
//
// Problem. A channel's clause needs a peer, and the peer may be in a select of its own, about to do something else. To pair
// up, both waits have to be won at once, and each may at any moment be won by a deadline, a cancellation or a third party.
//
// Rejected, both with clauses tried and linked one at a time:
//  - Claim oneself, then the peer: the peer may have given up meanwhile. One is claimed, with nothing done.
//  - Claim the peer, then oneself: another clause, linked before, may have been claimed meanwhile. The peer is claimed, and
//    nobody completes its operation.
//
// So, as in Go: while a select looks, it is not visible to anybody (nothing is linked, its wait is not open), and all
// channels it looks at are locked, so that none of them becomes ready behind its back:
//
//   lock all channels, in the order of their addresses
//   try all clauses, in an order drawn anew each time; the first that goes ahead is it: unlock, done
//   else: open the wait, link every channel's waiter
//   unlock
//   link the one-sided clauses; one that is ready by now claims the wait for itself, if nobody has
//   park
//   take out what is still linked: channels under their locks, then the others
//   what ended the wait may say that it was for nothing (a socket's flow was handed over, say): from the start
//
// A peer that finds one of our waiters claims our wait, once, under the lock of its channel, and moves the item (channel.cc).
// One-sided clauses need no peer: whoever makes one ready finds our waiter and claims us, or we find it ready when we link.
//
// Nothing is left behind: before it returns, a select has passed the lock of every queue that could hold one of its waiters,
// but for the one that was claimed: who claimed it took it out. That one's object may be gone already, and is not touched.
//
// Deadlocks: no other code holds two channels' locks, and all selects lock in the same order.
#include "fiber/select.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

constexpr uint32_t kClauseMask = ChannelCore::kClosedOutcome - 1;
constexpr uint32_t kNone = kClauseMask;

class Selection {
 public:
  explicit Selection(const SelectScratch& scratch)
      : clauses_(scratch.clauses), order_(scratch.order), locks_(scratch.locks) {}

  absl::StatusOr<size_t> Run();

 private:
  bool IsOn(uint32_t index) const {
    return clauses_[index]->is_enabled && !clauses_[index]->is_otherwise;
  }
  void Prepare();
  void ReleaseAll();
  void FindEarliest();
  // One look at all, and if none goes ahead one wait. OK: chosen_ and *outcome say what came of it.
  absl::Status LookOnce(uint32_t* outcome);
  // Goes ahead with a clause that can, and notes it as chosen_.
  void Try(ClaimedWaiters& claimed);
  void LinkChannels(const Wait& wait);
  // The outcome of the wait: a clause's, or a failure.
  uint32_t WaitForOne(Wait& wait);
  void LockAll() ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void UnlockAll() ABSL_NO_THREAD_SAFETY_ANALYSIS;

  const std::span<Clause*> clauses_;
  const std::span<uint32_t> order_;
  const std::span<StateWord*> locks_;
  size_t lock_count_ = 0;
  uint32_t chosen_ = kNone;
  uint32_t otherwise_ = kNone;
  uint32_t earliest_ = kNone;  // the clause with the earliest deadline
};

void Selection::Prepare() {
  for (uint32_t i = 0; i < clauses_.size(); ++i) {
    Clause& clause = *clauses_[i];
    if (!clause.is_enabled) continue;
    if (std::exchange(clause.is_in_select, true)) Fatal("a clause is in two Selects at once, or twice in one");
    if (clause.is_otherwise) {
      otherwise_ = i;
      continue;
    }
    clause.waiter.clause = 0;
    clause.Prepare();
    if (StateWord* lock = clause.lock(); lock != nullptr) locks_[lock_count_++] = lock;
  }
  const auto locks = locks_.first(lock_count_);
  std::sort(locks.begin(), locks.end(), std::less<>());
  lock_count_ = static_cast<size_t>(std::unique(locks.begin(), locks.end()) - locks.begin());
  std::iota(order_.begin(), order_.end(), 0u);
}

void Selection::FindEarliest() {
  earliest_ = kNone;
  for (uint32_t i = 0; i < clauses_.size(); ++i) {
    if (!IsOn(i)) continue;
    const Deadline deadline = clauses_[i]->deadline();
    if (!deadline.is_never() &&
        (earliest_ == kNone || deadline < clauses_[earliest_]->deadline())) {
      earliest_ = i;
    }
  }
}

void Selection::LockAll() {
  for (size_t i = 0; i < lock_count_; ++i) locks_[i]->LockNextQueue();
}

void Selection::UnlockAll() {
  for (size_t i = 0; i < lock_count_; ++i) locks_[i]->UnlockQueue(locks_[i]->LockedWord());
}

void Selection::Try(ClaimedWaiters& claimed) {
  // Fisher and Yates' shuffle, as far as it is needed.
  for (size_t i = 0; i < order_.size(); ++i) {
    const size_t left = order_.size() - i;
    if (left > 1) std::swap(order_[i], order_[i + ChooseBelow(static_cast<uint32_t>(left))]);
    const uint32_t index = order_[i];
    if (!IsOn(index)) continue;
    Clause& clause = *clauses_[index];
    if (clause.lock() != nullptr ? clause.TryLocked(claimed) : clause.IsReady()) {
      chosen_ = index;
      return;
    }
  }
}

void Selection::LinkChannels(const Wait& wait) {
  // In the order drawn, or of two clauses on one channel a peer would always find the same first.
  for (const uint32_t i : order_) {
    if (!IsOn(i)) continue;
    wait.AddClause(clauses_[i]->waiter, i);
    if (clauses_[i]->lock() != nullptr) clauses_[i]->LinkLocked();
  }
}

uint32_t Selection::WaitForOne(Wait& wait) {
  const Deadline deadline =
      earliest_ == kNone ? Deadline::Never() : clauses_[earliest_]->deadline();
  uint32_t linked = 0;  // the one-sided clauses before this one
  uint32_t outcome = kNone;
  for (; linked < clauses_.size(); ++linked) {
    if (!IsOn(linked) || clauses_[linked]->lock() != nullptr || clauses_[linked]->TryLink(wait)) continue;
    if (wait.CloseUnclaimed()) outcome = linked;
    break;
  }
  if (outcome == kNone) outcome = wait.Park(deadline);
  const uint32_t claimed = IsFailure(outcome) ? kNone : outcome & kClauseMask;
  for (uint32_t i = 0; i < linked; ++i) {
    if (IsOn(i) && clauses_[i]->lock() == nullptr && i != claimed) clauses_[i]->Unlink(wait);
  }
  // The channel that was claimed may be gone; others are locked for those that are still linked there.
  for (uint32_t i = 0; i < clauses_.size(); ++i) {
    if (!IsOn(i) || i == claimed) continue;
    if (StateWord* lock = clauses_[i]->lock(); lock != nullptr) {
      lock->LockNextQueue();
      clauses_[i]->UnlinkLocked();
      lock->UnlockQueue(lock->LockedWord());
    }
  }
  const bool is_clauses = outcome == kOutcomeDeadline && earliest_ != kNone && !wait.IsBoundBefore(deadline);
  return is_clauses ? earliest_ : outcome;
}

absl::Status Selection::LookOnce(uint32_t* outcome) {
  Wait wait(WaitReason::kSelect, nullptr);
  // With an Otherwise it never blocks: then a failure must not count as a turn either.
  if (absl::Status status = otherwise_ == kNone ? wait.Check(Deadline::Never()) : CallerStatus(); !status.ok()) return status;
  FindEarliest();
  ClaimedWaiters claimed;
  *outcome = 0;
  LockAll();
  Try(claimed);
  if (chosen_ != kNone) {
    if (clauses_[chosen_]->lock() != nullptr) *outcome = clauses_[chosen_]->waiter.clause;
    UnlockAll();
    claimed.Unpark();
    if (otherwise_ == kNone) wait.SpendTurn();  // with one it never blocks
    return absl::OkStatus();
  }
  if (otherwise_ != kNone) {
    UnlockAll();
    chosen_ = otherwise_;
    return absl::OkStatus();
  }
  wait.Open();
  LinkChannels(wait);
  UnlockAll();
  const uint32_t ended = WaitForOne(wait);
  if (IsFailure(ended)) return wait.StatusOf(ended);
  chosen_ = ended & kClauseMask;
  *outcome = ended & ~kClauseMask;
  return absl::OkStatus();
}

void Selection::ReleaseAll() {
  for (uint32_t i = 0; i < clauses_.size(); ++i) {
    clauses_[i]->is_in_select = false;
    if (IsOn(i)) clauses_[i]->Release();
  }
}

absl::StatusOr<size_t> Selection::Run() {
  uint32_t outcome = 0;
  absl::Status status;
  try {
    Prepare();
    do {
      chosen_ = kNone;
      status = LookOnce(&outcome);
    } while (status.ok() && !clauses_[chosen_]->IsOver(outcome));
  } catch (...) {  // nothing is linked any more where that may come from
    ReleaseAll();
    throw;
  }
  ReleaseAll();
  if (status.ok()) status = clauses_[chosen_]->Finish(outcome);
  if (!status.ok()) return status;
  return chosen_;
}

}  // namespace

absl::StatusOr<size_t> RunSelect(const SelectScratch& scratch) { return Selection(scratch).Run(); }

}  // namespace fiber::internal
