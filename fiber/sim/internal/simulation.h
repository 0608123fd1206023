// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SIM_INTERNAL_SIMULATION_H_
#define WEFT_FIBER_SIM_INTERNAL_SIMULATION_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <source_location>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "fiber/scheduler.h"
#include "fiber/sim/internal/exploration.h"
#include "fiber/sim/internal/random.h"
#include "fiber/sim/internal/schedule.h"
#include "fiber/sim/sim.h"

namespace fiber::sim::internal {

using fiber::internal::Record;
using fiber::internal::StackClass;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

// Simulation is one schedule: a scheduler of one thread whose every choice comes from a seed, or from
// an Exploration, which tries each alternative in turn.
//
// Nothing here may depend on addresses, on fiber ids or on the clock of the machine, or seeds do
// not replay: what is walked is walked in the order of its coming.
//
// Thread safety: everything is the thread's that constructed it, NowNs() apart.
class Simulation final : public Scheduler {
 public:
  // `exploration` may be null: then choices come from the seed.
  Simulation(const SimOptions& options, uint64_t seed, Exploration* exploration = nullptr,
             Bounds bounds = {});
  // REQUIRES: !is_abandoned()
  ~Simulation() override;

  // Runs `body` and whatever it starts to the end. Once.
  void Run(absl::FunctionRef<void()> body, std::source_location site);

  // What went wrong; empty: nothing.
  const std::string& failure() const { return failure_; }
  // Fibers are left that refer to this scheduler: it may not be destroyed.
  bool is_abandoned() const { return is_abandoned_; }
  int64_t steps() const { return steps_; }
  uint64_t seed() const { return seed_; }
  // "seed 12", or "schedule 0102" as far as it has come.
  std::string name() const;

  // All choices end here. One of 0 … count - 1. REQUIRES: count > 0
  uint32_t ChooseBelow(uint32_t count);

  // Scheduler:
  void QueueNew(Record& fiber) override;
  void RequeueNew(Record& fiber) override;
  void QueueReady(Record& fiber) override;
  void QueueYielded(Record& fiber) override;
  Record* TakeNext(ThreadState& thread, WaitBlock* spare) override;
  bool TakeNextForYield(ThreadState& thread, Record** next) override;
  bool ArmTimer(ThreadState& thread, WaitBlock& block, int64_t deadline_ns) override;
  int64_t NowNs() override { return now_ns_.load(std::memory_order_relaxed); }
  void OnFiberEnded(ThreadState& thread) override;
  void SchedulePoint(ThreadState& thread) override;
  uint32_t ChooseBelow(ThreadState&, uint32_t n) override { return ChooseBelow(n); }
  StackClass default_stack_class() const override { return stack_class_; }

 private:
  // A timer that was filed.
  struct Entry {
    WaitBlock* block;
    int64_t deadline_ns;
  };
  struct Runnable {
    Record* fiber;
    bool has_yielded;  // and others have not run since; for explorations
  };
  // What is chosen at a switch.
  enum class Choice { kFiber, kStay, kNobody };

  // Picks who goes on, the running fiber too if it `may_stay`, and fires the timers picked before.
  // kFiber: *next, which is left alone otherwise.
  Choice Choose(ThreadState& thread, WaitBlock* spare, bool may_stay, Record** next);
  // Of an exploration: the number, as Choose() counts them, of who goes on.
  size_t PickExplored(bool may_stay, bool is_preempted);
  // The clock jumps though fibers are runnable.
  bool ChooseLate();
  void PreemptIfChosen();
  bool IsOutOfSteps() const { return steps_ >= step_limit_; }
  void FileTimer(Entry entry);
  // To the earliest timer. False: there is none.
  bool JumpClock();
  void SetNow(int64_t now_ns);

  // The schedule cannot go on: keeps the reason and cancels everybody; a second time it gives up.
  void OnStuck(bool is_livelock);
  std::string DescribeStuck(bool is_livelock) const;
  std::string DescribeFiber(Record& fiber) const;
  // Fibers in the order of their spawns.
  std::vector<Record*> FibersInOrder() const;
  void CheckThread(const Record& fiber, const char* event) const;

  const SimOptions options_;
  const uint64_t seed_;
  const StackClass stack_class_;
  ThreadState& thread_;
  Random random_;
  Exploration* const exploration_;
  Bounds bounds_left_;
  bool is_preempting_ = false;  // the fiber that gives way did not ask for it
  bool is_turn_over_ = false;   // it did, and goes after all others
  // Atomic, since other threads may ask for the time.
  fiber::internal::Atomic<int64_t> now_ns_;
  int64_t steps_ = 0;
  int64_t step_limit_;
  bool has_body_ended_ = false;
  bool is_abandoned_ = false;
  std::string failure_;

  // All that have not ended, with the number of their spawn.
  std::unordered_map<Record*, int64_t> fibers_;
  int64_t spawned_ = 0;
  // New and Ready, in no order that means anything.
  std::vector<Runnable> runnable_;

  // Timers to come, by deadline and order of filing; and those that are due, like runnable_.
  // Invariant: all of timers_ are later than the clock.
  std::map<std::pair<int64_t, int64_t>, WaitBlock*> timers_;
  int64_t filed_ = 0;
  std::vector<Entry> due_;
};

}  // namespace fiber::sim::internal

#endif  // WEFT_FIBER_SIM_INTERNAL_SIMULATION_H_
