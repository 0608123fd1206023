// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_SPAWN_H_
#define WEFT_FIBER_INTERNAL_SPAWN_H_

#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>

#include "fiber/internal/record.h"

namespace fiber::internal {

// The smallest class with so many bytes. Ends the process if there is none.
StackClass StackClassFor(size_t bytes);

// A record for a fiber of `scheduler` (null: the caller's, or the one running runtime), with everything filled in but
// what it runs. `extras` may be null; `stack_bytes` 0: the default.
std::unique_ptr<SpawnExtras> MakeExtras(std::string name);

Record& NewFiber(Scheduler* scheduler, SpawnExtras* extras, size_t stack_bytes,
                 std::source_location site);
// Hands a complete record to its scheduler.
void StartFiber(Record& fiber);
// The record of a spawn that failed before StartFiber.
void DropFiber(Record& fiber);

// The runtime that a spawn from a plain thread means: the only one there is.
void RegisterScheduler(Scheduler& scheduler);
void UnregisterScheduler(Scheduler& scheduler);

// "fiber 3 'name' (spawned at x.cc:7) ended with an exception: what", then std::terminate().
[[noreturn]] void TerminateForEscaped(Record& fiber, std::exception_ptr error);

// What a joined fiber leaves: a value or an exception.
template <class T>
struct Outcome {
  std::optional<T> value;
  std::exception_ptr error;
};
template <>
struct Outcome<void> {
  std::exception_ptr error;
};

// TaskStorage keeps a Task in the record where it fits, else on the heap.
template <class Task>
struct TaskStorage {
  static constexpr bool kFits = sizeof(Task) <= sizeof(Record::storage) && alignof(Task) <= 8;

  template <class... Args>
  static void Emplace(Record& fiber, Args&&... args) {
    const bool has_extras = (fiber.flags & Record::kFlagHeapTask) != 0;
    if constexpr (kFits) {
      if (!has_extras) {
        new (static_cast<void*>(fiber.storage)) Task{std::forward<Args>(args)...};
        return;
      }
    }
    SpawnExtras* extras = has_extras ? fiber.extras() : nullptr;
    fiber.heap_task() = new Task{std::forward<Args>(args)...};
    fiber.extras() = extras;
    fiber.flags |= Record::kFlagHeapTask;
  }
  static Task& Of(Record& fiber) {
    return (fiber.flags & Record::kFlagHeapTask) != 0
               ? *static_cast<Task*>(fiber.heap_task())
               : *std::launder(reinterpret_cast<Task*>(fiber.storage));
  }
  static void Destroy(Record& fiber) {
    if ((fiber.flags & Record::kFlagHeapTask) != 0) {
      delete static_cast<Task*>(fiber.heap_task());
    } else {
      std::destroy_at(std::launder(reinterpret_cast<Task*>(fiber.storage)));
    }
  }
};

// A fiber nobody joins.
template <class F>
struct DetachedTask {
  F fn;

  static void Run(Record& fiber) {
    using Storage = TaskStorage<DetachedTask>;
    try {
      std::move(Storage::Of(fiber).fn)();
      Storage::Destroy(fiber);
    } catch (...) {
      TerminateForEscaped(fiber, std::current_exception());
    }
    fiber.run = nullptr;
  }
};

// A fiber with a handle. The outcome comes first, so that the handle finds it without knowing F.
template <class F, class T>
struct JoinedTask {
  Outcome<T> outcome;
  std::optional<F> fn;  // destroyed before the end is published

  static void Run(Record& fiber) {
    JoinedTask& task = TaskStorage<JoinedTask>::Of(fiber);
    try {
      if constexpr (std::is_void_v<T>) {
        std::move (*task.fn)();
      } else {
        task.outcome.value.emplace(std::move(*task.fn)());
      }
      task.fn.reset();
    } catch (...) {
      task.outcome.error = std::current_exception();
      task.fn.reset();
    }
    fiber.run = &Discard;
  }
  // Nobody wants the outcome: an exception in it has escaped.
  static void Discard(Record& fiber) {
    std::exception_ptr error =
        std::exchange(TaskStorage<JoinedTask>::Of(fiber).outcome.error, nullptr);
    if (error != nullptr) TerminateForEscaped(fiber, std::move(error));
    TaskStorage<JoinedTask>::Destroy(fiber);
    fiber.run = nullptr;
  }
};

template <class T>
Outcome<T>& OutcomeOf(Record& fiber) {
  return (fiber.flags & Record::kFlagHeapTask) != 0
             ? *static_cast<Outcome<T>*>(fiber.heap_task())
             : *std::launder(reinterpret_cast<Outcome<T>*>(fiber.storage));
}

template <class Task, class F>
Record& MakeFiber(Scheduler* scheduler, SpawnExtras* extras, size_t stack_bytes, F&& fn,
                  std::source_location site, uintptr_t join) {
  Record& fiber = NewFiber(scheduler, extras, stack_bytes, site);
  try {
    if constexpr (std::is_same_v<Task, DetachedTask<std::remove_cvref_t<F>>>) {
      TaskStorage<Task>::Emplace(fiber, std::forward<F>(fn));
    } else {
      TaskStorage<Task>::Emplace(fiber, typename std::remove_cvref_t<decltype(Task::outcome)>{},
                                 std::forward<F>(fn));
    }
  } catch (...) {
    DropFiber(fiber);
    throw;
  }
  fiber.run = &Task::Run;
  fiber.join.store(join, std::memory_order_relaxed);
  return fiber;
}

// The handle's side; JoinHandle is a typed face over these. `fiber` is a record the caller's handle keeps.
void CheckJoinable(Record& fiber, const char* operation);
void JoinOrCancel(Record& fiber);          // waits to the end; if the caller is cancelled, cancels and goes on waiting
void CancelAndJoin(Record& fiber);         // for destructors
void DetachFiber(Record& fiber);
void ReleaseFiber(Record& fiber);          // ended, and its outcome is taken: discards the task, frees the record

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_SPAWN_H_
