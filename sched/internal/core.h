// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_CORE_H_
#define WEFT_SCHED_INTERNAL_CORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "fiber/internal/block_signals.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/scheduler.h"
#include "sched/event_source.h"
#include "sched/internal/crew.h"
#include "sched/internal/futex_source.h"
#include "sched/internal/idle.h"
#include "sched/internal/monitor.h"
#include "sched/internal/run_queue.h"
#include "sched/internal/shared_queue.h"
#include "sched/internal/trimmer.h"
#include "sched/runtime.h"

namespace sched::internal {

class Worker;

// What keeps threads from being made: they need a stack, too.
inline constexpr char kThreadLimits[] =
    "the limit on threads is reached (ulimit -u, the pids limit of the control group, "
    "kernel.threads-max), or on address space (ulimit -v), locked memory after mlockall (ulimit -l) "
    "or mappings (vm.max_map_count): raise it or ask for fewer workers";

// Core is a runtime without its face: the run queues, the workers that run from them, and what they share. It is the
// work-stealing implementation of fiber::Scheduler.
//
// What a fiber is queued in, by where it comes from:
//
//   spawned by a fiber        the worker's unstarted deque; overflow: unstarted_
//   spawned from outside      unstarted_
//   unparked by a fiber       the worker's next-slot; whom it displaces goes to the ring
//   unparked by the poller,   the worker's ring; overflow: half of it to inject_
//   a timer, or a yield
//   unparked from outside     inject_
//
// Nothing is ever full. A push to a shared queue is followed by a look at the idle word (idle.h). One to a worker's own is
// not, but with RuntimeOptions::eager_wake: whoever sleeps does not look there, so the worker answers for its queue:
//
//   as long as it runs fibers, it looks at each scheduling point whether some have waited for kDeferredWakeNs with somebody
//     idle, and wakes one;
//   if it stays in a fiber, the monitor sees that, moves them to the shared queues and wakes;
//   if it stands (crew.h), the push itself moves them;
//   it sleeps, or rests, only when its queue is empty, or emptied.
class Core final : public fiber::Scheduler {
 public:
  explicit Core(const RuntimeOptions& options);
  // REQUIRES: Stop() was called.
  ~Core() override;

  void Start();
  // Ends the workers, then the event source: who waits for an event of it is told. REQUIRES: no fiber is left.
  void Stop();

  // fiber::Scheduler.
  void QueueNew(Record& fiber) override;
  void EnterFromOutside() override { foreign_.fetch_add(1, std::memory_order_relaxed); }
  void LeaveFromOutside() override { foreign_.fetch_sub(1, std::memory_order_release); }  // order: foreign
  void RequeueNew(Record& fiber) override;
  void QueueReady(Record& fiber) override;
  void QueueYielded(Record& fiber) override;
  Record* TakeNext(fiber::internal::ThreadState& thread, fiber::internal::WaitBlock* spare) override;
  bool TakeNextForYield(fiber::internal::ThreadState& thread, Record** next) override;
  bool ArmTimer(fiber::internal::ThreadState& thread, fiber::internal::WaitBlock& block,
                int64_t deadline_ns) override;
  void AnnounceTimer(fiber::internal::ThreadState& thread) override;
  void BeginBlocking(fiber::internal::ThreadState& thread) override;
  void EndBlocking(fiber::internal::ThreadState& thread) override;
  bool IsSliceOver(fiber::internal::ThreadState& thread) override;
  bool EnterFromTimer() override;
  void LeaveFromTimer() override { foreign_spawned_.fetch_sub(1, std::memory_order_seq_cst); }  // order: close
  int64_t NowNs() override;
  void OnFiberEnded(fiber::internal::ThreadState& thread) override;
  fiber::internal::StackClass default_stack_class() const override { return stack_class_; }

  // For the face.
  // Its workers are in the process that this one was forked from.
  bool is_copy() const { return fork_generation_ != fiber::internal::ForkGeneration(); }
  const RuntimeOptions& options() const { return options_; }
  // The mask of the thread that made the runtime, for children of its fibers.
  const sigset_t& programs_signals() const { return programs_signals_; }
  void CancelAll();
  // True when every fiber has ended; false at the deadline. Blocks the thread.
  bool WaitUntilDrained(int64_t deadline_ns);
  // A line for each fiber that is left.
  std::string DescribeFibers();
  Stats stats() const;
  EventSource* InstallEventSource(absl::FunctionRef<std::unique_ptr<EventSource>()> make);

  // For workers.
  std::span<const std::unique_ptr<RunQueue>> queues() const { return crew_.queues(); }
  // Seats: so many run fibers at once.
  uint32_t worker_count() const { return crew_.seats(); }
  Crew& crew() { return crew_; }
  Monitor& monitor() { return monitor_; }
  // Whether a worker's own pushes wake nobody at once. It takes a monitor.
  bool is_deferring() const { return is_deferring_.load(std::memory_order_relaxed); }
  // Moves all fibers of a queue to the shared ones, and wakes somebody for them. Anyone.
  void HandOver(RunQueue& queue);
  SharedQueue& inject() { return inject_; }
  SharedQueue& unstarted() { return unstarted_; }
  Idle& idle() { return idle_; }
  Trimmer& trimmer() { return trimmer_; }
  // How often a worker has begun, or come back from rest.
  uint32_t CountCall() { return calls_.fetch_add(1, std::memory_order_relaxed) + 1; }
  // How often fibers have run.
  uint64_t Activity() const;
  bool is_stopped() const { return is_stopped_.load(std::memory_order_acquire); }  // order: stop
  bool HasFibers() const;
  // Those that a worker has to look for before it sleeps: under the deferred rule owners answer for their queues.
  bool HasFibersToFind() const {
    return is_deferring() ? inject_.size() > 0 || unstarted_.size() > 0 : HasFibers();
  }
  // So many polls have begun.
  uint64_t Polls() const;
  int64_t EarliestDue() const;
  // Null where there are no descriptors: then there is nothing to look at for events.
  EventSource* installed_source() const {
    return installed_source_.load(std::memory_order_acquire);  // order: source
  }
  // Where to sleep. Called when idle already: whoever installs a source interrupts the old one after that.
  EventSource& sleeping_source() {
    EventSource* source = installed_source_.load(std::memory_order_seq_cst);  // order: source
    return source != nullptr ? *source : futex_source_;
  }
  void InterruptSleeper() { sleeping_source().Interrupt(); }
  // After a push: wakes an idle worker if there is one and nobody searches.
  void WakeIfIdle();
  // Fibers wait for a stack, and nobody may ever return one: memory can come free elsewhere. Lets the first in line try
  // again, not more often than every kStackRetryNs.
  void RetryStacks();
  static constexpr int64_t kStackRetryNs = 10'000'000;

 private:
  // Counts a thread from outside in while it touches the runtime, so that its end waits for it: the fiber it made runnable
  // may be the last one. order: foreign — release by the leaver, acquire by AwaitForeigners.
  class ForeignEntry {
   public:
    explicit ForeignEntry(Core& core) : core_(core) { core_.EnterFromOutside(); }
    ~ForeignEntry() { core_.LeaveFromOutside(); }

   private:
    Core& core_;
  };

  void AfterPush(Worker& worker);
  Worker* WorkerOf(const fiber::internal::ThreadState& thread) const;
  bool IsDrained() const;
  void AwaitForeigners();
  void EndEventSource();

  const uint64_t fork_generation_ = fiber::internal::ForkGeneration();
  const sigset_t programs_signals_ = fiber::internal::ProgramSignals();
  const RuntimeOptions options_;
  const fiber::internal::StackClass stack_class_;
  Crew crew_;
  Monitor monitor_{*this};
  Atomic<bool> is_deferring_{false};  // const after Start, whose last step may be to clear it
  Idle idle_;
  SharedQueue inject_;     // Ready fibers
  SharedQueue unstarted_;  // New fibers
  Trimmer trimmer_{this};

  FutexSource futex_source_;
  fiber::internal::BlockingMutex install_mutex_;
  std::unique_ptr<EventSource> owned_source_;  // guarded by install_mutex_
  // order: source — release by the installer; seq_cst against sleepers: the installer stores, then interrupts the old
  // source once for each thread that there can be; a sleeper that loads the old one later than that finds a permit there.
  Atomic<EventSource*> installed_source_{nullptr};

  Atomic<bool> is_stopped_{false};    // order: stop — release by Stop, acquire by workers
  Atomic<bool> is_draining_{false};
  Atomic<uint32_t> drained_{0};       // futex: counts wake-ups of WaitUntilDrained
  // order: close — store-load, seq_cst: a spawner from outside counts its fiber, then looks whether the runtime is closed;
  // who stops it closes it, then looks at the counts once more. One of them sees the other. A timer counts the fiber that it
  // is to start, as long as nobody else does, then looks whether the runtime is cancelled, which it is before it is drained.
  Atomic<uint64_t> foreign_spawned_{0};
  Atomic<bool> is_closed_{false};
  Atomic<uint64_t> wakes_{0};
  Atomic<uint32_t> calls_{0};
  Atomic<int64_t> next_stack_retry_ns_{0};
  alignas(64) Atomic<uint64_t> foreign_{0};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_CORE_H_
