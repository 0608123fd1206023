// SPDX-License-Identifier: Apache-2.0
#include "tests/contract/moving.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "sched/run.h"
#include "tests/contract/cases.h"

namespace contract {
namespace {

using fiber::internal::Record;
using fiber::internal::State;

std::mutex mutex;  // never held across a park
Outcome outcome;   // guarded by mutex

// Not gettid: a function that returns the same to whoever calls it twice.
__attribute__((noinline)) const void* Thread() { return &fiber::internal::ThisThread(); }

}  // namespace

// The fiber holds its worker until a helper runs on another one. That unparks it, as soon as it has parked, into its own
// worker's next-slot. (An idle worker may be faster: then once more.)
void Move() {
  const void* from = Thread();
  while (Thread() == from) {
    Record& self = *fiber::internal::ThisThread().current;
    std::atomic<bool> is_elsewhere = false;
    fiber::Event unparked;
    auto helper = fiber::Spawn([&] {
      is_elsewhere.store(true, std::memory_order_release);
      while (self.state.load(std::memory_order_acquire) != State::kParked) std::this_thread::yield();
      unparked.Set();
    });
    while (!is_elsewhere.load(std::memory_order_acquire)) std::this_thread::yield();
    HOLDS(unparked.Wait().ok());
    helper.Join();
  }
}

void Check(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  std::lock_guard<std::mutex> hold(mutex);
  absl::StrAppend(&outcome.failures, file, ":", line, ": does not hold: ", what, "\n");
}

void Note(std::string text) {
  std::lock_guard<std::mutex> hold(mutex);
  if (outcome.notes.find(text) == std::string::npos) absl::StrAppend(&outcome.notes, text, "\n");
}

Outcome Run(const Case& named) {
  constexpr int kRounds = 5;
  outcome = Outcome{};
  sched::Run({.workers = 2 * kFibers + 1}, [&named] {
    std::vector<fiber::JoinHandle<void>> fibers;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(fiber::Spawn([&named] {
        for (int round = 0; round < kRounds; ++round) named.body();
      }));
    }
    for (auto& each : fibers) {
      try {
        each.Join();
      } catch (...) {
        HOLDS(!"an exception escaped the case");
      }
    }
  });
  if (named.after != nullptr) named.after();
  return std::exchange(outcome, Outcome{});
}

}  // namespace contract
