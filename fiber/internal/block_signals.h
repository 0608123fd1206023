// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_BLOCK_SIGNALS_H_
#define WEFT_FIBER_INTERNAL_BLOCK_SIGNALS_H_

#include <pthread.h>
#include <signal.h>

namespace fiber::internal {

// Signals meant for the process go to threads that are not ours; faults are the thread's own, SIGPROF a profiler's. For
// threads that we start, first of all.
inline void BlockSignals(sigset_t* before) {
  sigset_t signals;
  sigfillset(&signals);
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF}) {
    sigdelset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, before);  // cannot fail with these arguments
}

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_BLOCK_SIGNALS_H_
