// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_FIBER_CREW_H_
#define WEFT_TESTS_FIBER_CREW_H_

#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "fiber/go.h"
#include "fiber/wait_group.h"
#include "sched/run.h"

namespace fiber {

// Who does the same work at the same time in a threaded test of a primitive.
struct Crew {
  int workers = 0;  // of the runtime that runs the fibers; 0: there is none
  int fibers = 0;
  int threads = 0;
};

inline constexpr Crew kCrews[] = {
    {.threads = 4},
    {.workers = 1, .fibers = 8},
    {.workers = 2, .fibers = 8},
    {.workers = 4, .fibers = 8},
    {.workers = 2, .fibers = 4, .threads = 2},
};

// Calls body(0), body(1), … at the same time, one call for each of the crew, the fibers first.
// Blocks the thread until all have returned.
inline void RunCrew(const Crew& crew, absl::FunctionRef<void(int)> body) {
  std::vector<std::thread> threads;
  const auto run_fibers = [&] {
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < crew.fibers; ++i) fibers.push_back(Spawn([&body, i] { body(i); }));
    for (JoinHandle<void>& each : fibers) each.Join();
  };
  for (int i = 0; i < crew.threads; ++i) {
    threads.emplace_back([&body, i = crew.fibers + i] { body(i); });
  }
  if (crew.workers > 0) sched::Run({.workers = crew.workers}, run_fibers);
  for (std::thread& each : threads) each.join();
}

// The same from within a fiber, with fibers of its own runtime. Parks the fiber until all have
// returned.
inline void RunTogether(int fibers, int threads, absl::FunctionRef<void(int)> body) {
  WaitGroup left;  // a worker cannot wait for a thread that waits for it
  left.Add(threads);
  std::vector<std::thread> started;
  for (int i = 0; i < threads; ++i) {
    started.emplace_back([&body, &left, i = fibers + i] {
      body(i);
      left.Done();
    });
  }
  std::vector<JoinHandle<void>> spawned;
  for (int i = 0; i < fibers; ++i) spawned.push_back(Spawn([&body, i] { body(i); }));
  for (JoinHandle<void>& each : spawned) each.Join();
  left.Wait().IgnoreError();  // nothing ends it early
  for (std::thread& each : started) each.join();
}

}  // namespace fiber

#endif  // WEFT_TESTS_FIBER_CREW_H_
