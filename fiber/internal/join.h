// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_JOIN_H_
#define WEFT_FIBER_INTERNAL_JOIN_H_

#include <cstdint>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"

namespace fiber::internal {

// The end of a fiber, as seen by its handle: one word, `Record::join`.
//
// | word          | meaning                          | next, by whom                                              |
// |---------------|----------------------------------|------------------------------------------------------------|
// | 0             | runs; its handle is not waiting  | waiter, Detached: the handle; Done: the fiber              |
// | waiter        | runs; its handle waits           | 0: the handle, unlinking; waiter+Locked: the fiber         |
// | waiter+Locked | the fiber claims the waiter      | Done: the fiber                                            |
// | Detached      | runs; there is no handle         | the fiber frees the record at its end                      |
// | Done          | ended; the outcome is in storage | the handle frees the record                                |
//
// The store of Done is the fiber's last touch of its record; the unpark comes after and touches the waiter's block.
// A handle that gives up takes its waiter out first, and waits out Locked: no stale waiter is ever claimed.
//
// order: join — release by the fiber with Done, acquire by the handle: the outcome travels with it.
inline constexpr uintptr_t kJoinDone = 1;
inline constexpr uintptr_t kJoinLocked = 2;
inline constexpr uintptr_t kJoinDetached = 4;

// Destroys the outcome of a fiber that has ended if its handle was given up, as far as is known. By the fiber itself,
// while it can park.
void DiscardIfDetached(Record& fiber);

// The fiber has ended. True: its record may be gone. False: its handle was given up meanwhile, and the outcome is to be
// discarded first. By a worker.
[[nodiscard]] bool FinishJoin(ThreadState& thread, Record& fiber);

// Never blocks.
inline bool IsDone(const Record& fiber) {
  return fiber.join.load(std::memory_order_acquire) == kJoinDone;  // order: join
}

// Links a waiter of the handle's. False: the fiber has ended. REQUIRES: nobody else joins it, which ends the process.
[[nodiscard]] bool TryLinkJoin(Record& fiber, Waiter& waiter);
// Takes it out again, if the fiber has not claimed it. False: the fiber has ended.
bool UnlinkJoin(Record& fiber, Waiter& waiter);

// Parks until the fiber has ended: OK; or kDeadlineExceeded, kCancelled.
absl::Status WaitDone(Record& fiber, Deadline deadline,
                      Interruptible interruptible = Interruptible::kYes);

// Gives the handle up. True: the fiber has ended, and the caller destroys the outcome and frees the record.
[[nodiscard]] bool Detach(Record& fiber);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_JOIN_H_
