// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_CONTEXT_H_
#define WEFT_FIBER_INTERNAL_CONTEXT_H_

#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {

// Leaves the running fiber (or the thread's own stack) for `to`, which is Ready or New with a stack bound; null: the
// thread's own stack. The next context does `after` for the one that was left. Returns when somebody switches back,
// with the state of the thread it is then on: no other pointer to a ThreadState may be used after that.
//
// C++ exception state goes with the fiber; errno is the caller's to keep. No lock may be held.
ThreadState& Switch(ThreadState& thread, Record* to, After after);

// Binds a stack and wait block to a New fiber: `spare` if it is of the right class, else a free one. False: there is
// none, and the fiber waits in the depot's list until somebody returns one. By a worker.
bool BindStack(ThreadState& thread, Record& fiber, WaitBlock* spare);

// The running fiber yields: Running → Ready, behind the others. Returns at once if there are none.
void YieldFiber();

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_CONTEXT_H_
