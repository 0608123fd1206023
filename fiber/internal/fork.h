// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_FORK_H_
#define WEFT_FIBER_INTERNAL_FORK_H_

#include <cstdint>

#include "fiber/internal/spin_lock.h"

// A child of fork() has one thread, the one that called it, and a copy of everything else in whatever state other threads
// were just then leaving it.
namespace fiber::internal {

// From now on fork() takes `lock`, which is never destroyed, so that the child finds it free, and what it protects in order.
// REQUIRES: nobody holds it while taking another such lock.
void HoldAcrossForks(SpinLock& lock);

// From now on every child calls `function` first, once the locks are free.
void CallInForkedChildren(void (*function)());

// Counts the forks between the process that is asked and the first of its line; those before anybody called one of these
// do not count.
uint64_t ForkGeneration();

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_FORK_H_
