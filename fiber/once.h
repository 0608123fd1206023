// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_ONCE_H_
#define WEFT_FIBER_ONCE_H_

#include <concepts>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_block.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

// Once does something the first time that anybody asks for it.
//
//   fiber::Once loaded;
//   …
//   loaded.Do([&] { LoadTables(); });           // whoever comes here: the tables are there
//
// If the function throws, whoever called it sees the exception and nothing counts as done: the next
// one tries, the one that has waited longest if somebody waits. For what it was to prepare is not
// there, and the others have not seen the exception. (In Go a panic counts as done: it is not meant
// to be survived.) OnceValue keeps the exception instead.
//
// Thread safety: any fiber, any thread; but not by the function itself, which would wait for its
// own end: that ends the process.
// Memory ordering: what the function did is visible after every Do().
// Lifetime: may be destroyed as soon as a Do() has returned, even while the one that ran the
// function is about to return; but no other call may be under way. Destroying it while somebody
// waits ends the process.
class Once {
 public:
  constexpr Once() = default;
  ~Once() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  Once(const Once&) = delete;
  Once& operator=(const Once&) = delete;

  // Calls `function` if no call of it has returned yet, or waits for the one that is under way.
  // Rethrows what it throws. Parks the fiber; blocks the thread when called from a plain one. Not
  // interrupted by cancellation.
  template <std::invocable F>
  void Do(F&& function) {
    if (is_done() || !Begin()) return;
    Turn turn(*this);
    std::invoke(std::forward<F>(function));
    turn.is_done = true;
  }

  // Whether a call has returned. Never blocks.
  bool is_done() const { return (word_.Load() & kDone) != 0; }

 private:
  static constexpr uint64_t kRunning = uint64_t{1} << internal::StateWord::kFirstBit;
  static constexpr uint64_t kDone = kRunning << 1;

  // A call of the function: over when it returns, or throws.
  struct Turn {
    explicit Turn(Once& its_once) : once(its_once) {}
    ~Turn() { once.End(is_done); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    Once& once;
    bool is_done = false;
  };

  // True: it is the caller's turn, which ends by End(). False: it is done.
  bool Begin();
  void End(bool is_done);
  [[noreturn]] void DieRecursive() const;
  [[noreturn]] void DieWithWaiters();

  // While the queue is unlocked, kHasWaiters implies kRunning, and kDone stands alone.
  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
  // Who runs the function: a fiber, or a plain thread, has the same block all the time.
  const internal::WaitBlock* runner_ ABSL_GUARDED_BY(word_) = nullptr;
};

// OnceValue is what a function returns, computed when somebody first asks for it. An exception that
// escapes it is kept like a value, and rethrown to all who ask.
//
//   fiber::OnceValue config([] { return ParseConfig("/etc/server.conf"); });
//   …
//   Listen(config().port);
//
// The function is destroyed, with what it has captured, when it has returned.
//
// Thread safety: any fiber, any thread; but not by the function itself: that ends the process. The
// value is shared: only const calls, or with a lock.
// Memory ordering: what the function did is visible to all who ask.
template <std::invocable F>
class OnceValue {
 public:
  using Value = std::remove_cvref_t<std::invoke_result_t<F>>;

  // Never blocks.
  explicit OnceValue(F function) : function_(std::move(function)) {}

  // The value, which lives as long as this object, or rethrows; void if the function returns
  // nothing. Parks the fiber while another computes it; blocks the thread when called from a plain
  // one. Not interrupted by cancellation.
  std::add_lvalue_reference_t<const Value> operator()() {
    once_.Do([this] { Compute(); });
    if (outcome_.error != nullptr) std::rethrow_exception(outcome_.error);
    if constexpr (!std::is_void_v<Value>) return *outcome_.value;
  }

 private:
  void Compute() {
    try {
      if constexpr (std::is_void_v<Value>) {
        std::invoke(*std::move(function_));
      } else {
        outcome_.value.emplace(std::invoke(*std::move(function_)));
      }
    } catch (...) {
      outcome_.error = std::current_exception();
    }
    function_.reset();
  }

  Once once_;
  // Written by the one that computes, before once_ is done; read after.
  std::optional<F> function_;
  internal::Outcome<Value> outcome_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_ONCE_H_
