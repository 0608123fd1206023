// SPDX-License-Identifier: Apache-2.0
//
// Cancellation and time limits for what is not a tree of fibers; scope.h has those for what is.
#ifndef WEFT_FIBER_CANCEL_H_
#define WEFT_FIBER_CANCEL_H_

#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/cancel_node.h"
#include "fiber/internal/wait_block.h"

namespace fiber {

class Scope;

namespace internal {
struct CallbackState;
template <class H>
class CancelClause;
}  // namespace internal

// CancelCallback is what CancelToken::OnCancel() has registered, for as long as it exists.
//
// Thread safety: one fiber or thread.
class [[nodiscard]] CancelCallback {
 public:
  CancelCallback() = default;
  CancelCallback(CancelCallback&&) noexcept = default;
  // Stop() of what it had. Parks the fiber; blocks the thread when called from a plain one.
  CancelCallback& operator=(CancelCallback&& other) noexcept {
    if (this != &other) {
      Stop();
      state_ = std::move(other.state_);
    }
    return *this;
  }
  // As Stop().
  ~CancelCallback() { Stop(); }

  // It will not be called any more: true, or it has been or nothing was registered: false. Waits for a call that is under
  // way to return, unless made from within it. Parks the fiber; blocks the thread when called from a plain one.
  bool Stop();

 private:
  friend class CancelToken;
  explicit CancelCallback(std::shared_ptr<internal::CallbackState> state) : state_(std::move(state)) {}

  std::shared_ptr<internal::CallbackState> state_;
};

// CancelToken tells whether a CancelSource has been cancelled. One made by default never is.
//
//   absl::Status Crawl(const fiber::CancelToken& stop) {
//     while (!stop.is_cancelled()) …
//
// In a select it is OnCancel(token, …); given to a Scope (ScopeOptions::cancel) it cancels that.
//
// Thread safety: a value; the same one from several threads for all that is const.
// Memory ordering: what happened before Cancel() is visible where is_cancelled() is true and in callbacks.
class CancelToken {
 public:
  CancelToken() = default;
  CancelToken(const CancelToken& other) : CancelToken(other.node_) {}
  CancelToken(CancelToken&& other) noexcept : node_(std::exchange(other.node_, nullptr)) {}
  CancelToken& operator=(CancelToken other) noexcept {
    std::swap(node_, other.node_);
    return *this;
  }
  ~CancelToken() {
    if (node_ != nullptr) node_->Unref();
  }

  // Never blocks.
  bool is_cancelled() const { return node_ != nullptr && node_->is_cancelled(); }
  // As given to Cancel(); OK: it is not cancelled. Never blocks.
  absl::Status cause() const { return node_ == nullptr ? absl::OkStatus() : node_->cause(); }

  // `fn` will be called once, by whoever cancels, before Cancel() returns; at once, here, if it is cancelled already. It may
  // park, and cancel other things; an exception that escapes it ends the process. Throws std::bad_alloc. Never blocks, but for
  // what `fn` does.
  CancelCallback OnCancel(absl::AnyInvocable<void()> fn) const;

 private:
  friend class CancelSource;
  friend class Scope;
  template <class H>
  friend class internal::CancelClause;

  explicit CancelToken(internal::CancelNode* node) : node_(node) {
    if (node_ != nullptr) node_->Ref();
  }

  internal::CancelNode* node_ = nullptr;  // counted
};

// CancelSource cancels, once, what hangs on its token: scopes that were given it (ScopeOptions::cancel) with all that runs under
// them, selects with an OnCancel() of it, callbacks. To have the token ends no other wait: who only looks at is_cancelled() notices
// when it looks.
//
//   fiber::CancelSource stop;
//   auto crawler = fiber::Spawn([token = stop.token()] { return Crawl(token); });
//   stop.Cancel(absl::CancelledError("enough"));
//
// Thread safety: any fiber, any thread. Lifetime: tokens outlive it.
class CancelSource {
 public:
  // Throws std::bad_alloc. Never blocks.
  CancelSource() : token_(internal::CancelNode::New(nullptr, 0)) { token_.node_->Unref(); }
  CancelSource(const CancelSource&) = delete;
  CancelSource& operator=(const CancelSource&) = delete;

  // Never blocks.
  CancelToken token() const { return token_; }

  // Cancels; when it returns, everything that hangs on it knows and all callbacks have returned. The first cause stays, so a
  // second call, one from a callback too, does nothing: false. OK as the cause is kCancelled. Never blocks, but for what
  // callbacks do.
  bool Cancel(const absl::Status& cause = absl::CancelledError("cancelled by its CancelSource")) {
    return token_.node_->Cancel(cause);
  }

 private:
  CancelToken token_;
};

// DeadlineScope bounds every call that parks and may fail, for as long as it exists: the earlier of its deadline, of those
// around it and of the call's own holds. Fibers started meanwhile inherit it.
//
//   fiber::DeadlineScope bound(absl::Seconds(2));
//   auto user = FetchUser(id);              // whatever it waits for in there
//
// On the stack of one fiber (or thread), the innermost destroyed first.
class DeadlineScope {
 public:
  // Throws std::bad_alloc. Never blocks.
  explicit DeadlineScope(Deadline deadline);
  // Never blocks.
  ~DeadlineScope();
  DeadlineScope(const DeadlineScope&) = delete;
  DeadlineScope& operator=(const DeadlineScope&) = delete;

 private:
  internal::WaitBlock& block_;
};

// CancelShield is for clean-up that has to wait: inside, neither cancellation nor deadlines from outside are seen, not even
// those that come meanwhile; `bound` is. Fibers started inside inherit `bound` instead of what is outside. Once it ends,
// everything from outside is seen again.
//
//   fiber::CancelShield shield(absl::Seconds(1));
//   connection.Write("QUIT\r\n").status.IgnoreError();
//
// On the stack of one fiber (or thread), the innermost destroyed first.
class CancelShield {
 public:
  // Throws std::bad_alloc. Never blocks.
  CancelShield() : CancelShield(Deadline::Never()) {}
  explicit CancelShield(Deadline bound);
  // Never blocks.
  ~CancelShield();
  CancelShield(const CancelShield&) = delete;
  CancelShield& operator=(const CancelShield&) = delete;

 private:
  internal::WaitBlock& block_;
  internal::CancelNode* outer_node_;  // what the shield keeps out, and puts back
};

}  // namespace fiber

#endif  // WEFT_FIBER_CANCEL_H_
