// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_FORK_H_
#define WEFT_FIBER_INTERNAL_FORK_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"

// A child of fork() has one thread, the one that called it, and a copy of everything else in whatever state other threads
// were just then leaving it. A static of a function that another thread was making then, it would wait for for ever: so what
// a process has one of is made before main(), by a variable beside it, or with OnceInAProcess().
namespace fiber::internal {

// From now on fork() takes `lock`, which is never destroyed, so that the child finds it free, and what it protects in order.
// REQUIRES: nobody holds it while taking another such lock.
void HoldAcrossForks(SpinLock& lock);

// From now on every child calls `function` first, once the locks are free.
void CallInForkedChildren(void (*function)());

// Counts the forks between the process that is asked and the first of its line; those before anybody called one of these
// do not count.
uint64_t ForkGeneration();

// Calls `function`, which calls nothing of this file, unless it has been: fork() waits for it. `is_done` is false at first.
void OnceInAProcess(Atomic<bool>& is_done, absl::FunctionRef<void()> function);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_FORK_H_
