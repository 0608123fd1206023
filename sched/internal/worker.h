// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_WORKER_H_
#define WEFT_SCHED_INTERNAL_WORKER_H_

#include <pthread.h>
#include <signal.h>

#include <cstdint>

#include "fiber/internal/record.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "sched/internal/idle.h"
#include "sched/internal/run_queue.h"

namespace sched::internal {

class Core;

// Worker is a thread that runs fibers from a run queue. All of it belongs to that thread.
//
// Fibers hand the worker to each other directly (TakeLocal, on the stack of the one that leaves). When that finds nothing,
// or a turn of maintenance is due, the thread's own stack is switched to, and looks further: shared queues, events,
// timers, other workers' queues, sleep.
class Worker {
 public:
  Worker(Core& core, RunQueue& queue, uint32_t index);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // False: no thread could be had.
  [[nodiscard]] bool Start();
  void Join();

  // In a child of fork(), by this worker's thread, which is the only one there: it is a plain thread from here on.
  void LeaveInFork();

  RunQueue& queue() { return queue_; }

  // The next fiber of its own queue, with a stack; null: none. Also on a fiber's stack.
  Record* TakeLocal(fiber::internal::WaitBlock* spare);
  // Whether the thread's own stack must have a turn now: for timers, events and what was queued from outside.
  bool is_maintenance_due() const { return tick_ >= maintenance_at_; }

  // A deadline became earlier: before it runs a fiber, the worker looks whether the keeper knows (idle.h).
  void OweKeeper() { owes_keeper_ = true; }
  void PayKeeper() {
    if (owes_keeper_) [[unlikely]] TellKeeper();
  }

  void PushReady(Record& fiber);     // to the ring
  void PushNext(Record& fiber);      // to the next-slot
  void PushUnstarted(Record& fiber);

 private:
  // So many rounds at most without a look at timers and events, and without one at timers alone if any are armed.
  static constexpr uint64_t kMaintenanceRounds = 61;
  static constexpr uint64_t kTimerRounds = 16;
  // A chain of next-slot runs is one time slice: it ends after so many, so that two fibers that wake each other do not
  // keep out the others.
  static constexpr uint32_t kMostNextRuns = 32;
  // Every so many rounds (next-slot runs apart) an unstarted fiber goes before the ring, the oldest, so that neither starves.
  static constexpr uint64_t kUnstartedShare = 8;
  static constexpr size_t kMostTakenAtOnce = 32;
  static constexpr int kSearchRounds = fiber::internal::kIsModel ? 1 : 4;

  static void* Entry(void* worker);
  void Main();
  void RunFibers();
  Record* FindNext();
  Record* Maintain();
  Record* TakeShared();
  Record* TakeOneShared();
  Record* TakeFromOthers();
  Record* StealFrom(RunQueue& victim);
  Record* StealNextSlot(RunQueue& victim);
  Record* Bound(Record* fiber);
  Record* Found(Record* fiber);
  void Sleep(fiber::internal::Backoff& backoff);
  void ExpireTimers();
  void TellKeeper();
  uint64_t Random();

  Core& core_;
  RunQueue& queue_;
  const uint32_t index_;
  fiber::internal::ThreadState* state_ = nullptr;
  pthread_t thread_{};
  sigset_t inherited_signals_{};  // blocked by whoever made the thread
  Idle::Role role_ = Idle::Role::kBusy;
  uint64_t tick_ = 0;
  uint64_t maintenance_at_ = 0;
  uint64_t poll_at_ = 0;
  uint32_t next_runs_ = 0;
  uint64_t turns_ = 0;  // rounds that found no fiber in the next-slot
  bool is_unstarted_turn_ = false;
  bool owes_keeper_ = false;
  uint64_t random_;
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_WORKER_H_
