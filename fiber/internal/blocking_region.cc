// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/blocking_region.h"

#include <errno.h>

#include "fiber/internal/context.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/park.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"

namespace fiber::internal {
namespace {

// The thread stops being a worker, and is one again.
void SetAside(ThreadState& thread, Scheduler& scheduler) {
  scheduler.BeginBlocking(thread);
  thread.set_aside = thread.worker;
  thread.worker = nullptr;
}
void TakeUp(ThreadState& thread, Scheduler& scheduler) {
  thread.worker = thread.set_aside;
  thread.set_aside = nullptr;
  scheduler.EndBlocking(thread);
}

}  // namespace

BlockingRegion::BlockingRegion() {
  {
    const ThreadState& thread = ThisThread();
    if (thread.current == nullptr || thread.scheduler->is_simulation()) return;
  }
  SpendTurn();  // where no other thread can be had, one call after the other would keep out everybody
  Begin();
}

// A function of its own, since SpendTurn() may come back on another thread, whose errno is elsewhere.
__attribute__((noinline)) void BlockingRegion::Begin() {
  const int saved_errno = errno;
  ThreadState& thread = ThisThread();
  fiber_ = thread.current;
  scheduler_ = thread.scheduler;
  fork_generation_ = ForkGeneration();
  // A bound fiber's thread is no worker already.
  if (!fiber_->is_bound()) SetAside(thread, *scheduler_);
  thread.current = nullptr;
  thread.scheduler = nullptr;
  thread.blocks_for = scheduler_;
  thread.blocked_fiber = fiber_;
  errno = saved_errno;
}

BlockingRegion::~BlockingRegion() {
  if (fiber_ == nullptr) return;
  // In a child of fork() it is a plain thread from there on: the rest of the runtime is not there.
  if (fork_generation_ != ForkGeneration()) return;
  const int saved_errno = errno;
  ThreadState& thread = ThisThread();
  if (thread.plain_block != nullptr) DropValues(*thread.plain_block);  // another fiber's call here is not to find them
  thread.blocks_for = nullptr;
  thread.blocked_fiber = nullptr;
  thread.scheduler = scheduler_;
  thread.current = fiber_;
  if (!fiber_->is_bound()) TakeUp(thread, *scheduler_);
  errno = saved_errno;
}

BoundRegion::BoundRegion() {
  ThreadState& thread = ThisThread();
  fiber_ = thread.current;
  if (fiber_ == nullptr || thread.scheduler->is_simulation() || fiber_->is_bound()) {
    fiber_ = nullptr;
    return;
  }
  const int saved_errno = errno;
  SetAside(thread, *thread.scheduler);
  fiber_->flags |= Record::kFlagBound;
  fiber_->set_blocker(false);  // it holds up nobody
  errno = saved_errno;
}

BoundRegion::~BoundRegion() {
  if (fiber_ == nullptr) return;
  ThreadState& thread = ThisThread();
  if (thread.current != fiber_) return;  // in a child of fork()
  const int saved_errno = errno;
  fiber_->flags &= ~Record::kFlagBound;
  TakeUp(thread, *thread.scheduler);
  errno = saved_errno;
}

// The transitions are those of park.h; what the next context does after the switch elsewhere, the fiber does itself here,
// since it stays on its stack, which is in use while it is Parked: who holds it may not touch that (trimmer.cc).
//
// Its deadline is its thread's to keep: there may be no other to expire timers. The thread then unparks the fiber as anyone would,
// since somebody may hold it, who rings when he is done.
//
// order: thread-signal — release by the unparker, acquire by the thread. The store of zero comes before the CAS that lets
// anybody find the fiber Parked.
void ParkBound(Record& self) {
  WaitBlock& block = *self.block.load(std::memory_order_relaxed);
  const int saved_errno = errno;
  block.signal.store(0, std::memory_order_relaxed);
  if (FinishPark(self)) {
    int64_t deadline_ns = block.timer.deadline_ns.load(std::memory_order_relaxed);
    while (block.signal.load(std::memory_order_acquire) == 0) {  // order: thread-signal
      if (FutexWait(block.signal, 0, deadline_ns)) continue;
      if (const uint64_t word = block.word.Load(); WaitWord::IsOpen(word) && block.word.TryClaim(word)) {
        block.outcome = kOutcomeDeadline;
        if (TakeForUnpark(self)) break;
      }
      deadline_ns = kNeverNs;  // the unpark comes
    }
  }
  self.state.store(State::kRunning, std::memory_order_relaxed);
  errno = saved_errno;
}

// The fiber may go on, and even end, as soon as the store is seen; its block is never discarded.
void WakeBound(Record& fiber) {
  WaitBlock& block = *fiber.block.load(std::memory_order_relaxed);
  block.signal.store(1, std::memory_order_release);  // order: thread-signal
  FutexWake(block.signal, 1);
}

}  // namespace fiber::internal
