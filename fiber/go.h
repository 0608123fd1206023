// SPDX-License-Identifier: Apache-2.0
//
// Start fibers.
//
//   fiber::Go([] { Serve(); });                                     // detached
//
//   auto answer = fiber::Spawn([] { return Compute(); });           // joined: the value, or the exception
//   Use(answer.Join());
//
// Spawning never parks and takes no stack: a fiber gets one at its first run. One that finds none free stays unstarted
// until there is. From a plain thread the one running runtime is used; with none or several that is a bug, which ends the
// process with a message, and so it is when that runtime ends before the fiber is queued. sched::Runtime::Go says which one
// is meant.
#if __cplusplus < 202002L
#error "Weft is C++20: build with -std=c++20 (Bazel: build --cxxopt=-std=c++20)"
#endif
#ifndef WEFT_FIBER_GO_H_
#define WEFT_FIBER_GO_H_

#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/join.h"
#include "fiber/internal/spawn.h"
#include "fiber/this_fiber.h"

namespace fiber {

// FiberOptions describes a fiber that is not like the others.
struct FiberOptions {
  std::string name = {};   // shown by messages and dumps
  size_t stack_bytes = 0;  // rounded up to a class: 64 KiB, 256 KiB, 1 MiB, 8 MiB; more ends the process. 0: the default
};

template <class T>
class JoinHandle;

namespace internal {
struct RecordOf;
template <class F>
using ResultOf = std::remove_cvref_t<std::invoke_result_t<F>>;

template <class F>
void GoOn(Scheduler* scheduler, F fn, std::source_location site);
template <class F>
void GoOn(Scheduler* scheduler, FiberOptions options, F fn, std::source_location site);
template <class F>
JoinHandle<ResultOf<F>> SpawnOn(Scheduler* scheduler, F fn, std::source_location site);
template <class F>
JoinHandle<ResultOf<F>> SpawnOn(Scheduler* scheduler, FiberOptions options, F fn,
                                std::source_location site);
}  // namespace internal

// Starts a fiber that runs fn() and is not joined. An exception that escapes it ends the process, with a message that
// names the fiber and its spawn site. Throws std::bad_alloc when there is no memory for its record. Never blocks.
template <std::invocable F>
void Go(F fn, std::source_location site = std::source_location::current()) {
  internal::GoOn(nullptr, std::move(fn), site);
}
template <std::invocable F>
void Go(FiberOptions options, F fn, std::source_location site = std::source_location::current()) {
  internal::GoOn(nullptr, std::move(options), std::move(fn), site);
}

// Starts a fiber that runs fn(), and returns the handle to what it returns or throws. Throws std::bad_alloc when there
// is no memory for its record. Never blocks.
template <std::invocable F>
JoinHandle<internal::ResultOf<F>> Spawn(
    F fn, std::source_location site = std::source_location::current()) {
  return internal::SpawnOn(nullptr, std::move(fn), site);
}
template <std::invocable F>
JoinHandle<internal::ResultOf<F>> Spawn(
    FiberOptions options, F fn, std::source_location site = std::source_location::current()) {
  return internal::SpawnOn(nullptr, std::move(options), std::move(fn), site);
}

// JoinHandle is the right to a fiber's outcome: the value its function returned, or the exception that escaped.
//
// Dropping it (or assigning over it) cancels the fiber and joins it, like std::jthread, so that a child does not
// outlive what it refers to by accident; the outcome is then dropped, an exception too. Detach() gives it up instead.
//
// Thread safety: one fiber or thread at a time; Cancel(), is_done() and id() from anywhere while the handle stays put and neither Join()
// nor Detach() has begun.
// Memory ordering: what the fiber did happens before Join() or Wait() returns.
template <class T>
class [[nodiscard]] JoinHandle {
 public:
  JoinHandle() = default;
  JoinHandle(JoinHandle&& other) noexcept : fiber_(std::exchange(other.fiber_, nullptr)) {}
  JoinHandle& operator=(JoinHandle&& other) noexcept {
    if (this != &other) {
      Drop();
      fiber_ = std::exchange(other.fiber_, nullptr);
    }
    return *this;
  }
  // As the assignment: cancels and joins what it has. Parks the fiber; blocks the thread when called from a plain one.
  ~JoinHandle() { Drop(); }

  // The value the fiber returned, by value also where it returned a reference; rethrows what escaped it. A joiner that is
  // cancelled, or out of its ambient time, cancels the fiber and goes on waiting. The handle is empty afterwards. Parks the
  // fiber; blocks the thread when called from a plain one.
  // REQUIRES: is_valid(), and not by the fiber itself.
  T Join() {
    internal::JoinOrCancel(Checked("Join"));
    return Take();
  }

  // Waits until the fiber has ended; its outcome stays for Join(). kDeadlineExceeded or kCancelled: it has not, or this call came too
  // late, or in a fiber that is cancelled (is_done() tells). Parks the fiber; blocks the thread when called from a plain one.
  // REQUIRES: is_valid(), and not by the fiber itself.
  absl::Status Wait(Deadline deadline = {}) {
    internal::CheckJoinable(Checked("Wait"), "Wait");
    return internal::WaitDone(*fiber_, deadline);
  }

  // Cancels the fiber: from now on, one under way included, its parking calls that can fail return kCancelled with the
  // cause's message; kDeadlineExceeded if that is the cause. A fiber that has not started still starts. The first cause
  // stays. Never blocks.
  // REQUIRES: is_valid().
  void Cancel(absl::Status cause = absl::CancelledError("cancelled by its JoinHandle")) {
    internal::Cancel(Checked("Cancel"), cause);
  }

  // Lets the fiber go on alone, as if started by Go(): an exception that escapes it, or has escaped it already, ends
  // the process. The handle is empty afterwards. Never blocks. REQUIRES: is_valid().
  void Detach() {
    internal::DetachFiber(Checked("Detach"));
    fiber_ = nullptr;
  }

  // Whether there is a fiber to join. Never blocks.
  bool is_valid() const { return fiber_ != nullptr; }
  // Whether the fiber has ended. Never blocks. REQUIRES: is_valid().
  bool is_done() const { return internal::IsDone(Checked("is_done")); }
  // Zero if there is none. Never blocks.
  FiberId id() const {
    return fiber_ == nullptr ? 0 : fiber_->id.load(std::memory_order_relaxed);
  }

 private:
  friend struct internal::RecordOf;
  template <class F>
  friend JoinHandle<internal::ResultOf<F>> internal::SpawnOn(Scheduler*, F, std::source_location);
  template <class F>
  friend JoinHandle<internal::ResultOf<F>> internal::SpawnOn(Scheduler*, FiberOptions, F,
                                                             std::source_location);

  explicit JoinHandle(internal::Record& fiber) : fiber_(&fiber) {}

  internal::Record& Checked(const char* operation) const {
    if (fiber_ == nullptr) {
      internal::Fatal("JoinHandle::%s on an empty handle (joined, detached or moved from)", operation);
    }
    return *fiber_;
  }

  T Take() {
    // Frees the record however this returns.
    struct Releaser {
      internal::Record& fiber;
      ~Releaser() { internal::ReleaseFiber(fiber); }
    } releaser{*std::exchange(fiber_, nullptr)};
    internal::Outcome<T>& outcome = internal::OutcomeOf<T>(releaser.fiber);
    if (outcome.error != nullptr) {
      std::rethrow_exception(std::exchange(outcome.error, nullptr));
    }
    if constexpr (!std::is_void_v<T>) return *std::move(outcome.value);
  }

  void Drop() {
    if (fiber_ == nullptr) return;
    internal::CancelAndJoin(*fiber_);
    internal::OutcomeOf<T>(*fiber_).error = nullptr;
    internal::ReleaseFiber(*std::exchange(fiber_, nullptr));
  }

  internal::Record* fiber_ = nullptr;
};

namespace internal {

template <class F>
void GoOn(Scheduler* scheduler, F fn, std::source_location site) {
  StartFiber(MakeFiber<DetachedTask<F>>(scheduler, nullptr, 0, std::move(fn), site, kJoinDetached));
}

template <class F>
void GoOn(Scheduler* scheduler, FiberOptions options, F fn, std::source_location site) {
  auto extras = MakeExtras(std::move(options.name));
  StartFiber(MakeFiber<DetachedTask<F>>(scheduler, extras.release(), options.stack_bytes,
                                        std::move(fn), site, kJoinDetached));
}

template <class F>
JoinHandle<ResultOf<F>> SpawnOn(Scheduler* scheduler, F fn, std::source_location site) {
  Record& fiber =
      MakeFiber<JoinedTask<F, ResultOf<F>>>(scheduler, nullptr, 0, std::move(fn), site, 0);
  StartFiber(fiber);
  return JoinHandle<ResultOf<F>>(fiber);
}

template <class F>
JoinHandle<ResultOf<F>> SpawnOn(Scheduler* scheduler, FiberOptions options, F fn,
                                std::source_location site) {
  auto extras = MakeExtras(std::move(options.name));
  Record& fiber = MakeFiber<JoinedTask<F, ResultOf<F>>>(scheduler, extras.release(),
                                                        options.stack_bytes, std::move(fn), site, 0);
  StartFiber(fiber);
  return JoinHandle<ResultOf<F>>(fiber);
}

}  // namespace internal
}  // namespace fiber

#endif  // WEFT_FIBER_GO_H_
