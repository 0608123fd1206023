// SPDX-License-Identifier: Apache-2.0
//
// Whose cancellation reaches whom. A scope is a node in a tree of what can be cancelled (internal/cancel_node.h), below the
// scope that its owner is in; its children are members of the node, and its owner too until Wait() begins. So:
//
//   a child fails            → the node is cancelled: its siblings, the owner, and all scopes that any of these have open
//   the owner is cancelled   → the outermost scope that it has open is cancelled, and with that all inside it
//   an outer scope is        → nodes below it are, each with its members
//
// Who is last to touch the scope: a child's Done() on `unfinished_`, after which the owner may go on and destroy it. So its
// closure, its fiber-locals and its place in the node are gone before.
#include "fiber/scope.h"

#include <algorithm>
#include <new>
#include <string>

#include "absl/strings/str_cat.h"
#include "fiber/internal/ambient.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"

namespace fiber {

using internal::CallersBlock;
using internal::CancelNode;
using internal::Fatal;
using internal::LogLine;
using internal::Record;
using internal::WaitBlock;

namespace {

CancelNode* NewNode(const WaitBlock& owner) {
  const Record* fiber = owner.fiber.load(std::memory_order_relaxed);
  return CancelNode::New(CancelNode::Around(owner), fiber == nullptr ? 0 : fiber->id.load(std::memory_order_relaxed));
}

std::string WhatOf(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace

Scope::Scope(ScopeOptions options)
    : options_(std::move(options)),
      owner_(CallersBlock()),
      outer_node_(owner_.node),
      node_(NewNode(owner_)),
      uncaught_(std::uncaught_exceptions()) {
  if (options_.max_running < 0) {
    Fatal("fiber::Scope '%s': max_running is %d: it must not be negative", options_.name.c_str(), options_.max_running);
  }
  try {
    on_cancel_ = options_.cancel.OnCancel([this] { node_->Cancel(options_.cancel.cause()); });
    internal::PushDeadline(owner_, std::min(CurrentDeadline().nanos(), options_.deadline.nanos()));
    ambient_ = owner_.ambient;
  } catch (...) {  // std::bad_alloc: nothing knows of the scope yet but its token, and what it is in
    on_cancel_.Stop();
    node_->Detach();
    node_->Unref();
    throw;
  }
  node_->Join(member_, owner_);
  internal::SwapNode(owner_, node_);
  // The owner may have been cancelled before this could be found through it. No throw from here on: it is linked.
  try {
    if (absl::Status status = internal::CancelStatus(owner_); !status.ok()) node_->Cancel(status);
  } catch (const std::bad_alloc&) {  // there is a cause, and no memory to tell it
    node_->Cancel(internal::CancelledWithoutMemory());
  }
}

Scope::~Scope() {
  if (!is_closed_) {
    CheckOwner("~Scope");
    const bool is_passing = std::uncaught_exceptions() > uncaught_;
    node_->Cancel(internal::CancelledFor("its Scope has ended"));
    try {
      JoinAll(Deadline::Never()).IgnoreError();
    } catch (const std::bad_alloc&) {  // to say why the wait has ended, or for the timer that names who is late
      unfinished_.WaitThrough(Deadline::Never()).IgnoreError();  // cannot fail
    }
    Close();
    if (!is_passing && !is_cancelled_by_user_.load(std::memory_order_relaxed)) LogUnseen();
  }
  if (ambient_ != nullptr) {  // there was a later one when Close() would have taken it away
    if (owner_.ambient != ambient_) Fatal("fiber::Scope '%s' is destroyed before what was made after it", options_.name.c_str());
    internal::Pop(owner_);
  }
  if (owner_.node == node_) internal::SwapNode(owner_, outer_node_);
  node_->Unref();
}

void Scope::Enlist(std::source_location site) {
  if (is_closed_) {
    Fatal("spawn at %s:%u in a fiber::Scope whose Wait() has returned", site.file_name(),
          static_cast<unsigned>(site.line()));
  }
  unfinished_.Add();
}

void Scope::Bound(Record& child) {
  auto* inherited = static_cast<internal::Ambient*>(child.context.load(std::memory_order_relaxed));
  child.context.store(internal::BoundBy(inherited, options_.deadline.nanos()),
                      std::memory_order_relaxed);
}

void Scope::Queue(Record& child) {
  if (options_.max_running > 0) {
    internal::SpinLockHolder hold(queue_lock_);
    if (running_ == options_.max_running) {
      (first_pending_ == nullptr ? first_pending_ : last_pending_->next) = &child;
      last_pending_ = &child;
      return;
    }
    ++running_;
  }
  internal::StartFiber(child);
}

void Scope::OnChildStart(CancelNode::Member& member) {
  WaitBlock& block = CallersBlock();
  node_->Join(member, block);
  internal::SwapNode(block, node_);
}

void Scope::OnChildOutcome(absl::Status status, std::exception_ptr error) {
  if (status.ok() && error == nullptr) return;
  try {
    KeepFailure(status, error);
  } catch (const std::bad_alloc&) {  // which may be what the child failed of
    KeepBareFailure(std::move(status), std::move(error));
  }
}

void Scope::KeepFailure(const absl::Status& status, const std::exception_ptr& error) {
  const Record& self = *internal::ThisThread().current;
  Failure failure{.status = error != nullptr ? absl::UnknownError(WhatOf(error)) : status,
                  .exception = error,
                  .fiber = CurrentId(),
                  .fiber_name = std::string(CurrentName()),
                  .site = self.site};
  const absl::Status cause =
      absl::CancelledError(absl::StrCat("another child of its Scope failed: ", failure.status.message()));
  {
    // Before others can fail of it.
    MutexLock hold(mu_);
    failures_.push_back(std::move(failure));  // the last that may throw
    if (!HasFailedLocked() && !node_->is_cancelled()) first_failure_ = failures_.size() - 1;
  }
  node_->Cancel(cause);
}

void Scope::KeepBareFailure(absl::Status status, std::exception_ptr error) {
  if (error != nullptr) status = absl::Status(absl::StatusCode::kUnknown, "");
  {
    MutexLock hold(mu_);
    if (!HasFailedLocked() && !node_->is_cancelled()) {
      bare_failure_.emplace(Failure{.status = std::move(status),
                                    .exception = std::move(error),
                                    .fiber = CurrentId(),
                                    .fiber_name = {},
                                    .site = internal::ThisThread().current->site});
    }
  }
  node_->Cancel(internal::CancelledWithoutMemory());
}

void Scope::OnChildEnd(CancelNode::Member& member) {
  WaitBlock& block = CallersBlock();
  internal::DropValues(block);
  internal::SwapNode(block, nullptr);
  node_->Leave(member);
  Record* next = nullptr;
  if (options_.max_running > 0) {
    internal::SpinLockHolder hold(queue_lock_);
    next = first_pending_;
    if (next == nullptr) {
      --running_;
    } else {
      first_pending_ = std::exchange(next->next, nullptr);
    }
  }
  if (next != nullptr) internal::StartFiber(*next);
  unfinished_.Done();
}

void Scope::Cancel(const absl::Status& cause) {
  is_cancelled_by_user_.store(true, std::memory_order_relaxed);
  node_->Cancel(cause);
}

void Scope::CheckOwner(const char* operation) const {
  if (&CallersBlock() != &owner_) {
    Fatal("fiber::Scope '%s': %s by a fiber that did not make it", options_.name.c_str(), operation);
  }
  if (is_closed_) Fatal("fiber::Scope '%s': %s after Wait()", options_.name.c_str(), operation);
}

void Scope::LeaveNode() {
  if (!is_under_node_) return;
  is_under_node_ = false;
  // Behind a shield that was made after it, another node is in its place.
  if (owner_.node != node_ && owner_.shields.load(std::memory_order_relaxed) == member_.shields) {
    Fatal("fiber::Scope '%s' is waited for while a scope that was made after it is open", options_.name.c_str());
  }
  // It stays the owner's node until Close(), for who cancels the owner.
  node_->LeaveAsOwner(owner_);
  node_->Leave(member_);
}

absl::Status Scope::JoinAll(Deadline grace) {
  LeaveNode();
  absl::Status interrupted = unfinished_.Wait(grace);
  // Whoever cancelled the owner has cancelled the children too: they may have ended before it could wake for that.
  if (interrupted.ok()) return node_->is_cancelled() ? internal::CancelStatus(owner_) : interrupted;
  // A deadline around the scope is its children's too; that of a Drain() is not.
  const bool is_grace_over = absl::IsDeadlineExceeded(interrupted) && !CurrentDeadline().is_past();
  node_->Cancel(is_grace_over ? absl::CancelledError("the grace period of its Scope is over") : interrupted);
  // No shield: who cancels the owner would not find the scopes around this one behind it.
  for (absl::Duration patience = absl::Seconds(1); !unfinished_.WaitThrough(patience).ok(); patience *= 10) {
    LogLine("fiber::Scope '%s' was cancelled %s ago and still waits for: %s", options_.name.c_str(),
            absl::FormatDuration(patience).c_str(), node_->DescribeMembers().c_str());
  }
  return interrupted;
}

void Scope::Close() {
  is_closed_ = true;
  on_cancel_.Stop();
  if (owner_.ambient == ambient_) {
    internal::Pop(owner_);
    ambient_ = nullptr;
  }
  if (owner_.node == node_) internal::SwapNode(owner_, outer_node_);
  node_->Detach();
}

absl::Status Scope::Result(absl::Status interrupted) {
  MutexLock hold(mu_);
  if (!HasFailedLocked()) return interrupted;
  const Failure& first = FirstFailureLocked();
  if (first.exception != nullptr) std::rethrow_exception(first.exception);
  return first.status;
}

absl::Status Scope::Wait() { return Drain(Deadline::Never()); }

absl::Status Scope::Drain(Deadline grace) {
  CheckOwner("Wait");
  absl::Status interrupted = JoinAll(grace);
  Close();
  return Result(std::move(interrupted));
}

void Scope::LogUnseen() {
  MutexLock hold(mu_);
  if (!HasFailedLocked()) return;
  const Failure& first = FirstFailureLocked();
  std::string name, what;
  try {
    if (!first.fiber_name.empty()) name = absl::StrCat(" '", first.fiber_name, "'");
    what = first.status.ToString();
  } catch (const std::bad_alloc&) {  // by its number, then
  }
  LogLine("a fiber::Scope ended without Wait(), and nobody has seen that fiber %llu%s (spawned at %s:%u) failed: %s",
          static_cast<unsigned long long>(first.fiber), name.c_str(), first.site.file_name(),
          static_cast<unsigned>(first.site.line()), what.c_str());
}

}  // namespace fiber
