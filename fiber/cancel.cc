// SPDX-License-Identifier: Apache-2.0
#include "fiber/cancel.h"

#include <algorithm>

#include "fiber/internal/ambient.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/mutex.h"

namespace fiber {
namespace internal {

// Kept by the CancelCallback, and by who calls it while it does.
struct CallbackState : CancelNode::Callback {
  absl::AnyInvocable<void()> fn;
  CancelNode* node = nullptr;  // counted
  std::weak_ptr<CallbackState> weak_self;
  std::shared_ptr<CallbackState> self;  // while it is being called
  Mutex running;               // held from the registration to the end of the call
  Atomic<const void*> caller{nullptr};  // whose stack it is called on

  ~CallbackState() {
    if (node != nullptr) node->Unref();
  }
  // Under the node's lock.
  static void Prepare(CancelNode::Callback& callback) {
    auto& state = static_cast<CallbackState&>(callback);
    state.self = state.weak_self.lock();
  }
  static void Run(CancelNode::Callback& callback) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    auto& state = static_cast<CallbackState&>(callback);
    const std::shared_ptr<CallbackState> self = std::move(state.self);
    state.caller.store(&CallersBlock(), std::memory_order_relaxed);
    Call(state.fn);
    state.fn = nullptr;  // what it holds is gone when Stop() returns
    state.caller.store(nullptr, std::memory_order_relaxed);
    state.running.unlock();
  }
  // What escapes has nobody to go to.
  static void Call(absl::AnyInvocable<void()>& fn) noexcept { fn(); }
};

}  // namespace internal

using internal::CallbackState;

CancelCallback CancelToken::OnCancel(absl::AnyInvocable<void()> fn) const
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (node_ == nullptr) return CancelCallback();
  auto state = std::make_shared<CallbackState>();
  state->weak_self = state;
  state->fn = std::move(fn);
  state->prepare = &CallbackState::Prepare;
  state->run = &CallbackState::Run;
  state->node = node_;
  node_->Ref();
  state->running.lock();  // at once
  if (node_->Add(*state)) return CancelCallback(std::move(state));
  CallbackState::Call(state->fn);
  return CancelCallback();
}

bool CancelCallback::Stop() {
  const std::shared_ptr<CallbackState> state = std::move(state_);
  if (state == nullptr) return false;
  if (state->node->Remove(*state)) return true;
  // It may have been taken out and not begun: then its caller's stack is not known, and is not this one either, since a
  // canceller takes the next one out when the one before has returned.
  if (!internal::IsCallers(state->caller.load(std::memory_order_relaxed))) {
    MutexLock wait(state->running);
  }
  return false;
}

DeadlineScope::DeadlineScope(Deadline deadline) : block_(internal::CallersBlock()) {
  const int64_t outer_ns =
      block_.ambient == nullptr ? internal::kNeverNs : block_.ambient->deadline_ns;
  internal::PushDeadline(block_, std::min(outer_ns, deadline.nanos()));
}

DeadlineScope::~DeadlineScope() { internal::Pop(block_); }

CancelShield::CancelShield(Deadline bound) : block_(internal::CallersBlock()) {
  internal::PushDeadline(block_, bound.nanos());
  outer_node_ = internal::SwapNode(block_, nullptr);
  block_.shields.fetch_add(1, std::memory_order_seq_cst);  // order: cancel
}

CancelShield::~CancelShield() {
  block_.shields.fetch_sub(1, std::memory_order_seq_cst);  // order: cancel
  internal::SwapNode(block_, outer_node_);
  internal::Pop(block_);
  internal::PassCancellationOn(block_);
}

}  // namespace fiber
