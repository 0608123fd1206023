// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_WAIT_H_
#define WEFT_FIBER_INTERNAL_WAIT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/ambient.h"
#include "fiber/internal/record.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "fiber/scheduler.h"
#include "fiber/wait_reason.h"

namespace fiber::internal {

// Outcomes of a wait that are no clause's.
inline constexpr uint32_t kOutcomeDeadline = UINT32_MAX;
inline constexpr uint32_t kOutcomeCancelled = UINT32_MAX - 1;
inline constexpr uint32_t kOutcomeNoTimer = UINT32_MAX - 2;  // no memory for the timer of its deadline
// Whether nobody completed the wait.
inline constexpr bool IsFailure(uint32_t outcome) { return outcome >= kOutcomeNoTimer; }

// Whether cancellation ends a wait. A lock that cannot fail is not interruptible.
enum class Interruptible : bool { kNo, kYes };

// Wait is one wait of the running fiber or thread.
//
//   To wait                                         To complete somebody's wait
//   Wait wait(reason, this);                        lock
//   status = wait.Check(deadline) → return it       waiter = queue's first
//   lock                                            if waiter.TryClaim(): write waiter.value,
//   if it can go ahead: unlock, return                 block.outcome; unlink; note it
//   link wait.Open()                                unlock                 ← last touch of the object
//   unlock                                          Unpark(*waiter.block) for each noted
//   outcome = wait.Park(deadline)
//   not claimed by a peer: lock, unlink, unlock
//
// A waiter is claimed under its queue's lock, and whoever waited passes that lock before its block is used again
// unless a peer claimed it: so a claimer never touches a waiter of a later wait. The object may be destroyed as soon
// as the wait returns, so the lock is the claimer's last touch and the unpark comes after.
class Wait {
 public:
  Wait(WaitReason reason, const void* object, Interruptible interruptible = Interruptible::kYes)
      : thread_(ThisThread()),
        fiber_(thread_.current),
        interruptible_(interruptible),
        reason_(reason),
        object_(object) {
    if (fiber_ != nullptr) [[likely]] {
      SchedulePoint();
      block_ = fiber_->block.load(std::memory_order_relaxed);
    } else {
      block_ = &BlockOf(thread_);
    }
  }
  // Until Open(): a call that goes through at once has its wait in registers, and hands it on when it has to park.
  Wait(Wait&&) = default;
  Wait& operator=(const Wait&) = delete;

  // What is looked at before anything is done: kCancelled, then kDeadlineExceeded, of the earlier of `deadline` and the
  // ambient one. One that fails counts as SpendTurn does, so the caller holds no lock of ours, and returns.
  absl::Status Check(Deadline deadline) const {
    return deadline.is_never() && !IsBounded() ? absl::OkStatus()
                                                : CheckBounds(*block_, interruptible_, deadline);
  }

  // What is waited for went ahead at once: counts that, as SpendTurn does, and yields after kTurn. Instead of Open(), holding
  // no lock of ours.
  void SpendTurn() const {
    if (--thread_.turn_left <= 0) [[unlikely]] EndTurn();
  }

  // Opens the wait and returns its first waiter, to be linked by the caller. From here on the wait must be closed by
  // CloseUnclaimed() or by Park().
  Waiter& Open();
  // Makes `waiter` another clause of the open wait, to be linked by the caller. It is the caller's until the wait is over.
  void AddClause(Waiter& waiter, uint32_t clause) const;

  // Gives up: true if nobody had claimed, and nobody will. False: an unpark is on its way, so Park().
  [[nodiscard]] bool CloseUnclaimed();

  // Parks the fiber (blocks the thread) until somebody claims the wait: a peer, the earlier of `deadline` and the ambient
  // one, or a cancellation.
  // Returns the clause that was claimed, or one of the outcomes above.
  uint32_t Park(Deadline deadline);

  // The status for an outcome that is no clause's.
  absl::Status StatusOf(uint32_t outcome) const;

  WaitBlock& block() const { return *block_; }
  bool is_fiber() const { return fiber_ != nullptr; }
  // Whether the ambient deadline comes before `deadline`.
  bool IsBoundBefore(Deadline deadline) const {
    return interruptible_ == Interruptible::kYes && block_->ambient != nullptr &&
           block_->ambient->deadline_ns < deadline.nanos();
  }

 private:
  // Whether anything but a call's own deadline could end it.
  bool IsBounded() const {
    return interruptible_ == Interruptible::kYes &&
           (block_->ambient != nullptr || block_->node != nullptr ||
            (fiber_ != nullptr &&
             (fiber_->cancel.load(std::memory_order_seq_cst) != nullptr ||  // order: cancel
              fiber_->scheduler->is_cancelled())));
  }
  // Static, as what follows, so that nobody else refers to a Wait before Open().
  static absl::Status CheckBounds(const WaitBlock& block, Interruptible interruptible,
                                  Deadline deadline);
  static WaitBlock& BlockOf(ThreadState& thread);
  static void EndTurn();
  void ParkFiber();
  void BlockThread(int64_t deadline_ns);

  ThreadState& thread_;  // until Open(): a fiber that has parked may be on another
  Record* const fiber_;  // null: a plain thread
  WaitBlock* block_;
  const Interruptible interruptible_;
  const WaitReason reason_;
  const void* const object_;
  uint64_t open_word_ = 0;
};

// Whether the running fiber or thread, whose block it is, is cancelled: it is under a node that is, or, unless it is
// shielded, the fiber itself or its whole scheduler is.
bool IsCancelled(const WaitBlock& mine);
// What is seen of a cancellation: kCancelled with the cause's message, or the cause if it is that a deadline has passed. So
// whoever shares a deadline with the one that cancels it for that is told the same, whichever of them was first.
absl::Status SeenOf(const absl::Status& cause);
// A kCancelled that allocates nothing, since it says nothing more.
inline absl::Status CancelledWithoutMemory() { return absl::Status(absl::StatusCode::kCancelled, ""); }
// For destructors, which a std::bad_alloc may be passing through: with `why`, if there is memory to say it.
absl::Status CancelledFor(const char* why) noexcept;
// For Record::cancel: a copy; without memory for it, a kCancelled without a message, which FreeCause() leaves alone.
const absl::Status* NewCause(const absl::Status& cause);
void FreeCause(const absl::Status* cause);
// That if so, else OK.
absl::Status CancelStatus(const WaitBlock& mine);
// What every call that may park looks at first, for those that have no Wait yet: as Wait::Check.
absl::Status CheckCaller(Deadline deadline);
// Whether such a call would fail whatever its own deadline. Never blocks.
absl::Status CallerStatus();

// Claims the wait of the fiber (thread) that has `block`, if it may be cancelled and its owner is behind no more than
// `shields` shields. True: the caller unparks it. For a canceller, after it has stored what makes IsCancelled() true.
[[nodiscard]] bool TryClaimForCancel(WaitBlock& block, uint32_t shields);

// The same for fiber `id`, if it is not shielded, and unparks it. The record may have been freed and used again: only a wait
// of the fiber meant is claimed. Any thread.
//
// order: cancel — store-load. Canceller: store the cause, load the wait word. Fiber: open the wait, load the cause.
// One of them sees the other.
void ClaimForCancel(Record& fiber, uint64_t id);

// Whether `block` was CallersBlock() somewhere further up the caller's stack, which may be in a Blocking() of that fiber's now.
// Null is nobody's.
bool IsCallers(const void* block);

// Cancels a fiber whose record the caller keeps from being freed: its parking calls fail from now on, and the scopes it has
// open are cancelled. The first cause stays. Any thread.
void Cancel(Record& fiber, const absl::Status& cause);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_WAIT_H_
