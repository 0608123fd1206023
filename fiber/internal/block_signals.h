// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_BLOCK_SIGNALS_H_
#define WEFT_FIBER_INTERNAL_BLOCK_SIGNALS_H_

#include <signal.h>

namespace fiber::internal {

// The signal mask of the calling thread; of one of ours, that of the thread of the program's which all this began with: our
// threads start others, and those are not to take the mask of ours for the program's.
sigset_t ProgramSignals();

// Signals meant for the process go to threads that are not ours; faults are the thread's own, SIGPROF a profiler's. For
// threads that we start, first of all, whoever started it. `program`: what ProgramSignals() was to who wanted it started, and
// is to this thread from here on; it stays where it is until LeaveSignalsBlocked().
void BlockSignals(const sigset_t& program);

// The thread ends.
void LeaveSignalsBlocked();

// In a child of fork() that has the calling thread: if it is one of ours, it is one of the program's from here on, whatever the
// child then executes.
void UnblockSignalsInFork();

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_BLOCK_SIGNALS_H_
