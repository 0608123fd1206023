// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/fork.h"

#include <pthread.h>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/block_signals.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

// Things that want to know of forks: a few, for ever.
template <class T>
struct Few {
  static constexpr int kMost = 16;
  T all[kMost] = {};
  int count = 0;
  void Add(T one) {
    if (count == kMost) Fatal("more than %d things to do at a fork", kMost);
    all[count++] = one;
  }
};

// Used before main(), by initialisers of other files.
constinit SpinLock few_lock;
constinit Few<SpinLock*> locks ABSL_GUARDED_BY(few_lock);
constinit Few<void (*)()> functions ABSL_GUARDED_BY(few_lock);
constinit Atomic<uint64_t> generation{0};

void Prepare() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  few_lock.Lock();
  for (int i = 0; i < locks.count; ++i) locks.all[i]->Lock();
}

void InParent() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  for (int i = 0; i < locks.count; ++i) locks.all[i]->Unlock();
  few_lock.Unlock();
}

void InChild() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  generation.fetch_add(1, std::memory_order_relaxed);
  InParent();
  UnblockSignalsInFork();
  for (int i = 0; i < functions.count; ++i) functions.all[i]();
}

// Not under a lock of ours: a fork that is under way holds the C library's while it waits for it.
void Watch() {
  static const int error = pthread_atfork(&Prepare, &InParent, &InChild);
  if (error != 0) Fatal("pthread_atfork: error %d", error);
}

}  // namespace

void HoldAcrossForks(SpinLock& lock) {
  Watch();
  SpinLockHolder hold(few_lock);
  locks.Add(&lock);
}

void CallInForkedChildren(void (*function)()) {
  Watch();
  SpinLockHolder hold(few_lock);
  functions.Add(function);
}

void OnceInAProcess(Atomic<bool>& is_done, absl::FunctionRef<void()> function) {
  if (is_done.load(std::memory_order_acquire)) return;  // order: publish
  Watch();
  SpinLockHolder hold(few_lock);
  if (is_done.load(std::memory_order_relaxed)) return;
  function();
  is_done.store(true, std::memory_order_release);  // order: publish
}

uint64_t ForkGeneration() {
  Watch();
  return generation.load(std::memory_order_relaxed);
}

}  // namespace fiber::internal
