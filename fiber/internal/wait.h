// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_WAIT_H_
#define WEFT_FIBER_INTERNAL_WAIT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/record.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
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
  Wait(WaitReason reason, const void* object,
       Interruptible interruptible = Interruptible::kYes);
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;

  // What is looked at before anything is done: kCancelled, then kDeadlineExceeded. Never blocks.
  absl::Status Check(Deadline deadline) const;

  // Opens the wait and returns its first waiter, to be linked by the caller. From here on the wait must be closed by
  // CloseUnclaimed() or by Park().
  Waiter& Open();

  // Gives up: true if nobody had claimed, and nobody will. False: an unpark is on its way, so Park().
  [[nodiscard]] bool CloseUnclaimed();

  // Parks the fiber (blocks the thread) until somebody claims the wait: a peer, the deadline or a cancellation.
  // Returns the clause that was claimed, or one of the outcomes above.
  uint32_t Park(Deadline deadline);

  // The status for an outcome that is no clause's.
  absl::Status StatusOf(uint32_t outcome) const;

  WaitBlock& block() const { return *block_; }
  bool is_fiber() const { return fiber_ != nullptr; }

 private:
  void ParkFiber();
  void BlockThread(int64_t deadline_ns);

  Record* fiber_;  // null: a plain thread
  WaitBlock* block_;
  const Interruptible interruptible_;
  uint64_t open_word_ = 0;
};

// Whether `fiber` or its whole scheduler has been cancelled.
bool IsCancelled(const Record& fiber);
// kCancelled with the cause's message if `fiber` or its whole scheduler has been cancelled, else OK.
absl::Status CancelStatus(const Record& fiber);

// Claims the wait that fiber `id` is in, if it is in one that may be cancelled. For a canceller, after it has stored
// what makes CancelStatus() fail. The record may have been freed and used again: only a wait of the fiber meant is
// claimed. Any thread.
//
// order: cancel — store-load. Canceller: store the cause, load the wait word. Fiber: open the wait, load the cause.
// One of them sees the other.
void ClaimForCancel(Record& fiber, uint64_t id);

// Cancels a fiber whose record the caller keeps from being freed: its parking calls fail from now on. The first cause
// stays. Any thread.
void Cancel(Record& fiber, const absl::Status& cause);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_WAIT_H_
