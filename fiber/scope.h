// SPDX-License-Identifier: Apache-2.0
//
// Structured concurrency: fibers that do not outlive the block that started them.
#ifndef WEFT_FIBER_SCOPE_H_
#define WEFT_FIBER_SCOPE_H_

#include <atomic>
#include <concepts>
#include <exception>
#include <memory>
#include <optional>
#include <source_location>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/ambient.h"
#include "fiber/internal/cancel_node.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"

namespace fiber {

template <class T>
class Child;

namespace internal {
template <class F>
struct ScopeTask;
template <class F, class T>
struct ChildTask;
template <class T>
struct ChildState;
struct ChildEvent;
}  // namespace internal

// ScopeOptions bounds a scope.
struct ScopeOptions {
  Deadline deadline = {};   // ambient, for the children and for whoever made the scope
  CancelToken cancel = {};  // cancels it, as Cancel() does
  int max_running = 0;      // further children wait, unstarted, in the order of their spawns. 0: no limit; not negative
  std::string name = {};    // for messages
};

// Failure is one child's exception, or the Status it returned.
struct Failure {
  absl::Status status;           // of an exception: kUnknown, with what()
  std::exception_ptr exception;  // null: it returned `status`
  FiberId fiber = 0;
  std::string fiber_name;        // may be empty
  std::source_location site;     // where it was spawned
};

// Scope is where fibers are started that have ended when it ends. What they use is declared before it.
//
//   absl::Status FetchAll(std::span<const std::string> urls, std::vector<std::string>& pages) {
//     pages.resize(urls.size());
//     fiber::Scope scope({.deadline = absl::Seconds(5), .max_running = 8});
//     for (size_t i = 0; i < urls.size(); ++i) {
//       scope.Go([&, i] { return Fetch(urls[i], &pages[i]); });      // returns an absl::Status
//     }
//     return scope.Wait();                                           // the first failure, if any
//   }
//
// A failure is a child's exception, or a Status other than OK that it returns (as such, or in a StatusOr). The first one
// cancels the others; all are kept. What fails after the scope was cancelled does not change what Wait() says.
//
// While the scope lives, its cancellation and its deadline also end the parking calls of the fiber that made it: it may wait
// for its children's results as they do for each other. Once Wait() has begun they no longer do, but for the deadline, which
// bounds Wait() too. (With a Bind, DeadlineScope or CancelShield that was made later and still exists, the deadline holds
// until the scope is destroyed.)
//
// Who cancels the fiber that made the scope cancels the scope, and a scope inside another goes down with it, before Cancel()
// returns.
//
// Thread safety: made, waited for and destroyed by one fiber or thread, on its stack, inner scopes before outer ones. Go(),
// Spawn() and Cancel() by whoever knows that its Wait() does not return meanwhile: the fiber that made it, before that; children; others
// as long as a child lives that waits for them.
// Memory ordering: what children did is visible after Wait().
class Scope {
 public:
  // Throws std::bad_alloc. Never blocks.
  Scope() : Scope(ScopeOptions{}) {}
  explicit Scope(ScopeOptions options);
  // Cancels the children and joins them, unless Wait() has returned. Failures that nobody asked for are then logged, unless
  // an exception is passing or Cancel() was called. Parks the fiber; blocks the thread when called from a plain one.
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  // Starts a child that runs fn(), which returns nothing or an absl::Status; success leaves nothing behind. Throws
  // std::bad_alloc. Never blocks.
  template <std::invocable F>
  void Go(F fn, std::source_location site = std::source_location::current()) {
    Start(std::move(fn), nullptr, 0, site);
  }
  template <std::invocable F>
  void Go(FiberOptions options, F fn,
          std::source_location site = std::source_location::current()) {
    auto extras = internal::MakeExtras(std::move(options.name));
    Start(std::move(fn), std::move(extras), options.stack_bytes, site);
  }

  // Starts a child whose result is wanted. Throws std::bad_alloc. Never blocks.
  template <std::invocable F>
  Child<internal::ResultOf<F>> Spawn(F fn, std::source_location site = std::source_location::current());
  template <std::invocable F>
  Child<internal::ResultOf<F>> Spawn(FiberOptions options, F fn,
                                     std::source_location site = std::source_location::current());

  // Waits for all children. The first failure: its Status, or its exception is rethrown. kDeadlineExceeded: the scope's (or
  // an outer) deadline has passed; kCancelled: the caller was cancelled; the children were cancelled then, and have ended.
  // Parks the fiber; blocks the thread when called from a plain one.
  absl::Status Wait();

  // Wait(), but at `grace` cancels who is left, and joins them: kDeadlineExceeded then, unless there was a failure. Who
  // ignores that for a second is named in the log. Parks the fiber; blocks the thread when called from a plain one.
  absl::Status Drain(Deadline grace);

  // Cancels all children, present and future. Wait() then returns OK unless something failed before. The first cause stays.
  // Never blocks, but for what cancel callbacks do.
  void Cancel(const absl::Status& cause = absl::CancelledError("cancelled by its Scope"));

  // What failed, in the order of its end, but for what there was no memory to list. Never blocks. REQUIRES: Wait() or Drain()
  // has returned, or thrown.
  std::span<const Failure> failures() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return failures_; }

 private:
  template <std::invocable<Scope&> F>
  friend absl::Status WithScope(ScopeOptions options, F body);
  template <class F>
  friend struct internal::ScopeTask;
  template <class F, class T>
  friend struct internal::ChildTask;

  // A child's side. `member` is on its stack. What came of it is known to the scope before anybody else learns of it.
  void OnChildStart(internal::CancelNode::Member& member);
  void OnChildOutcome(absl::Status status, std::exception_ptr error);
  void OnChildEnd(internal::CancelNode::Member& member);

  template <class F>
  void Start(F fn, std::unique_ptr<internal::SpawnExtras> extras, size_t stack_bytes, std::source_location site);
  template <class F>
  Child<internal::ResultOf<F>> StartChild(F fn, std::unique_ptr<internal::SpawnExtras> extras,
                                          size_t stack_bytes, std::source_location site);
  template <class Task>
  void StartTask(Task task, std::unique_ptr<internal::SpawnExtras> extras, size_t stack_bytes,
                 std::source_location site);
  void Enlist(std::source_location site);
  void Withdraw() { unfinished_.Done(); }
  // The scope's deadline is the child's, wherever it was started. Throws std::bad_alloc.
  void Bound(internal::Record& child);
  void Queue(internal::Record& child);

  void CheckOwner(const char* operation) const;
  // The owner is no longer under the scope's cancellation.
  void LeaveNode();
  // Joins all. What interrupted the waiting, after which the children were cancelled; or OK.
  absl::Status JoinAll(Deadline grace);
  void Close();
  absl::Status Result(absl::Status interrupted);
  void LogUnseen();
  void KeepFailure(const absl::Status& status, const std::exception_ptr& error);
  // The same without memory: the first is kept, others are left out.
  void KeepBareFailure(absl::Status status, std::exception_ptr error);
  bool HasFailedLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return first_failure_.has_value() || bare_failure_.has_value();
  }
  const Failure& FirstFailureLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return first_failure_.has_value() ? failures_[*first_failure_] : *bare_failure_;
  }
  // After Wait().
  bool HasFailed() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return HasFailedLocked(); }

  const ScopeOptions options_;
  internal::WaitBlock& owner_;
  internal::CancelNode* const outer_node_;  // what the owner was under
  internal::CancelNode* const node_;
  internal::CancelNode::Member member_;
  CancelCallback on_cancel_;
  const int uncaught_;  // exceptions, when it was made
  internal::Ambient* ambient_ = nullptr;    // the owner's element with its deadline; null: it is taken away again
  bool is_under_node_ = true;
  bool is_closed_ = false;
  internal::Atomic<bool> is_cancelled_by_user_{false};

  WaitGroup unfinished_;
  internal::SpinLock queue_lock_;
  int running_ ABSL_GUARDED_BY(queue_lock_) = 0;
  internal::Record* first_pending_ ABSL_GUARDED_BY(queue_lock_) = nullptr;
  internal::Record* last_pending_ ABSL_GUARDED_BY(queue_lock_) = nullptr;
  Mutex mu_;
  std::vector<Failure> failures_ ABSL_GUARDED_BY(mu_);
  std::optional<size_t> first_failure_ ABSL_GUARDED_BY(mu_);  // of those before the scope was cancelled
  std::optional<Failure> bare_failure_ ABSL_GUARDED_BY(mu_);  // in its place, if there was no memory to list it
};

namespace internal {

// What a child left.
template <class T>
struct ChildState {
  Event done;
  std::atomic<FiberId> fiber{0};  // once it runs
  Outcome<T> outcome;
};

// Whether what a child returned is a failure.
inline absl::Status StatusOfResult(const absl::Status& result) { return result; }
template <class T>
absl::Status StatusOfResult(const absl::StatusOr<T>& result) {
  return result.status();
}
template <class T>
absl::Status StatusOfResult(const T&) {
  return absl::OkStatus();
}

template <class F>
struct ScopeTask {
  Scope* scope;
  std::optional<F> fn;  // destroyed before the scope hears of the end

  void operator()() {
    CancelNode::Member member;
    scope->OnChildStart(member);
    absl::Status status;
    std::exception_ptr error;
    try {
      if constexpr (std::is_same_v<ResultOf<F>, absl::Status>) {
        status = (*std::move(fn))();
      } else {
        static_assert(std::is_void_v<std::invoke_result_t<F>>,
                      "a child of Scope::Go returns nothing or an absl::Status: for others, Scope::Spawn");
        (*std::move(fn))();
      }
    } catch (...) {
      error = std::current_exception();
    }
    fn.reset();
    DropValues(CallersBlock());  // before it can be cancelled by its own failure
    scope->OnChildOutcome(std::move(status), std::move(error));
    scope->OnChildEnd(member);
  }
};

template <class F, class T>
struct ChildTask {
  Scope* scope;
  std::optional<F> fn;
  std::shared_ptr<ChildState<T>> state;

  void operator()() {
    CancelNode::Member member;
    scope->OnChildStart(member);
    state->fiber.store(CurrentId(), std::memory_order_relaxed);
    absl::Status status;
    try {
      if constexpr (std::is_void_v<T>) {
        (*std::move(fn))();
      } else {
        state->outcome.value.emplace((*std::move(fn))());
        status = StatusOfResult(*state->outcome.value);
      }
    } catch (...) {
      state->outcome.error = std::current_exception();
    }
    fn.reset();
    DropValues(CallersBlock());  // before whoever joins it goes on
    scope->OnChildOutcome(std::move(status), state->outcome.error);
    state->done.Set();
    state.reset();
    scope->OnChildEnd(member);
  }
};

}  // namespace internal

namespace internal {
struct ChildEvent {
  template <class T>
  static Event& Get(Child<T>& child) {
    return child.Checked("OnJoin").done;
  }
  static void WaitForEnd(Event& done) { done.WaitUninterrupted(); }
};
}  // namespace internal

// Child is the right to the result of a child of a scope, which may have ended meanwhile.
//
// Thread safety: one fiber or thread at a time.
template <class T>
class Child {
 public:
  Child() = default;
  Child(Child&&) noexcept = default;
  Child& operator=(Child&&) noexcept = default;

  // What it returned; rethrows what escaped it. Once. Waits until it has ended, even if the caller is cancelled: its scope
  // is cancelled then too, unless that is somebody else's. Parks the fiber; blocks the thread when called from a plain one.
  // REQUIRES: not by the child itself, nor by one whose end it has to await before it may start (max_running).
  T Join() {
    CheckJoinable("Join");
    // Whoever cancels the caller cancels the scope, and so the child. No shield: behind one the scope would not be found.
    internal::ChildEvent::WaitForEnd(Checked("Join").done);
    const std::shared_ptr<internal::ChildState<T>> taken = std::move(state_);
    if (taken->outcome.error != nullptr) std::rethrow_exception(taken->outcome.error);
    if constexpr (!std::is_void_v<T>) return *std::move(taken->outcome.value);
  }

  // Waits until it has ended; its result stays for Join(). kDeadlineExceeded, kCancelled: it has not, or this call came too late, or
  // in a fiber that is cancelled (is_done() tells). Parks the fiber; blocks the thread when called from a plain one.
  // REQUIRES: not by the child itself.
  [[nodiscard]] absl::Status Wait(Deadline deadline = {}) {
    CheckJoinable("Wait");
    return Checked("Wait").done.Wait(deadline);
  }

  // Never blocks.
  bool is_done() const { return Checked("is_done").done.is_set(); }
  // Whether there is a result to be had. Never blocks.
  bool is_valid() const { return state_ != nullptr; }

 private:
  friend class Scope;
  friend struct internal::ChildEvent;

  explicit Child(std::shared_ptr<internal::ChildState<T>> state) : state_(std::move(state)) {}

  internal::ChildState<T>& Checked(const char* operation) const {
    if (state_ == nullptr) internal::Fatal("Child::%s on an empty one (joined or moved from)", operation);
    return *state_;
  }
  void CheckJoinable(const char* operation) const {
    if (const FiberId id = CurrentId(); id != 0 && Checked(operation).fiber.load(std::memory_order_relaxed) == id) {
      internal::Fatal("fiber %llu joins itself (Child::%s)", static_cast<unsigned long long>(id), operation);
    }
  }

  std::shared_ptr<internal::ChildState<T>> state_;
};

template <class Task>
void Scope::StartTask(Task task, std::unique_ptr<internal::SpawnExtras> extras, size_t stack_bytes,
                      std::source_location site) {
  Enlist(site);
  internal::Record* child = nullptr;
  try {
    child = &internal::MakeFiber<internal::DetachedTask<Task>>(nullptr, extras.release(), stack_bytes,
                                                               std::move(task), site,
                                                               internal::kJoinDetached);
    Bound(*child);
  } catch (...) {
    if (child != nullptr) {
      internal::TaskStorage<internal::DetachedTask<Task>>::Destroy(*child);
      internal::DropFiber(*child);
    }
    Withdraw();
    throw;
  }
  Queue(*child);
}

template <class F>
void Scope::Start(F fn, std::unique_ptr<internal::SpawnExtras> extras, size_t stack_bytes,
                  std::source_location site) {
  StartTask(internal::ScopeTask<F>{this, std::move(fn)}, std::move(extras), stack_bytes, site);
}

template <class F>
Child<internal::ResultOf<F>> Scope::StartChild(F fn, std::unique_ptr<internal::SpawnExtras> extras,
                                               size_t stack_bytes, std::source_location site) {
  using T = internal::ResultOf<F>;
  auto state = std::make_shared<internal::ChildState<T>>();
  Child<T> child(state);
  StartTask(internal::ChildTask<F, T>{this, std::move(fn), std::move(state)}, std::move(extras), stack_bytes, site);
  return child;
}

template <std::invocable F>
Child<internal::ResultOf<F>> Scope::Spawn(F fn, std::source_location site) {
  return StartChild(std::move(fn), nullptr, 0, site);
}
template <std::invocable F>
Child<internal::ResultOf<F>> Scope::Spawn(FiberOptions options, F fn, std::source_location site) {
  auto extras = internal::MakeExtras(std::move(options.name));
  return StartChild(std::move(fn), std::move(extras), options.stack_bytes, site);
}

// Runs body(scope), then Wait(): the form in which it cannot be forgotten. A Status other than OK that `body` returns
// cancels the scope, and is returned unless a child failed before. Parks the fiber; blocks the thread when called from a
// plain one.
//
//   absl::Status status = fiber::WithScope({.deadline = absl::Seconds(1)}, [&](fiber::Scope& scope) {
//     scope.Go([&] { return Left(); });
//     scope.Go([&] { return Right(); });
//   });
template <std::invocable<Scope&> F>
absl::Status WithScope(ScopeOptions options, F body) {
  using Result = std::remove_cvref_t<std::invoke_result_t<F, Scope&>>;
  static_assert(std::is_void_v<Result> || std::is_same_v<Result, absl::Status>,
                "the body returns nothing or an absl::Status: others it puts into what it captures");
  Scope scope(std::move(options));
  if constexpr (std::is_same_v<Result, absl::Status>) {
    absl::Status status = body(scope);
    if (!status.ok()) scope.Cancel(status);
    absl::Status joined = scope.Wait();
    return status.ok() || scope.HasFailed() ? joined : status;
  } else {
    body(scope);
    return scope.Wait();
  }
}

}  // namespace fiber

#endif  // WEFT_FIBER_SCOPE_H_
