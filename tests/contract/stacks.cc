// SPDX-License-Identifier: Apache-2.0
//
// A fiber that computes and one that is parked, for debuggers and profilers to look at.
#include <cstdlib>

#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/park.h"
#include "fiber/internal/thread_state.h"
#include "sched/run.h"

using fiber::internal::Record;
using fiber::internal::State;

extern "C" {
void* parked_context = nullptr;  // where the switch left the registers of the fiber that is parked

__attribute__((noinline)) void RunsHere(long count) {
  volatile long sum = 0;
  for (long i = 0; i < count; ++i) sum = sum + i;
}

__attribute__((noinline)) void ParksHere(fiber::Event& event) {
  if (!event.Wait().ok()) abort();
}
}

int main(int argc, char** argv) {
  const long count = argc > 1 ? atol(argv[1]) : 0;
  sched::Run({.workers = 1}, [count] {
    fiber::Event release;
    Record* record = nullptr;
    auto parked = fiber::Spawn([&] {
      record = fiber::internal::ThisThread().current;
      ParksHere(release);
    });
    while (record == nullptr || record->state.load(std::memory_order_acquire) != State::kParked) fiber::Yield();
    parked_context = record->context.load(std::memory_order_relaxed);
    RunsHere(count);
    release.Set();
    parked.Join();
  });
}
