// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/block_signals.h"

#include <pthread.h>

#include <initializer_list>

namespace fiber::internal {
namespace {

// Null: not one of ours. In functions that are not inlined: a fiber that parks may come back on another thread.
constinit thread_local const sigset_t* programs = nullptr;

}  // namespace

__attribute__((noinline)) sigset_t ProgramSignals() {
  if (programs != nullptr) return *programs;
  sigset_t mine;
  pthread_sigmask(SIG_BLOCK, nullptr, &mine);  // cannot fail with these arguments
  return mine;
}

__attribute__((noinline)) void BlockSignals(const sigset_t& program) {
  programs = &program;
  sigset_t signals;
  sigfillset(&signals);
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT, SIGPROF}) {
    if (sigismember(&program, signal) == 0) sigdelset(&signals, signal);
  }
  pthread_sigmask(SIG_SETMASK, &signals, nullptr);  // cannot fail with these arguments
}

__attribute__((noinline)) void LeaveSignalsBlocked() { programs = nullptr; }

__attribute__((noinline)) void UnblockSignalsInFork() {
  if (programs == nullptr) return;
  pthread_sigmask(SIG_SETMASK, programs, nullptr);  // cannot fail with these arguments
  programs = nullptr;
}

}  // namespace fiber::internal
