// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_RUNTIME_H_
#define WEFT_SCHED_RUNTIME_H_

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "sched/stall.h"

namespace sched {

// RuntimeOptions describes a runtime.
struct RuntimeOptions {
  // Worker threads. 0: the environment's WEFT_WORKERS, else the smaller of the CPUs this process may run on and the tightest
  // CPU quota of its control groups, rounded up. Less than 0 or more than 1024, or a WEFT_WORKERS that is no number from 1 to
  // 1024, ends the process. One worker is no substitute for a mutex: beside one that blocks, or computes for long, a spare
  // thread runs.
  int workers = 0;
  // Threads at most that run fibers or are held up by them: fiber::Blocking, system calls, computations without an end.
  // When it is reached the other fibers wait, which is said in the log. From 1 to 16384, or the process ends; with no more than
  // `workers` there are no spare threads.
  int max_threads = 512;
  // How long Run() and ~Runtime wait for cancelled fibers before they name the survivors and end the process.
  absl::Duration drain = absl::Seconds(10);
  // Stack of fibers that ask for none; rounded up to a class (64 KiB, 256 KiB, 1 MiB, 8 MiB). Address space only:
  // pages are committed as they are touched. More than 8 MiB ends the process. Up to four times as much in sanitizer builds, whose
  // frames are larger; what FiberOptions asks for is taken as it is.
  size_t default_stack_bytes = size_t{256} << 10;
  // Bound on the memory of stacks, in bytes: one page is counted for each that a fiber has, or that keeps its pages for the
  // next. Fibers beyond it wait unstarted until others end, which is said in the log. 0: half of the tightest memory limit of
  // the control groups, or none if there is none. Less than a page (4096) ends the process. Stacks belong to the process: the
  // runtime that was made last says for all.
  size_t max_stack_memory = 0;
  // Wake an idle worker at once for every fiber that becomes runnable. Otherwise those that its own worker makes runnable
  // may wait some 20 us for it to come by, so that workers are not woken for what is gone before they come; and if it
  // computes meanwhile, some milliseconds.
  bool eager_wake = false;
  // A fiber that has a worker to itself for so long, while others wait, is reported (sched/stall.h). One that computes gets a
  // spare thread beside it then, if it holds up everybody; one that blocks in the kernel as soon as that is seen.
  absl::Duration stall_after = absl::Milliseconds(10);
  // Called for each such stall, on a thread of its own, in place of the log: a test may fail there. It must neither throw nor
  // shut the runtime down. (The log tells of each spawn site once a minute at most, and of none with WEFT_STALL_LOG=0 in the
  // environment.)
  std::function<void(const Stall&)> on_stall = nullptr;
};

// Stats are counters of a runtime, consistent enough to watch it.
struct Stats {
  int workers = 0;              // threads that run fibers
  int threads = 0;              // the same, with those that fibers hold up, and spare ones that rest
  uint64_t fibers_spawned = 0;
  uint64_t fibers_live = 0;     // spawned and not ended
  uint64_t steals = 0;          // times a worker took another's fibers
  uint64_t worker_wakes = 0;    // times an idle worker was woken on purpose
  // Times a fiber that computed, or seemed to, since its thread had lost its CPU, held up all others: it got a spare thread beside
  // it, unless max_threads forbids those.
  uint64_t stalls_spinning = 0;
  // Times one that blocked its thread did, without fiber::Blocking. Of a fiber that did so when it ran last, for which others
  // were given its place beforehand: times it blocked for RuntimeOptions::stall_after.
  uint64_t stalls_blocked = 0;
};

namespace internal {
class Core;
}

// Runtime runs fibers on worker threads, for programs that keep their own main loop. Several may coexist, and be
// started and stopped repeatedly. sched::Run() is all that most programs need. What the first one changes in the process (signals,
// limits) stands in README.md, Limits.
//
//   sched::Runtime runtime({.workers = 2});
//   auto answer = runtime.Spawn([] { return Compute(); });      // from any thread
//   Use(answer.Join());                                         // blocks this thread
//   absl::Status status = runtime.Shutdown(absl::Seconds(5));   // cancel, drain
//
// Thread safety: Go, Spawn and stats from any thread; Shutdown and destruction by one, and not by a fiber of its own.
// Handles of its fibers are joined or dropped before it is destroyed.
class Runtime {
 public:
  // Starts the workers. Throws std::system_error, as std::thread does, with a message that names the limit, if not one thread can
  // be had, and std::bad_alloc; runs with fewer workers than asked for, and says so once, if only some can. Blocks the thread
  // while they start.
  Runtime();
  explicit Runtime(RuntimeOptions options);
  // Shutdown(options.drain). If fibers survive that, names them and ends the process. Blocks the thread.
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // fiber::Go and fiber::Spawn on this runtime; they throw std::bad_alloc likewise. Once it has stopped, a spawn ends the
  // process; so it does in a child of fork(), whose copies of runtimes are dead (docs/fork.md). Never blocks.
  template <std::invocable F>
  void Go(F fn, std::source_location site = std::source_location::current()) {
    fiber::internal::GoOn(scheduler(), std::move(fn), site);
  }
  template <std::invocable F>
  void Go(fiber::FiberOptions options, F fn,
          std::source_location site = std::source_location::current()) {
    fiber::internal::GoOn(scheduler(), std::move(options), std::move(fn), site);
  }
  template <std::invocable F>
  auto Spawn(F fn, std::source_location site = std::source_location::current()) {
    return fiber::internal::SpawnOn(scheduler(), std::move(fn), site);
  }
  template <std::invocable F>
  auto Spawn(fiber::FiberOptions options, F fn,
             std::source_location site = std::source_location::current()) {
    return fiber::internal::SpawnOn(scheduler(), std::move(options), std::move(fn), site);
  }

  // Cancels every fiber, waits until all have ended, and stops the workers. kDeadlineExceeded names the fibers that are
  // left, with what they wait for; the runtime then goes on and Shutdown may be called again. OK at once when it has
  // stopped before. kFailedPrecondition in a child of fork(). Blocks the thread.
  absl::Status Shutdown(fiber::Deadline deadline);

  // Never blocks.
  Stats stats() const;

 private:
  fiber::Scheduler* scheduler() const;

  internal::Core* const core_;
};

}  // namespace sched

#endif  // WEFT_SCHED_RUNTIME_H_
