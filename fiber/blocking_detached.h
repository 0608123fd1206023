// SPDX-License-Identifier: Apache-2.0
//
// Calls that hold up their thread, made elsewhere.
//
//   absl::StatusOr<Image> Load(std::string path) {
//     return fiber::BlockingDetached([path = std::move(path)] { return DecodeImage(path); }, absl::Seconds(2));
//   }
//
// A fiber that calls what blocks (a library's query, a lock of another process, a big computation) holds up its worker and
// the fibers behind it. BlockingDetached() has a thread of a pool make the call, while the fiber parks.
//
// The pool belongs to the process. It has 64 threads at most (SetMaxDetachedThreads()), started as they are wanted, with
// stacks of the default size for threads; those that nobody wants for 2 s end. When all are busy, who comes waits, first come
// first served. Signals meant for the process do not go to them.
#ifndef WEFT_FIBER_BLOCKING_DETACHED_H_
#define WEFT_FIBER_BLOCKING_DETACHED_H_

#include <concepts>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/pooled_call.h"
#include "fiber/internal/wait.h"

namespace fiber {

namespace internal {

// What BlockingDetached() returns for a function that returns R.
template <class R>
struct DetachedResult {
  using type = absl::StatusOr<R>;
};
template <>
struct DetachedResult<void> {
  using type = absl::Status;
};
template <>
struct DetachedResult<absl::Status> {
  using type = absl::Status;
};
template <class T>
struct DetachedResult<absl::StatusOr<T>> {
  using type = absl::StatusOr<T>;
};
template <class F>
using DetachedResultOf =
    typename DetachedResult<std::remove_cvref_t<std::invoke_result_t<F>>>::type;

template <class F>
DetachedResultOf<F> CallForResult(F fn) {
  if constexpr (std::is_void_v<std::invoke_result_t<F>>) {
    std::move(fn)();
    return absl::OkStatus();
  } else {
    return std::move(fn)();
  }
}

// Whether the caller's scheduler is a simulation.
bool IsSimulated();
// For the log: nobody is there any more whom it could be thrown to.
void LogUnwanted(const std::exception_ptr& error);

template <class F>
class DetachedCall final : public PooledCall {
 public:
  explicit DetachedCall(F fn) : fn_(std::move(fn)) {}

  // Once it was made.
  DetachedResultOf<F> Take() {
    if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
    return *std::move(result_);
  }

 private:
  void Make() noexcept override {
    try {
      result_.emplace(CallForResult<F>(std::move(*fn_)));
    } catch (...) {
      error_ = std::current_exception();
    }
    fn_.reset();  // what it captured is gone before anybody hears of the end
  }
  void OnUnwanted() noexcept override {
    if (error_ != nullptr) LogUnwanted(error_);
  }

  std::optional<F> fn_;
  std::optional<DetachedResultOf<F>> result_;
  std::exception_ptr error_;
};

}  // namespace internal

// Has a thread of the pool call `fn`, which owns what it captures, and waits for what it returns: an absl::StatusOr of it, or
// an absl::Status if it returns nothing; what returns one of these already is returned as it is. What escapes `fn` is rethrown.
//
// The wait may end before the call: kCancelled, kDeadlineExceeded. A call that no thread has begun is then never made; one
// that is under way runs on, and what it comes to is destroyed on its thread, an exception with a line in the log. So `fn`
// must refer to nothing that may be gone by then, locals of the caller above all.
//
// Inside `fn` our primitives see a plain thread: waiting blocks it. It sees neither the caller's cancellation nor his
// deadlines, bound values or FiberLocals; what it makes of the latter is gone when it returns. `fn` must not wait for another
// BlockingDetached(), as netpoll::Resolve() is one: when all threads do, none is left.
//
// kResourceExhausted: not one thread can be had; if there are others, the call waits for one of them. Throws std::bad_alloc.
// Parks the fiber; blocks the thread when called from a plain one.
//
// In simulation `fn` is called by the caller itself, at once: no virtual time passes, and nothing ends it.
//
// Ends: exit() does not wait for calls under way, which go on while static objects are destroyed. A child of fork() has a pool
// of its own; a child that `fn` itself makes ends when it returns from `fn`.
template <std::invocable F>
internal::DetachedResultOf<F> BlockingDetached(F fn, Deadline deadline = {}) {
  if (absl::Status status = internal::CheckCaller(deadline); !status.ok()) return status;
  if (internal::IsSimulated()) return internal::CallForResult<F>(std::move(fn));
  std::unique_ptr<internal::PooledCall> pooled =
      std::make_unique<internal::DetachedCall<F>>(std::move(fn));
  absl::Status status = internal::RunPooled(pooled, deadline);
  if (!status.ok()) return status;
  return static_cast<internal::DetachedCall<F>&>(*pooled).Take();
}

// From now on at most `most` threads make such calls at a time, for all of the process; those above it go on with theirs. Never
// blocks. REQUIRES: most >= 1
void SetMaxDetachedThreads(int most);

}  // namespace fiber

#endif  // WEFT_FIBER_BLOCKING_DETACHED_H_
