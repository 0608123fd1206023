// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SCHEDULER_H_
#define WEFT_FIBER_SCHEDULER_H_

#include <atomic>
#include <cstdint>

#include "fiber/internal/record.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/thread_state.h"

namespace fiber {

// Scheduler is the seam between a fiber and whoever runs it: the fiber layer parks and unparks through it without
// knowing about threads. `sched` implements it with work-stealing workers, `fiber/sim` with one thread, a seed and
// a virtual clock. Users of fibers never see it.
//
// Who may call: "any thread" means any thread at all, also another scheduler's; "worker" means a thread whose
// ThreadState names this scheduler. Every function: Never blocks.
class Scheduler {
 public:
  virtual ~Scheduler() {
    if (is_simulation_) internal::simulation_count.fetch_sub(1, std::memory_order_relaxed);
  }

  // A fiber that was just spawned, in state New. Any thread. Neither may be touched afterwards.
  virtual void QueueNew(internal::Record& fiber) = 0;
  // Around a spawn from outside that has found this scheduler by itself: between the two it stays. Enter is called while it
  // cannot go yet. Any thread.
  virtual void EnterFromOutside() {}
  virtual void LeaveFromOutside() {}
  // A New fiber that found no stack, to try again. Any thread. Neither may be touched afterwards.
  virtual void RequeueNew(internal::Record& fiber) = 0;
  // A fiber in state Ready that was unparked. Any thread. The caller may touch neither fiber nor scheduler afterwards.
  virtual void QueueReady(internal::Record& fiber) = 0;
  // A fiber in state Ready that yielded; called after the switch. Worker.
  virtual void QueueYielded(internal::Record& fiber) = 0;

  // The successor of a fiber that parks or ended: Ready, or New with a stack bound. Null: switch to the thread's own
  // stack, where the worker looks further and sleeps. A New successor of the right class takes over `spare`, the stack
  // of a fiber that ended; null: there is none. Worker.
  virtual internal::Record* TakeNext(internal::ThreadState& thread, internal::WaitBlock* spare) = 0;
  // Whether a fiber that yields gives up its worker: to *next, as for TakeNext. False: nobody else is there, go on.
  // Worker.
  virtual bool TakeNextForYield(internal::ThreadState& thread, internal::Record** next) = 0;

  // The block's wish was set to `deadline_ns`: files an entry if TryFile() says so, and calls OnTimer() with it when its
  // deadline has passed. False: there is no memory for an entry, and none counts. Worker.
  virtual bool ArmTimer(internal::ThreadState& thread, internal::WaitBlock& block,
                        int64_t deadline_ns) = 0;
  // The caller has armed a timer and will not park at once: those who sleep until a later one learn of it now. Worker.
  virtual void AnnounceTimer(internal::ThreadState&) {}
  // Around the spawn of what a timer sets off, which no fiber answers for: between the two the runtime does not end. False:
  // it is about to, and timers set nothing off any more. Worker.
  virtual bool EnterFromTimer() { return !is_cancelled(); }
  virtual void LeaveFromTimer() {}
  // This scheduler's clock. Any thread.
  virtual int64_t NowNs() = 0;

  // The running fiber is about to hold up its thread, until EndBlocking: what the thread would have run is for others to
  // run. In between the thread is no worker. Worker, on a fiber's stack, as is EndBlocking.
  virtual void BeginBlocking(internal::ThreadState&) {}
  virtual void EndBlocking(internal::ThreadState&) {}
  // Whether the running fiber has had the worker to itself for so long that it should let others run. Worker.
  virtual bool IsSliceOver(internal::ThreadState&) { return true; }

  // A fiber ended: the last that is heard of it. Worker.
  virtual void OnFiberEnded(internal::ThreadState& thread) = 0;
  // A point at which a simulation may run somebody else, as another worker would. Worker, on a fiber's stack.
  virtual void SchedulePoint(internal::ThreadState&) {}

  // One of 0 … n - 1, all alike: what is left to chance, as the order in which a select looks at its clauses. Worker.
  virtual uint32_t ChooseBelow(internal::ThreadState& thread, uint32_t n) {
    return internal::RandomBelow(thread, n);
  }

  // The stack class of fibers that ask for none.
  virtual internal::StackClass default_stack_class() const = 0;

  // No other scheduler's, before or after: an address may come again. Any thread.
  uint64_t serial() const { return serial_; }

  // Whether its clock is virtual and its workers one thread. Any thread.
  bool is_simulation() const { return is_simulation_; }

  // Whether all its fibers, present and future, are cancelled. Any thread. order: cancel
  bool is_cancelled() const { return is_cancelled_.load(std::memory_order_seq_cst); }

 protected:
  explicit Scheduler(bool is_simulation) : is_simulation_(is_simulation) {
    if (is_simulation) internal::simulation_count.fetch_add(1, std::memory_order_relaxed);
  }
  void SetCancelled() { is_cancelled_.store(true, std::memory_order_seq_cst); }  // order: cancel

 private:
  static uint64_t NextSerial() {
    static std::atomic<uint64_t> last{0};
    return last.fetch_add(1, std::memory_order_relaxed) + 1;
  }

  internal::Atomic<bool> is_cancelled_{false};
  const bool is_simulation_;
  const uint64_t serial_ = NextSerial();
};

}  // namespace fiber

#endif  // WEFT_FIBER_SCHEDULER_H_
