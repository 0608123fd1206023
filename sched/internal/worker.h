// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_WORKER_H_
#define WEFT_SCHED_INTERNAL_WORKER_H_

#include <pthread.h>
#include <signal.h>

#include <cstdint>
#include <memory>

#include "fiber/internal/record.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "sched/internal/idle.h"
#include "sched/internal/run_queue.h"
#include "sched/internal/shared_queue.h"

namespace sched::internal {

class Core;

// Worker is a thread that runs fibers from a run queue. All of it belongs to that thread, but for its mode and what Crew does
// with it; crew.h has the modes.
//
// Fibers hand the worker to each other directly (TakeLocal, on the stack of the one that leaves). When that finds nothing,
// or a turn of maintenance is due, the thread's own stack is switched to, and looks further: shared queues, events,
// timers, other workers' queues, sleep.
class Worker {
 public:
  enum class Mode : uint32_t { kGone, kSeated, kAsleep, kStanding, kResting };

  Worker(Core& core, RunQueue& queue, uint32_t index);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // For Crew, under its lock. Start: false: no thread could be had. REQUIRES: IsThreadGone()
  [[nodiscard]] bool Start();
  // Whether its last thread, which has said that it leaves, has ended. Until then it destroys what programs keep in
  // thread_local variables, which may take long, or wait for a fiber: nobody waits for that under a lock.
  [[nodiscard]] bool IsThreadGone();
  bool has_thread() const { return has_thread_; }
  void Join();
  void Sit() { mode_.store(Mode::kSeated, std::memory_order_seq_cst); }  // order: stand
  void LieDown() {
    mode_.store(Mode::kResting, std::memory_order_seq_cst);  // order: stand
    calls_before_rest_ = calls();
  }
  void Leave();
  // Seated → standing.
  [[nodiscard]] bool TryStand() {
    Mode seated = Mode::kSeated;
    return mode_.compare_exchange_strong(seated, Mode::kStanding, std::memory_order_seq_cst,  // order: stand
                                         std::memory_order_relaxed);
  }
  void Call();
  // Since it lay down.
  bool is_called() const { return calls() != calls_before_rest_; }
  // Until it is called, or until `deadline_ns`. By the worker, without the lock.
  void AwaitCall(int64_t deadline_ns);
  Worker* next_resting = nullptr;
  uint32_t pins = 0;

  Mode mode() const { return mode_.load(std::memory_order_seq_cst); }  // order: stand
  // What it pushed may be looked for by nobody: see crew.h.
  bool is_standing() const { return mode() == Mode::kStanding; }

  // For the monitor, in Crew::ForEach: the thread's state, null while it has not begun.
  const fiber::internal::ThreadState* state() const {
    return published_state_.load(std::memory_order_acquire);  // order: publish
  }
  pthread_t thread() const { return thread_; }
  pid_t thread_id() const { return thread_id_.load(std::memory_order_relaxed); }

  // A fiber on it is about to block, and has done so.
  void BeginBlocking();
  void EndBlocking();

  // In a child of fork(), by this worker's thread, which is the only one there: it is a plain thread from here on.
  void LeaveInFork();

  RunQueue& queue() const { return queue_; }
  uint32_t index() const { return index_; }

  // The next fiber of its own queue, with a stack; null: none. Also on a fiber's stack.
  Record* TakeLocal(fiber::internal::WaitBlock* spare) {
    for (;;) {
      ++tick_;
      if (next_runs_ < kMostNextRuns && queue_.next_slot.load(std::memory_order_relaxed) != nullptr) {
        if (Record* fiber = queue_.next_slot.exchange(nullptr, std::memory_order_acq_rel);  // order: idle-wake
            fiber != nullptr) {
          ++next_runs_;
          AddOne(queue_.runs);
          return fiber;
        }
      }
      if (Record* fiber = nullptr; TakeQueued(spare, &fiber)) return fiber;
    }
  }
  // Whether the thread's own stack must have a turn now: for timers, events and what was queued from outside.
  bool is_maintenance_due() const {
    return tick_ >= queue_.maintenance_at.load(std::memory_order_relaxed);
  }
  // At a scheduling point, when a successor has been found and somebody has nothing to do: fibers that go on waiting here are
  // worth a wake-up. (Without the deferred wake rule each push has seen to that.)
  void LookWhoWaits();
  // The thread's own stack takes the successor of one that yields. By then that one is queued: in the ring, which comes before
  // the unstarted ones, or in the shared queue.
  void BeginYield(const Record& fiber) {
    turns_ |= kUnstartedShare - 1;  // the next from the own queue is one of those, if there is any
    yielded_ = &fiber;
  }

  // A deadline became earlier: before it runs a fiber, the worker looks whether the keeper knows (idle.h).
  void OweKeeper() { owes_keeper_ = true; }
  void PayKeeper() {
    if (owes_keeper_) [[unlikely]] TellKeeper();
  }

  void PushReady(Record& fiber);     // to the ring
  // To the next-slot.
  void PushNext(Record& fiber) {
    Record* displaced = queue_.next_slot.exchange(&fiber, std::memory_order_seq_cst);  // order: idle-wake
    if (displaced != nullptr) PushReady(*displaced);
  }
  void PushUnstarted(Record& fiber);

 private:
  uint32_t calls() const { return calls_.load(std::memory_order_acquire); }  // order: call

  // So many rounds at most without a look at timers and events, and without one at timers alone if any are armed.
  static constexpr uint64_t kMaintenanceRounds = 61;
  static constexpr uint64_t kTimerRounds = 16;
  // A chain of next-slot runs is one time slice: it ends after so many, so that two fibers that wake each other do not
  // keep out the others.
  static constexpr uint32_t kMostNextRuns = 32;
  // Every so many rounds (next-slot runs apart) an unstarted fiber goes before the ring, the oldest, so that neither starves.
  static constexpr uint64_t kUnstartedShare = 8;
  static constexpr size_t kMostTakenAtOnce = 32;
  // From so many on the shared queue is served as the own one is, by the handful.
  static constexpr size_t kLongLine = 8;
  // Who waits in the kernel for less has not blocked. Monitor::kFastNs: to wake another is worth that.
  static constexpr int64_t kBlockedNs = 200'000;
  static constexpr int kSearchRounds = fiber::internal::kIsModel ? 1 : 4;

  // So long fibers may wait behind those of their own worker before another is woken for them: a wake-up costs twice that
  // and more, and most are gone by then. 20 to 300 us measure alike, 5 and less cost as much as none.
  static constexpr int64_t kDeferredWakeNs = 20'000;

  static void* Entry(void* worker);
  void Main();
  bool MayTakeFrom(const RunQueue& victim) const;
  bool StopStanding();
  void BeginTurns();
  void RunFibers();
  bool TakeQueued(fiber::internal::WaitBlock* spare, Record** taken);
  Record* FindNext();
  Record* Maintain(const Record* yielded);
  static bool HasJustYielded(const Record& fiber, const Record* yielded);
  Record* InsteadOf(Record& yielded);
  void DoChores();
  Record* TakeShared();
  Record* TakeSharedUnstarted();
  size_t ShareOf(const SharedQueue& queue) const;
  Record* TakeOneShared();
  Record* TakeFromOthers();
  Record* StealFrom(RunQueue& victim);
  Record* StealNextSlot(RunQueue& victim);
  Record* Bound(Record* fiber);
  Record* Found(Record* fiber);
  void GiveWay(Record& fiber);
  void LookBack();
  void Sleep(fiber::internal::Backoff& backoff);
  void Wake();
  void ExpireTimers();
  void TellKeeper();
  uint64_t Random();

  Core& core_;
  RunQueue& queue_;
  const uint32_t index_;
  std::unique_ptr<fiber::internal::ThreadState> first_state_;  // for a thread that is being made
  fiber::internal::ThreadState* state_ = nullptr;
  pthread_t thread_{};
  bool has_thread_ = false;
  Atomic<pid_t> thread_id_{0};
  Atomic<Mode> mode_{Mode::kGone};
  Atomic<uint32_t> calls_{0};  // futex. order: call — release by who calls, acquire by the worker
  uint32_t calls_before_rest_ = 0;
  Atomic<const fiber::internal::ThreadState*> published_state_{nullptr};
  Idle::Role role_ = Idle::Role::kBusy;
  uint64_t tick_ = 0;
  uint64_t poll_at_ = 0;
  uint32_t next_runs_ = 0;
  uint64_t turns_ = 0;  // rounds that found no fiber in the next-slot
  const Record* yielded_ = nullptr;  // until the thread's own stack has its turn: not to be followed
  bool is_unstarted_turn_ = false;
  bool owes_keeper_ = false;
  Record* blocker_ = nullptr;     // that it ran last, without a seat
  int64_t blocker_since_ns_ = 0;
  int64_t blocker_cpu_ns_ = 0;
  uint64_t random_;
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_WORKER_H_
