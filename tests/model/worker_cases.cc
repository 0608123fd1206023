// SPDX-License-Identifier: Apache-2.0
//
// The work-stealing scheduler: worker.cc and core.cc as they ship, with their queues, the idle
// protocol, the keeper and the timers. Their fibers are bodies that run to their end, or to a park,
// on the stack of the model's thread: a switch is a call here.
#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/internal/system_calls.cc"
#include "tests/model/case_list.h"
#include "tests/model/explorer.h"

// The cases make workers without threads, and what is thread-local would be shared by all of the
// model's threads.
#define private public
#define thread_local
#include "sched/internal/core.h"
#include "sched/internal/worker.h"
//
#include "fiber/internal/park.cc"
#include "fiber/wait_reason.cc"
#include "sched/internal/core.cc"
#include "sched/internal/timer_chain.cc"
#include "sched/internal/timer_queue.cc"
#include "sched/internal/timer_wheel.cc"
#include "sched/internal/worker.cc"
#undef private
#undef thread_local

namespace model {
namespace {

using fiber::internal::After;
using fiber::internal::kNeverNs;
using fiber::internal::Record;
using fiber::internal::State;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;
using sched::internal::Core;
using sched::internal::FutexSource;
using sched::internal::Worker;
using std::make_shared;

// Where the workers sleep. Time is what the latest of them has slept to.
class Clock final : public sched::EventSource {
 public:
  void Poll(int64_t deadline_ns) override {
    if (deadline_ns == 0) return;
    futex_.Poll(deadline_ns);
    set_clock_ns(std::max(clock_ns(), passed_ns()));
  }
  void Interrupt() override { futex_.Interrupt(); }

 private:
  FutexSource futex_;
};

// A runtime of `workers` workers, and fibers, each with what it does in each of its runs.
class World : public std::enable_shared_from_this<World> {
 public:
  using Body = std::function<void(ThreadState&)>;

  World(int workers, int fibers) : core_(OptionsFor(workers)), fibers_(fibers) {
    for (int i = 0; i < workers; ++i) {
      core_.workers_.push_back(std::make_unique<Worker>(core_, *core_.queues_[i], i));
    }
    for (size_t i = 0; i < fibers_.size(); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.record.scheduler = &core_;
      fiber.record.id.store(i + 1, std::memory_order_relaxed);
      fiber.record.state.store(State::kReady, std::memory_order_relaxed);
      fiber.block.fiber.store(&fiber.record, std::memory_order_relaxed);
      fiber.record.block.store(&fiber.block, std::memory_order_relaxed);
    }
  }

  // Without it, workers sleep on the core's futex, and no time passes.
  void StartClock() { core_.installed_source_.store(&clock_, std::memory_order_relaxed); }

  Core& core() { return core_; }
  Record& record(int i) { return fibers_[i].record; }
  WaitBlock& block(int i) { return fibers_[i].block; }

  // What fiber `i` does the next time it runs; it ends, or parks if that has begun a park.
  void Then(int i, Body body) { fibers_[i].bodies.push_back(std::move(body)); }

  // Threads of a case.
  std::function<void()> Work(int worker) {
    return [this, self = shared_from_this(), worker] { Become(worker).RunFibers(); };
  }
  // A worker in a fiber that does `body` and never comes back.
  std::function<void()> Stay(int worker, Body body) {
    return [this, self = shared_from_this(), worker, body = std::move(body)] {
      ThreadState& thread = *Become(worker).state_;
      Record fiber;
      thread.current = &fiber;
      body(thread);
    };
  }

  const void* fiber(int i) const { return &fibers_[i]; }  // touched when it runs and ends
  bool has_ended(int i) const { return fibers_[i].has_ended; }

  void Spawn(int i) {
    fibers_[i].record.state.store(State::kNew, std::memory_order_relaxed);
    core_.QueueNew(fibers_[i].record);
  }
  void Ready(int i) { core_.QueueReady(fibers_[i].record); }

  // By fiber `i`: begins a wait that nothing but its deadline ends.
  void ParkUntil(ThreadState& thread, int i, int64_t ns) {
    WaitBlock& block = fibers_[i].block;
    block.word.Open(/*is_interruptible=*/false);
    fiber::internal::BeginPark(fibers_[i].record);
    block.timer.deadline_ns.store(ns, std::memory_order_seq_cst);
    Check(core_.ArmTimer(thread, block, ns), "no memory");
  }

  // The stand-in for Switch() from a thread's own stack: fibers hand the worker on until one finds
  // no successor.
  void RunFrom(ThreadState& thread, Record* to) {
    while (to != nullptr) {
      Record& self = *to;
      Fiber& fiber = fibers_[self.id.load(std::memory_order_relaxed) - 1];
      Touch(&fiber);
      Check(self.state.load(std::memory_order_relaxed) == State::kReady, "what runs is not Ready");
      Check(fiber.runs < fiber.bodies.size(), "a fiber runs once more");
      self.state.store(State::kRunning, std::memory_order_relaxed);
      thread.current = &self;
      fiber.bodies[fiber.runs++](thread);
      const bool parks = self.state.load(std::memory_order_relaxed) != State::kRunning;
      if (!parks) End(fiber);
      to = core_.TakeNext(thread, nullptr);
      thread.current = to;
      if (parks && !FinishPark(self)) core_.QueueReady(self);
    }
  }

  // For `finish`.
  void CheckAllRan() {
    for (Fiber& fiber : fibers_) Check(fiber.runs == fiber.bodies.size(), "a fiber never ran");
    Check(!core_.HasFibers(), "a queue is left with fibers");
  }

 private:
  struct Fiber {
    Record record;
    WaitBlock block;
    std::vector<Body> bodies;
    size_t runs = 0;
    bool has_ended = false;
  };

  Worker& Become(int worker) {
    ThreadState& thread = fiber::internal::ThisThread();
    Worker& mine = *core_.workers_[worker];
    mine.state_ = &thread;
    thread.scheduler = &core_;
    thread.worker = &mine;
    return mine;
  }

  static sched::RuntimeOptions OptionsFor(int workers) {
    sched::RuntimeOptions options;
    options.workers = workers;
    options.max_stack_memory = size_t{1} << 30;
    return options;
  }

  // Who ends last stops the workers, as Core::Stop does.
  void End(Fiber& fiber) {
    Touch(&fiber);
    fiber.has_ended = true;
    Touch(&ended_);
    if (++ended_ < fibers_.size()) return;
    core_.is_stopped_.store(true, std::memory_order_release);
    core_.InterruptSleeper();
  }

  Clock clock_;
  Core core_;
  std::vector<Fiber> fibers_;
  size_t ended_ = 0;
};

World* world_of_the_schedule = nullptr;

std::shared_ptr<World> MakeWorld(int workers, int fibers) {
  set_clock_ns(1);
  auto world = make_shared<World>(workers, fibers);
  world_of_the_schedule = world.get();
  return world;
}

void Ends(ThreadState&) {}

// Fibers come from outside while the workers look, and fall asleep.
Case PushesFromOutside() {
  auto world = MakeWorld(2, 2);
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Work(0), world->Work(1),
                      [world] {
                        world->Ready(0);
                        world->Spawn(1);
                      }},
          .finish = [world] { world->CheckAllRan(); }};
}

// A fiber unparks one and spawns another, and stays: the other worker has to come for both, of
// which one is in the next-slot.
Case WorkerStaysInAFiber() {
  auto world = MakeWorld(2, 2);
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Stay(0,
                                  [world](ThreadState&) {
                                    world->Spawn(0);
                                    world->Ready(1);
                                  }),
                      world->Work(1)},
          .finish = [world] { world->CheckAllRan(); }};
}

// Two pushes wake one of two sleepers, who stays in what he finds first: he has to have waked the
// other.
Case SearcherStaysInAFiber() {
  auto world = MakeWorld(3, 2);
  world->Then(0, [world](ThreadState&) {
    Await(world->fiber(1), [world] { return world->has_ended(1); });
  });
  world->Then(1, Ends);
  return {.threads = {world->Stay(0,
                                  [world](ThreadState&) {
                                    world->Spawn(0);
                                    world->Spawn(1);
                                  }),
                      world->Work(1), world->Work(2)},
          .finish = [world] { world->CheckAllRan(); }};
}

// More fibers than the queues of the worker hold, which goes on by itself; the other one steals.
Case QueuesOverflow() {
  constexpr int kFibers = 13;
  auto world = MakeWorld(2, kFibers);
  world->Then(0, [world](ThreadState&) {
    for (int i = 1; i <= 6; ++i) world->Ready(i);
    for (int i = 7; i < kFibers; ++i) world->Spawn(i);
  });
  for (int i = 1; i < kFibers; ++i) world->Then(i, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Work(1)},
          .finish = [world] { world->CheckAllRan(); }};
}

// Two fibers with deadlines, the later one armed first: the keeper has to be told.
Case FibersSleep() {
  auto world = MakeWorld(2, 2);
  world->StartClock();
  for (int i = 0; i < 2; ++i) {
    world->Then(i, [world, i](ThreadState& thread) {
      world->ParkUntil(thread, i, (2 - i) * 10'000'000);
    });
    world->Then(i, Ends);
    world->core().inject().Push(world->record(i));
  }
  return {.threads = {world->Work(0), world->Work(1)},
          .finish = [world] { world->CheckAllRan(); }};
}

// A worker arms a deadline and stays in the fiber after; the others keep the time for it.
Case DeadlineOfAWorkerThatStays() {
  auto world = MakeWorld(2, 2);
  world->StartClock();
  world->Then(0, [world](ThreadState& thread) { world->ParkUntil(thread, 0, 10'000'000); });
  world->Then(0, Ends);
  // Runs after it on the same worker, or on the other: ends when the sleeper has.
  world->Then(1, [world](ThreadState&) {
    Await(world->fiber(0), [world] { return world->has_ended(0); });
  });
  world->core().inject().Push(world->record(0));
  world->core().inject().Push(world->record(1));
  return {.threads = {world->Work(0), world->Work(1)},
          .finish = [world] { world->CheckAllRan(); }};
}

// The place to sleep is another from some instant on. Whoever sleeps in the old one has to come for
// what is pushed later.
Case SourceIsInstalled() {
  auto world = MakeWorld(2, 2);
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Work(0), world->Work(1),
                      [world] {
                        world->Ready(0);
                        world->core().InstallEventSource(
                            [] { return std::unique_ptr<sched::EventSource>(new Clock); });
                        world->Ready(1);
                      }},
          .finish = [world] { world->CheckAllRan(); }};
}

}  // namespace

void RunFrom(ThreadState& thread, Record* to) { world_of_the_schedule->RunFrom(thread, to); }

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"PushesFromOutside", PushesFromOutside, 2},
      {"WorkerStaysInAFiber", WorkerStaysInAFiber, 3},
      {"SearcherStaysInAFiber", SearcherStaysInAFiber, 1},
      {"QueuesOverflow", QueuesOverflow, 2},
      {"FibersSleep", FibersSleep, 2},
      {"DeadlineOfAWorkerThatStays", DeadlineOfAWorkerThatStays, 2},
      {"SourceIsInstalled", SourceIsInstalled, 2},
  };
  return kCases;
}

}  // namespace model

// What the scheduler needs besides the files that ship.
namespace fiber::internal {

ThreadState& Switch(ThreadState& thread, Record* to, After) {
  model::RunFrom(thread, to);
  return thread;
}
void YieldFiber() {}
bool BindStack(ThreadState&, Record& fiber, WaitBlock*) {
  fiber.state.store(State::kReady, std::memory_order_relaxed);
  return true;
}
std::string Describe(const Record&) { return "a fiber"; }
std::string DescribeUnheld(Record&) { return "a fiber"; }
void ForEachRecord(absl::FunctionRef<void(Record&)>) {}
void ClaimForCancel(Record&, uint64_t) {}
void BecomeWorker(ThreadState&, Scheduler&, void*) {}
void StopBeingWorker(ThreadState&) {}
AlternateStack::AlternateStack() = default;
AlternateStack::~AlternateStack() = default;
void InstallOverflowHandler() {}
void CallInForkedChildren(void (*)()) {}
uint64_t ForkGeneration() { return 0; }
void LeaveInFork(ThreadState&) {}
void InstallTerminateHandler() {}
StackClass StackClassFor(size_t) { return StackClass::k64KiB; }

// Every fiber has a stack here: the depot has nobody in line and no stack too many.
StackDepot::StackDepot(const StackPoolOptions&) {}
StackDepot& StackDepot::Make() { return *new StackDepot({}); }
void StackDepot::SetMaxMemory(size_t) {}
void StackDepot::RetryWaiters() {}
void StackDepot::LookForStall(const Scheduler&, int64_t) {}
size_t StackDepot::DiscardIdle(size_t) { return 0; }

}  // namespace fiber::internal

namespace sched::internal {

int InstallProbeSignal() { return 0; }

void Trimmer::Step(int64_t, uint64_t) {}
int64_t Trimmer::NextDue(int64_t, uint64_t) const { return kNeverNs; }
size_t CgroupMemoryMax(const CgroupSources&) { return SIZE_MAX; }
int UsableCpus(const CpuSources&) { return 2; }
absl::StatusOr<std::optional<int>> WorkersFromEnv(const char*) { return std::nullopt; }

}  // namespace sched::internal
