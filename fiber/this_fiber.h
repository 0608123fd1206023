// SPDX-License-Identifier: Apache-2.0
//
// The fiber that is running.
#ifndef WEFT_FIBER_THIS_FIBER_H_
#define WEFT_FIBER_THIS_FIBER_H_

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "fiber/deadline.h"

namespace fiber {

// FiberId names a fiber for the life of the process. Zero: none.
using FiberId = uint64_t;

// Waits until `deadline`. Parks the fiber; blocks the thread when called from a plain one. OK when the time has come,
// at once if it is past; kCancelled if the fiber was cancelled; kDeadlineExceeded if the ambient deadline came first.
//
//   if (absl::Status status = fiber::Sleep(absl::Milliseconds(20)); !status.ok()) return status;
absl::Status Sleep(Deadline deadline);

// Lets others run first: the fibers of this worker that are ready to go on, or else one that it has not started yet. Stays
// runnable, and may go on on another thread; returns at once if there are none. From a plain thread: sched_yield. Never blocks.
void Yield();

// For long computations: as Yield(), if this fiber has had its worker to itself for some milliseconds and others wait for it;
// else next to nothing: two loads behind a virtual call. Does not look whether the fiber is cancelled: see CheckCancelled().
// The fiber may go on on another thread. In a simulation every call yields. Nothing on a plain thread. Never blocks.
//
//   for (const Row& row : rows) {
//     Digest(row);
//     fiber::MaybeYield();
//   }
void MaybeYield();

// What every call that parks looks at first: kCancelled if this fiber was cancelled, with the cause's message;
// kDeadlineExceeded if the ambient deadline has passed; else OK. For long computations. Never blocks.
absl::Status CheckCancelled();

// The ambient deadline, which bounds every call that parks and may fail: that of the innermost DeadlineScope, Scope or
// CancelShield, or of what this fiber was started in. Never blocks.
Deadline CurrentDeadline();

// The running fiber's id; zero on a plain thread. Never blocks.
FiberId CurrentId();

// The running fiber's name; empty if it has none, or on a plain thread. Valid until the name is set anew or the fiber
// ends. Never blocks.
std::string_view CurrentName();

// Names the running fiber, for messages and dumps. No effect on a plain thread. Throws std::bad_alloc. Never
// blocks.
void SetCurrentName(std::string_view name);

}  // namespace fiber

#endif  // WEFT_FIBER_THIS_FIBER_H_
