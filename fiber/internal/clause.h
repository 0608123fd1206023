// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_CLAUSE_H_
#define WEFT_FIBER_INTERNAL_CLAUSE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait.h"
#include "fiber/internal/wait_queue.h"

namespace fiber::internal {

// Clause is one thing that a select may do, or wait for.
//
// Two-sided ones (a channel's) have a lock, under which they can be tried, and need a peer who may himself be in a select.
// One-sided ones are ready or not, whoever looks. select.cc says why the difference matters.
class Clause {
 public:
  virtual ~Clause() = default;

  // At the beginning of each select: what may throw, and must not happen under a lock (the copy of an item).
  virtual void Prepare() {}
  // At its end, before any handler, whatever came of it; also if a Prepare() has thrown, this one's or another's.
  virtual void Release() {}

  // Two-sided: the lock; null: the clause is one-sided.
  virtual StateWord* lock() { return nullptr; }
  // Goes ahead if it can: true, and waiter.clause says how, as Finish() expects. With the lock.
  virtual bool TryLocked(ClaimedWaiters&) { return false; }
  virtual void LinkLocked() {}
  // Takes the waiter out unless a peer has. With the lock.
  virtual void UnlinkLocked() {}

  // One-sided. Whether it is ready. Never blocks, and takes no lock: those of all channels are held.
  virtual bool IsReady() { return false; }
  // Links the waiter. False: it is ready, and nothing is linked. Takes no lock for longer than a few lines.
  [[nodiscard]] virtual bool TryLink(Wait&) { return true; }
  // Takes the waiter out. Not if the clause was what ended the wait.
  virtual void Unlink(Wait&) {}
  // The wait has ended, with this clause (`outcome`, without its number, says how). False: for no good reason: the select
  // looks at everything again. Holding nothing, nothing is linked.
  [[nodiscard]] virtual bool IsOver(uint32_t /*outcome*/) { return true; }
  // A clause that is ready when this has passed.
  virtual Deadline deadline() const { return Deadline::Never(); }

  // It went ahead (`outcome`, without the clause's number, says how): calls the handler. Holding nothing.
  virtual absl::Status Finish(uint32_t outcome) = 0;

  bool is_enabled = true;    // When(false, …)
  bool is_otherwise = false;
  bool is_in_select = false;
  Waiter waiter;             // for one select at a time
};

// Room for what a select of some number of clauses works with.
struct SelectScratch {
  std::span<Clause*> clauses;  // disabled: not looked at
  std::span<uint32_t> order;   // of the same size
  std::span<StateWord*> locks;  // of the same size
};

absl::StatusOr<size_t> RunSelect(const SelectScratch& scratch);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_CLAUSE_H_
