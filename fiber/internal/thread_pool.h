// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_THREAD_POOL_H_
#define WEFT_FIBER_INTERNAL_THREAD_POOL_H_

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/pooled_call.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {

// ThreadPool is the threads of the process that make calls which hold up a thread. They are plain threads with stacks of the
// default size; the first is started when one is wanted, one that nobody wants for a while ends.
//
// Rejected: a semaphore before the queue, so that never more calls are there than threads may be. It would be a second wait
// for each call, and not hold where the kernel has fewer threads to give than the bound.
//
//   who wants a call made                           a thread
//   lock                                            lock
//   a thread is idle: hand it the call              the queue's first, if there is one
//   else: to the end of the queue; threads may        else: idle, the last to become so goes first
//     be started: count one more                    unlock
//   unlock                                          set the event of the one before   ← last touch
//   wake that thread, or start one                  none: sleep; woken with a call, or with none: end
//   wait for the call's event                         too long idle, and no call came: lock, unlink, end
//   gave up: lock                                   make the call; again
//     queued still: take it out
//     taken: abandon it, or wait on
//   unlock
//
// Thread safety: any fiber, any thread. A child of fork() has a pool without threads and calls.
class ThreadPool {
 public:
  static constexpr int kDefaultMaxThreads = 64;
  static constexpr int64_t kDefaultIdleNs = 2'000'000'000;  // then a thread ends

  static ThreadPool& Get();

  // Has `call` made, and waits until it is. OK: it was. kDeadlineExceeded, kCancelled, kResourceExhausted (there is no memory
  // for the timer): the wait ended before; if `call` is null then, it is being made and goes when that is done, else it never
  // will be. kResourceExhausted: no thread can be had, and it never will be. Parks the fiber; blocks the thread when called
  // from a plain one.
  absl::Status Run(std::unique_ptr<PooledCall>& call, Deadline deadline);
  // The same, but the wait does not end while the call is being made: afterwards nobody but the caller refers to it.
  absl::Status RunToEnd(PooledCall& call, Deadline deadline);
  // The same, whoever is cancelled and however late it is. Only kResourceExhausted: no thread can be had, or all were still in other
  // calls when `patience` was over; it was not made.
  absl::Status RunRegardless(PooledCall& call, Deadline patience);

  // From now on there are at most `most` threads; those above it end when they have made their call. Never blocks.
  // REQUIRES: most >= 1
  void SetMaxThreads(int most);

  // Ends the idle threads. Blocks the thread until they are gone.
  void EndIdle();

  // For tests: the threads that there are, making calls or idle; how long they stay idle.
  int threads();
  void SetIdleNs(int64_t ns) { idle_ns_.store(ns, std::memory_order_relaxed); }

 private:
  enum class GaveUp : uint8_t { kBeforeItWasMade, kWhileItIsMade, kTooLate };
  // One of the threads, on its own stack.
  struct Thread {
    Atomic<uint32_t> signal{0};  // 1: `call` is there, or it is to end. order: pool-signal
    PooledCall* call = nullptr;  // written before the signal
    Thread* next_idle = nullptr;  // guarded by lock_
    pthread_t id{};
    bool is_joined = false;      // by who has it end; written before the signal
    sigset_t programs_signals{};
  };

  // What a new thread is given.
  struct Birth {
    ThreadPool* pool;
    std::unique_ptr<ThreadState> state;
  };

  ThreadPool();
  static void RestartInFork();
  static void* Entry(void* birth);

  void Submit(PooledCall& call);
  absl::Status Await(PooledCall& call, Deadline deadline, bool may_abandon, bool* is_abandoned);
  // Whoever waits is not interrupted any more.
  absl::Status AwaitDone(PooledCall& call);
  GaveUp GiveUp(PooledCall& call, bool may_abandon);

  // A thread that was counted already.
  void Start();
  void ServeAs(Thread& self);
  // What `self` makes next, once it has made `made` (null: it is new); null: it is to sleep, and is idle.
  PooledCall* TakeNext(Thread& self, PooledCall* made);
  // Until it is given a call; null: it is to end.
  PooledCall* Sleep(Thread& self);
  void Wake(Thread& thread);

  void PushLocked(PooledCall& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void RemoveLocked(PooledCall& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Takes `thread` out. False: it is not idle any more.
  bool TakeIdleLocked(Thread& thread) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);

  // Invariant: the queue is empty if a thread is idle, or if there are none at all.
  SpinLock lock_;
  PooledCall* first_ ABSL_GUARDED_BY(lock_) = nullptr;
  PooledCall* last_ ABSL_GUARDED_BY(lock_) = nullptr;
  Thread* idle_ ABSL_GUARDED_BY(lock_) = nullptr;  // the last that became so
  int threads_ ABSL_GUARDED_BY(lock_) = 0;         // those being started too
  int most_ ABSL_GUARDED_BY(lock_) = kDefaultMaxThreads;
  sigset_t programs_signals_ ABSL_GUARDED_BY(lock_){};  // of who last wanted a thread started
  std::atomic<int64_t> idle_ns_{kDefaultIdleNs};
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_THREAD_POOL_H_
