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
#define pthread_join(thread, result) ((void)(thread))
#define pthread_tryjoin_np(thread, result) ((void)(thread), 0)
#include "sched/internal/core.h"
#include "sched/internal/worker.h"
//
#include "fiber/internal/park.cc"
#include "fiber/wait_reason.cc"
#include "sched/internal/core.cc"
#include "sched/internal/crew.cc"
#include "sched/internal/monitor.cc"
#include "sched/internal/timer_chain.cc"
#include "sched/internal/timer_queue.cc"
#include "sched/internal/timer_wheel.cc"
#include "sched/internal/worker.cc"
#undef private
#undef thread_local
#undef pthread_join
#undef pthread_tryjoin_np

namespace model {
namespace {

using fiber::internal::After;
using fiber::internal::kNeverNs;
using fiber::internal::Record;
using fiber::internal::State;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;
using sched::internal::Core;
using sched::internal::Crew;
using sched::internal::FutexSource;
using sched::internal::Worker;
using std::make_shared;

// Where the workers sleep. Time is what the latest of them has slept to.
class Clock final : public sched::EventSource {
 public:
  void Poll(int64_t deadline_ns) override {
    if (deadline_ns == 0) return;
    Touch(&sleeps_);
    ++sleeps_;
    futex_.Poll(deadline_ns);
    set_clock_ns(std::max(clock_ns(), passed_ns()));
  }
  void Interrupt() override { futex_.Interrupt(); }
  void AwaitSleeper() {
    Await(&sleeps_, [this] { return sleeps_ > 0; });
  }

 private:
  FutexSource futex_;
  int sleeps_ = 0;
};

constexpr int kMostWorkers = 4;

// A runtime of some workers, and fibers, each with what it does in each of its runs.
class World : public std::enable_shared_from_this<World> {
 public:
  using Body = std::function<void(ThreadState&)>;

  World(const sched::RuntimeOptions& options, int fibers) : core_(options), fibers_(fibers) {
    core_.is_deferring_.store(!options.eager_wake, std::memory_order_relaxed);
    core_.crew_.free_seats_.store(0, std::memory_order_relaxed);
    for (const auto& worker : core_.crew_.workers_) worker->Sit();
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
  void ForgetBodies() {
    for (Fiber& fiber : fibers_) fiber.bodies.clear();
  }

  // Threads of a case.
  std::function<void()> Work(int worker) {
    return [this, self = shared_from_this(), worker] { Become(worker).RunFibers(); };
  }
  // The thread of a worker that is called when somebody is needed, and each time anew after it has rested for too long.
  std::function<void()> Spare(int worker) {
    return [this, self = shared_from_this(), worker] {
      for (;;) {
        Await(&called_[worker], [&] { return called_[worker] || has_stopped_; });
        if (!called_[worker]) return;
        Touch(&called_[worker]);
        called_[worker] = false;
        if (Worker& spare = Become(worker); core_.crew().AwaitSeat(spare)) spare.RunFibers();
      }
    };
  }
  // By Start() of a worker.
  bool StartThread(Worker& worker) {
    Touch(&called_[worker.index()]);
    called_[worker.index()] = true;
    return true;
  }
  // A worker in a fiber that does `body` and never comes back.
  std::function<void()> Stay(int worker, Body body) {
    return [this, self = shared_from_this(), worker, body = std::move(body)] {
      ThreadState& thread = *Become(worker).state_;
      thread.current = &stays_in_;
      body(thread);
      Touch(&has_done_);
      has_done_ = true;
    };
  }

  // The body of Stay() has returned; it stays.
  void AwaitDone() {
    Await(&has_done_, [this] { return has_done_; });
  }
  void AwaitSleeper() { clock_.AwaitSleeper(); }
  // Looks of the monitor, each as much later as a stall takes to be one.
  void Tick(int count) {
    for (int i = 0; i < count; ++i) (void)core_.monitor().Tick(monitor_ns_ += 20'000'000);
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

  // By fiber `i`, last of what it does in this run: it yields, and its next body is what comes after.
  void Yield(int i) { fibers_[i].yields = true; }

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
      if (LeavesByYield(thread, fiber, &to)) continue;
      const bool parks = self.state.load(std::memory_order_relaxed) != State::kRunning;
      if (!parks) End(fiber);
      to = core_.TakeNext(thread, nullptr);
      thread.current = to;
      if (parks && !FinishPark(self)) core_.QueueReady(self);
    }
  }

  const void* asleep() const { return &is_monitor_back_; }
  bool has_monitor_come_back() const { return is_monitor_back_; }
  void MonitorIsBack() {
    Touch(&is_monitor_back_);
    is_monitor_back_ = true;
  }

  // For `finish`.
  void CheckSeats() {
    int32_t seated = 0;
    for (const auto& worker : core_.crew_.workers_) {
      const Worker::Mode mode = worker->mode_.load(std::memory_order_relaxed);
      if (mode == Worker::Mode::kSeated || mode == Worker::Mode::kAsleep) ++seated;
    }
    Check(seated + core_.crew_.free_seats() == static_cast<int32_t>(core_.worker_count()), "a seat is lost, or taken twice");
  }
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
    bool yields = false;
  };

  // As YieldFiber() does, as often as it says so; where nobody else is there the fiber goes on. True: it has left the worker to
  // `*to`, or if that is null to the thread's own stack.
  bool LeavesByYield(ThreadState& thread, Fiber& fiber, Record** to) {
    while (std::exchange(fiber.yields, false)) {
      Record* next = nullptr;
      if (core_.TakeNextForYield(thread, &next)) {
        thread.current = next;
        fiber.record.state.store(State::kReady, std::memory_order_relaxed);
        core_.QueueYielded(fiber.record);
        *to = next;
        return true;
      }
      Touch(&fiber);
      Check(fiber.runs < fiber.bodies.size(), "a fiber goes on once more");
      fiber.bodies[fiber.runs++](thread);
    }
    return false;
  }

  Worker& Become(int worker) {
    ThreadState& thread = fiber::internal::ThisThread();
    Worker& mine = *core_.crew_.workers_[worker];
    mine.state_ = &thread;
    mine.published_state_.store(&thread, std::memory_order_release);
    thread.scheduler = &core_;
    thread.worker = &mine;
    return mine;
  }

  // Who ends last stops the workers, as Core::Stop does.
  void End(Fiber& fiber) {
    Touch(&fiber);
    fiber.has_ended = true;
    Touch(&ended_);
    if (++ended_ < fibers_.size()) return;
    core_.is_stopped_.store(true, std::memory_order_release);
    core_.InterruptSleeper();
    core_.crew_.Stop();
    for (bool& called : called_) Touch(&called);
    has_stopped_ = true;
  }

  Clock clock_;
  Core core_;
  std::vector<Fiber> fibers_;
  size_t ended_ = 0;
  Record stays_in_;
  bool has_done_ = false;
  bool called_[kMostWorkers] = {};
  bool has_stopped_ = false;
  bool is_monitor_back_ = false;
  int64_t monitor_ns_ = 0;
};

World* world_of_the_schedule = nullptr;

bool StartThread(Worker& worker) { return world_of_the_schedule->StartThread(worker); }

enum class Wakes { kDeferred, kEager };

// `threads`: more than `workers`: the others are spare.
std::shared_ptr<World> MakeWorld(int workers, int fibers, Wakes wakes = Wakes::kDeferred, int threads = 0) {
  set_clock_ns(1);
  // The threads of spare workers are there, and wait for this.
  static fiber::internal::SystemCalls calls = fiber::internal::kKernel;
  calls.pthread_create = [](pthread_t*, const pthread_attr_t*, void* (*)(void*), void* worker) {
    return StartThread(*static_cast<Worker*>(worker)) ? 0 : EAGAIN;
  };
  fiber::internal::system_calls.store(&calls, std::memory_order_release);
  sched::RuntimeOptions options;
  options.workers = workers;
  options.max_threads = std::max(workers, threads);
  options.eager_wake = wakes == Wakes::kEager;
  options.max_stack_memory = size_t{1} << 30;
  // Bodies may keep the world that they are part of: the last schedule's is let go here.
  static std::weak_ptr<World> last;
  if (const auto world = last.lock()) world->ForgetBodies();
  auto world = make_shared<World>(options, fibers);
  last = world;
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
  auto world = MakeWorld(2, 2, Wakes::kEager);
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

// A fiber unparks one and ends, which its own worker takes as the successor and the other as what is left lying.
Case SuccessorIsWantedByTwo() {
  auto world = MakeWorld(2, 2, Wakes::kEager);
  world->Then(0, [world](ThreadState&) { world->Ready(1); });
  world->Then(1, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Work(1)}, .finish = [world] { world->CheckAllRan(); }};
}

// Two pushes wake one of two sleepers, who stays in what he finds first: he has to have waked the
// other.
Case SearcherStaysInAFiber() {
  auto world = MakeWorld(3, 2, Wakes::kEager);
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
  auto world = MakeWorld(2, kFibers, Wakes::kEager);
  world->Then(0, [world](ThreadState&) {
    for (int i = 1; i <= 6; ++i) world->Ready(i);
    for (int i = 7; i < kFibers; ++i) world->Spawn(i);
  });
  for (int i = 1; i < kFibers; ++i) world->Then(i, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Work(1)},
          .finish = [world] { world->CheckAllRan(); }};
}

// A fiber yields to one that stays until the first has ended, while the other worker goes to sleep, or comes for what a thread
// outside has pushed: somebody has to come for who yielded, whichever queue that is in.
Case YieldMeetsASleeper() {
  auto world = MakeWorld(2, 3, Wakes::kEager);
  world->Then(0, [world](ThreadState&) {
    world->Ready(1);
    world->Yield(0);
  });
  world->Then(0, Ends);
  world->Then(1, [world](ThreadState&) {
    Await(world->fiber(0), [world] { return world->has_ended(0); });
  });
  world->Then(2, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Work(1), [world] { world->Ready(2); }},
          .finish = [world] { world->CheckAllRan(); }};
}

// The same under the deferred rule, where a yield wakes somebody only if it goes behind one from outside. Who yields and stays
// alone on its worker is its worker's to run, so the one that stays only goes on until who yielded has had its turn or is not
// in the shared queue.
Case YielderGoesBehindOthers() {
  auto world = MakeWorld(2, 3);
  world->Then(0, [world](ThreadState&) {
    world->Ready(1);
    world->Yield(0);
  });
  world->Then(0, Ends);
  world->Then(1, [world](ThreadState&) {
    if (!world->core().queues()[0]->ring.is_empty() || !world->core().queues()[1]->ring.is_empty()) return;
    Await(world->fiber(0), [world] { return world->has_ended(0); });
  });
  world->Then(2, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Work(1), [world] { world->Ready(2); }},
          .finish = [world] { world->CheckAllRan(); }};
}

// Two yield to each other, for longer than is left to their own worker, while the other one is about to sleep, or does. Then
// one stays, and the other is to be fetched.
Case YieldersAreSeenToWait() {
  auto world = MakeWorld(2, 2);
  world->StartClock();
  world->Then(0, [world](ThreadState&) {
    world->AwaitSleeper();
    world->Ready(1);
    world->Yield(0);
  });
  world->Then(0, [world](ThreadState&) {
    Await(world->fiber(1), [world] { return world->has_ended(1); });
  });
  world->Then(1, [world](ThreadState&) {
    set_clock_ns(clock_ns() + 30'000);
    world->Yield(1);
  });
  world->Then(1, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Work(1)},
          .finish = [world] { world->CheckAllRan(); }};
}

// The monitor wants a turn of the thread's own stack, which then takes the successor of one that yields: not that one again,
// if there is anybody else, and without losing it.
Case YieldLeavesTheTurnToTheThread() {
  auto world = MakeWorld(1, 3);
  world->Then(0, [world](ThreadState&) { world->Yield(0); });
  world->Then(0, [world](ThreadState&) { world->Yield(0); });
  world->Then(0, Ends);
  world->Then(1, [world](ThreadState&) { world->Yield(1); });
  world->Then(1, Ends);
  world->Then(2, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0),
                      [world] {
                        world->Ready(1);
                        world->Spawn(2);
                      },
                      [world] {
                        for (int i = 0; i < 2; ++i) {
                          world->core().queues()[0]->maintenance_at.store(0, std::memory_order_relaxed);
                        }
                      }},
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

// A worker arms a deadline and then stays in a fiber that it already had, so that it does not come to look: whoever sleeps,
// or is about to, keeps the time for it. It does not stay where the time is over before the switch: then who slept is its own
// worker's to run, and without the monitor nobody else looks there.
Case DeadlineOfAWorkerThatStays() {
  auto world = MakeWorld(2, 2);
  world->StartClock();
  world->Then(0, [world](ThreadState& thread) {
    world->Ready(1);
    world->ParkUntil(thread, 0, 10'000'000);
  });
  world->Then(0, Ends);
  world->Then(1, [world](ThreadState& thread) {
    if (static_cast<Worker*>(thread.worker)->queue().has_fibers()) return;
    Await(world->fiber(0), [world] { return world->has_ended(0); });
  });
  world->core().inject().Push(world->record(0));
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

// Under the deferred rule nobody is woken by the pushes of a worker that stays in its fiber, and whoever sleeps does not look
// at its queue: the monitor, which goes on looking, has to see, and to move what waits.
Case MonitorWakesForAWorkerThatStays() {
  auto world = MakeWorld(2, 2);
  world->StartClock();
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Stay(0,
                                  [world](ThreadState&) {
                                    world->Spawn(0);
                                    world->Ready(1);
                                  }),
                      world->Work(1),
                      [world] {
                        world->Tick(1);
                        world->AwaitDone();
                        world->AwaitSleeper();
                        world->Tick(2);
                      }},
          .finish = [world] { world->CheckAllRan(); }};
}

// The only worker blocks, and what it has unparked waits: a spare one is called, at the third look.
Case MonitorReplacesAWorkerThatBlocks() {
  auto world = MakeWorld(1, 2, Wakes::kDeferred, 2);
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Stay(0,
                                  [world](ThreadState&) {
                                    world->Spawn(0);
                                    world->Ready(1);
                                  }),
                      world->Spare(1),
                      [world] {
                        world->AwaitDone();
                        world->Tick(3);
                      }},
          .finish = [world] { world->CheckAllRan(); }};
}

// A worker is made to stand while its fiber pushes: either who makes it stand finds what was pushed, or who pushes sees that.
Case PushesWhileMadeToStand() {
  auto world = MakeWorld(2, 2, Wakes::kDeferred, 3);
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Stay(0,
                                  [world](ThreadState&) {
                                    world->Spawn(0);
                                    world->Ready(1);
                                  }),
                      world->Work(1),
                      [world] {
                        Worker& worker = *world->core().crew_.workers_[0];
                        Check(world->core().crew().StandUp(worker), "it is seated");
                        world->core().HandOver(worker.queue());
                      }},
          .finish = [world] { world->CheckAllRan(); }};
}

// A worker is made to stand by a monitor that has seen it stay, when it has come back meanwhile and takes fibers, one and then a
// share of two: the first of these, if it finds itself standing, waits for the other, which somebody else has to run.
Case StandsBetweenFibers(bool is_spare_prepared) {
  auto world = MakeWorld(1, 3, Wakes::kDeferred, 3);
  world->Then(0, Ends);
  world->Then(1, [world](ThreadState& thread) {
    if (!static_cast<Worker*>(thread.worker)->is_standing()) return;
    Await(world->fiber(2), [world] { return world->has_ended(2); });
  });
  world->Then(2, Ends);
  for (int i = 0; i < 3; ++i) world->core().inject().Push(world->record(i));
  return {.threads = {world->Work(0), world->Spare(1),
                      [world, is_spare_prepared] {
                        Worker& worker = *world->core().crew_.workers_[0];
                        for (int i = 0; is_spare_prepared && i < 2; ++i) world->core().crew().PrepareSpare();
                        if (!world->core().crew().StandUp(worker)) return;
                        world->core().HandOver(worker.queue());
                        world->core().crew().FillSeats();
                      }},
          .finish = [world] {
            world->CheckAllRan();
            world->CheckSeats();
            Check(world->core().crew().threads() <= 1, "a thread was made for somebody who was there");
          }};
}
Case MadeToStandBetweenFibers() { return StandsBetweenFibers(false); }

// The same, where a thread is made for the spare worker beforehand, once, though it may begin late.
Case SpareIsPrepared() { return StandsBetweenFibers(true); }

// A fiber blocks until another has run, which was behind it on the only worker. The two threads then have one seat, which the
// first wants back while the other rests, or the other way round.
Case BlockingHandsOverAndComesBack() {
  auto world = MakeWorld(1, 3, Wakes::kDeferred, 2);
  world->Then(0, [world](ThreadState& thread) {
    world->Ready(1);
    world->core().BeginBlocking(thread);
    Await(world->fiber(1), [world] { return world->has_ended(1); });
    world->core().EndBlocking(thread);
    world->Ready(2);
  });
  world->Then(1, Ends);
  world->Then(2, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Spare(1)}, .finish = [world] {
            world->CheckAllRan();
            world->CheckSeats();
          }};
}

// One that blocked when it ran last blocks again, until another has run, which is in line behind it or comes from outside.
// Whoever takes it gives up the seat first.
Case BlockerIsGivenWayTo() {
  auto world = MakeWorld(1, 3, Wakes::kDeferred, 2);
  world->record(1).set_blocker(true);
  world->Then(0, [world](ThreadState&) { world->Ready(1); });
  world->Then(1, [world](ThreadState&) {
    Await(world->fiber(2), [world] { return world->has_ended(2); });
  });
  world->Then(2, Ends);
  world->core().inject().Push(world->record(0));
  return {.threads = {world->Work(0), world->Spare(1), [world] { world->Ready(2); }}, .finish = [world] {
            world->CheckAllRan();
            world->CheckSeats();
          }};
}

// The same, where all three are in line from the beginning.
Case BlockerIsInLine() {
  auto world = MakeWorld(1, 3, Wakes::kDeferred, 2);
  world->record(1).set_blocker(true);
  world->Then(0, Ends);
  world->Then(1, [world](ThreadState&) {
    Await(world->fiber(2), [world] { return world->has_ended(2); });
  });
  world->Then(2, Ends);
  for (int i = 0; i < 3; ++i) world->core().inject().Push(world->record(i));
  return {.threads = {world->Work(0), world->Spare(1)}, .finish = [world] {
            world->CheckAllRan();
            world->CheckSeats();
          }};
}

// Two workers, both of which block, and one spare thread: whoever comes back first finds a free seat, or the spare in it.
Case TwoBlockAtOnce() {
  auto world = MakeWorld(2, 2, Wakes::kDeferred, 3);
  for (int i = 0; i < 2; ++i) {
    world->Then(i, [world](ThreadState& thread) {
      world->core().BeginBlocking(thread);
      world->core().EndBlocking(thread);
    });
    world->core().inject().Push(world->record(i));
  }
  return {.threads = {world->Work(0), world->Work(1), world->Spare(2)}, .finish = [world] {
            world->CheckAllRan();
            world->CheckSeats();
          }};
}

// Nobody has anything to do, and the monitor goes to sleep while a fiber comes from outside: when that runs, the monitor is
// awake, or about to be.
Case MonitorSleepsOnlyWhileAllAreIdle() {
  auto world = MakeWorld(1, 1);
  world->Then(0, [world](ThreadState&) {
    Await(world->asleep(), [world] { return world->has_monitor_come_back(); });
  });
  return {.threads = {world->Work(0), [world] { world->Ready(0); },
                      [world] {
                        world->core().monitor().Sleep();
                        world->MonitorIsBack();
                      }},
          .finish = [world] { world->CheckAllRan(); }};
}

// A seat more, which is taken back while two have theirs: one stands up and rests, and nothing is left behind.
Case SeatsAreTakenBack() {
  auto world = MakeWorld(1, 2, Wakes::kDeferred, 2);
  world->Then(0, Ends);
  world->Then(1, Ends);
  return {.threads = {world->Work(0), world->Spare(1),
                      [world] {
                        Crew& crew = world->core().crew();
                        crew.AddSeats(1);
                        world->Ready(0);
                        crew.FillSeats();
                        crew.AddSeats(-1);
                        world->core().InterruptSleeper();
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
      {"SuccessorIsWantedByTwo", SuccessorIsWantedByTwo, 3},
      {"SearcherStaysInAFiber", SearcherStaysInAFiber, 1},
      {"QueuesOverflow", QueuesOverflow, 2},
      {"YieldMeetsASleeper", YieldMeetsASleeper, 2},
      {"YielderGoesBehindOthers", YielderGoesBehindOthers, 2},
      {"YieldersAreSeenToWait", YieldersAreSeenToWait, 2},
      {"YieldLeavesTheTurnToTheThread", YieldLeavesTheTurnToTheThread, 2},
      {"FibersSleep", FibersSleep, 2},
      {"DeadlineOfAWorkerThatStays", DeadlineOfAWorkerThatStays, 2},
      {"SourceIsInstalled", SourceIsInstalled, 2},
      {"MonitorWakesForAWorkerThatStays", MonitorWakesForAWorkerThatStays, 2},
      {"MonitorReplacesAWorkerThatBlocks", MonitorReplacesAWorkerThatBlocks, 2},
      {"PushesWhileMadeToStand", PushesWhileMadeToStand, 2},
      {"MadeToStandBetweenFibers", MadeToStandBetweenFibers, 2},
      {"SpareIsPrepared", SpareIsPrepared, 2},
      {"BlockingHandsOverAndComesBack", BlockingHandsOverAndComesBack, 2},
      {"BlockerIsGivenWayTo", BlockerIsGivenWayTo, 1},
      {"BlockerIsInLine", BlockerIsInLine, 2},
      {"TwoBlockAtOnce", TwoBlockAtOnce, 2},
      {"MonitorSleepsOnlyWhileAllAreIdle", MonitorSleepsOnlyWhileAllAreIdle, 2},
      {"SeatsAreTakenBack", SeatsAreTakenBack, 1},
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
std::unique_ptr<ThreadState> NewThreadState() { return std::make_unique<ThreadState>(); }
void AdoptThreadState(std::unique_ptr<ThreadState>) {}
void BecomeWorker(ThreadState&, Scheduler&, void*) {}
void StopBeingWorker(ThreadState&) {}
void GiveStacks(ThreadState&) {}
void WakeBound(Record&) {}
Identity IdentifyUnheld(Record&) { return {}; }
AlternateStack::AlternateStack() = default;
AlternateStack::~AlternateStack() = default;
void InstallOverflowHandler() {}
void RefuseShadowStacks() {}
void CallInForkedChildren(void (*)()) {}
sigset_t ProgramSignals() { return {}; }
void BlockSignals(const sigset_t&) {}
void LeaveSignalsBlocked() {}
uint64_t ForkGeneration() { return 0; }
void LeaveInFork(ThreadState&) {}
ThreadState* ThisThreadOrNull() { return nullptr; }
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

// A thread that stays in its fiber waits in the kernel.
ThreadProbe::ThreadProbe(pthread_t, pid_t, const fiber::internal::ThreadState& state) : tid_(0), state_(state) {}
int64_t ThreadProbe::CpuNs() const { return 0; }
char ThreadProbe::State() const { return 'S'; }
std::optional<Stall> ThreadProbe::Describe(Stall::Kind, absl::Duration, absl::Duration) const { return std::nullopt; }
int StallLog::PlaceFor(const std::source_location&, int64_t) const { return -1; }
StallReporter::StallReporter(Hook hook) : hook_(std::move(hook)), is_logging_(false) {}
StallReporter::~StallReporter() = default;
void StallReporter::Tell(Stall, int64_t) {}

void Trimmer::Step(int64_t, uint64_t) {}
int64_t Trimmer::NextDue(int64_t, uint64_t) const { return kNeverNs; }
size_t CgroupMemoryMax(const CgroupSources&) { return SIZE_MAX; }
int UsableCpus(const CpuSources&) { return 2; }
absl::StatusOr<std::optional<int>> WorkersFromEnv(const char*) { return std::nullopt; }

}  // namespace sched::internal
