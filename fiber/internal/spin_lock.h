// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_SPIN_LOCK_H_
#define WEFT_FIBER_INTERNAL_SPIN_LOCK_H_

#include <sched.h>

#include <cstdint>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/atomic.h"

namespace fiber::internal {

// Backoff paces a spin loop: it waits on the core for a while, then lets the kernel run somebody else,
// since the holder of a lock may have lost its CPU.
class Backoff {
 public:
  void Pause() {
    if (rounds_ < kSpins) {
      ++rounds_;
      CpuRelax();
    } else {
      sched_yield();
    }
  }
  // Each time twice as long as the last, up to a limit.
  void PauseLonger() {
    Pause();
    for (int i = 1; i < length_ && rounds_ < kSpins; ++i) Pause();
    if (length_ < kLongest) length_ *= 2;
  }
  // Where the loop looks at many words, and any of them may end it.
  void PauseForAny() {
#ifdef WEFT_MODEL
    ModelGiveWay();
#else
    Pause();
#endif
  }

 private:
  static constexpr int kSpins = 128;
  static constexpr int kShortest = kIsModel ? 1 : 8;
  static constexpr int kLongest = kIsModel ? 1 : 64;
  int rounds_ = 0;
  int length_ = kShortest;
};

// SpinLock protects a few lines that neither park nor call user code that could.
//
// It is held across no switch. Unlock is the holder's last touch of whatever contains it.
// order: lock — acquire on taking, release on giving up.
class ABSL_LOCKABLE SpinLock {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    if (held_.exchange(1, std::memory_order_acquire) == 0) return;
    Backoff backoff;
    do {
      while (held_.load(std::memory_order_relaxed) != 0) backoff.Pause();
    } while (held_.exchange(1, std::memory_order_acquire) != 0);
  }
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    return held_.load(std::memory_order_relaxed) == 0 &&
           held_.exchange(1, std::memory_order_acquire) == 0;
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() { held_.store(0, std::memory_order_release); }

 private:
  Atomic<uint32_t> held_{0};
};

// A lock that threads hold across system calls; never across a switch.
#ifdef WEFT_MODEL
class BlockingMutex {
 public:
  void lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { lock_.Lock(); }
  void unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { lock_.Unlock(); }

 private:
  SpinLock lock_;
};
#else
using BlockingMutex = std::mutex;
#endif

class ABSL_SCOPED_LOCKABLE SpinLockHolder {
 public:
  explicit SpinLockHolder(SpinLock& lock) ABSL_EXCLUSIVE_LOCK_FUNCTION(lock) : lock_(lock) {
    lock_.Lock();
  }
  ~SpinLockHolder() ABSL_UNLOCK_FUNCTION() { lock_.Unlock(); }
  SpinLockHolder(const SpinLockHolder&) = delete;
  SpinLockHolder& operator=(const SpinLockHolder&) = delete;

 private:
  SpinLock& lock_;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_SPIN_LOCK_H_
