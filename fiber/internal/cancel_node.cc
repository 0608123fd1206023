// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/cancel_node.h"

#include <utility>

#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/internal/wait.h"

namespace fiber::internal {

template <class T>
void CancelNode::PushBack(T*& first, T& entry) {
  if (first == nullptr) {
    entry.next = entry.prev = first = &entry;
    return;
  }
  entry.next = first;
  entry.prev = first->prev;
  first->prev->next = &entry;
  first->prev = &entry;
}

template <class T>
void CancelNode::Take(T*& first, T& entry) {
  if (entry.next == &entry) {
    first = nullptr;
    return;
  }
  entry.prev->next = entry.next;
  entry.next->prev = entry.prev;
  if (first == &entry) first = entry.next;
}

CancelNode* CancelNode::New(CancelNode* parent, uint64_t owner_id) {
  auto* node = new CancelNode(parent, owner_id);
  if (parent == nullptr) return node;
  parent->Ref();
  absl::Status cause;
  {
    SpinLockHolder hold(parent->lock_);
    cause = parent->cause();
    if (cause.ok()) {
      node->is_below_ = true;
      PushBack(parent->below_, *node);
    }
  }
  if (!cause.ok()) node->Cancel(cause);
  return node;
}

void CancelNode::Unref() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;  // order: count
}

void CancelNode::Detach() {
  if (parent_ == nullptr) return;
  SpinLockHolder hold(parent_->lock_);
  if (is_below_) Take(parent_->below_, *this);
  is_below_ = false;
}

absl::Status CancelNode::cause() const {
  const absl::Status* cause = cause_.load(std::memory_order_seq_cst);  // order: cancel
  return cause == nullptr ? absl::OkStatus() : *cause;
}

absl::Status CancelNode::status() const {
  const absl::Status* cause = cause_.load(std::memory_order_seq_cst);  // order: cancel
  return cause == nullptr ? absl::OkStatus() : SeenOf(*cause);
}

bool CancelNode::Cancel(const absl::Status& cause) {
  SchedulePoint();
  const absl::Status given = cause.ok() ? absl::CancelledError() : cause;
  Ref();  // a callback may destroy what the caller called it through
  Found found;
  const bool is_first = CancelThis(given, found);
  // A list, since a tree may be deeper than a stack.
  CancelNode* marked = nullptr;
  while (found.todo != nullptr) {
    CancelNode* const node = found.todo;
    found.todo = node->next_todo_;
    node->CancelThis(given, found);
    node->next_todo_ = std::exchange(marked, node);
  }
  for (WaitBlock* block = found.members.first; block != nullptr;) {
    WaitBlock* const next = NextFree(*block);
    Unpark(*block);
    block = next;
  }
  found.waiters.Unpark();
  if (is_first) RunCallbacks();
  while (marked != nullptr) {
    CancelNode* const node = std::exchange(marked, marked->next_todo_);
    node->RunCallbacks();
    node->Unref();
  }
  Unref();
  return is_first;
}

bool CancelNode::CancelThis(const absl::Status& cause, Found& found) {
  SpinLockHolder hold(lock_);
  if (cause_.load(std::memory_order_relaxed) != nullptr) return false;
  given_ = cause;
  cause_.store(&given_, std::memory_order_seq_cst);  // order: cancel
  if (Member* member = members_; member != nullptr) {
    do {
      if (TryClaimForCancel(*member->block, member->shields)) {
        found.members.Append(*member->block);
      }
      member = member->next;
    } while (member != members_);
  }
  while (Waiter* first = waiters_.first()) found.waiters.Claim(waiters_, *first);
  while (CancelNode* first = below_) {
    Take(below_, *first);
    first->is_below_ = false;
    first->Ref();
    first->next_todo_ = std::exchange(found.todo, first);
  }
  return true;
}

void CancelNode::RunCallbacks() {
  for (;;) {
    Callback* first;
    {
      SpinLockHolder hold(lock_);
      first = callbacks_;
      if (first == nullptr) return;
      Take(callbacks_, *first);
      first->is_linked = false;
      first->prepare(*first);
    }
    first->run(*first);
  }
}

void CancelNode::Join(Member& member, WaitBlock& block) {
  member.block = &block;
  member.shields = block.shields.load(std::memory_order_relaxed);
  SpinLockHolder hold(lock_);
  PushBack(members_, member);
}

void CancelNode::Leave(Member& member) {
  SpinLockHolder hold(lock_);
  Take(members_, member);
}

std::string CancelNode::DescribeMembers() const {
  std::string text;
  SpinLockHolder hold(lock_);
  const Member* member = members_;
  if (member == nullptr) return "fibers that have not started";
  do {
    // A member has its block until it leaves.
    if (Record* fiber = member->block->fiber.load(std::memory_order_acquire); fiber != nullptr) {  // order: owner
      text += text.empty() ? "" : ", ";
      text += DescribeUnheld(*fiber);
    }
    member = member->next;
  } while (member != members_);
  return text;
}

bool CancelNode::Link(Waiter& waiter) {
  SpinLockHolder hold(lock_);
  if (cause_.load(std::memory_order_relaxed) != nullptr) return false;
  waiters_.PushBack(waiter);
  return true;
}

void CancelNode::Unlink(Waiter& waiter) {
  SpinLockHolder hold(lock_);
  if (waiter.is_linked) waiters_.Remove(waiter);
}

bool CancelNode::Add(Callback& callback) {
  SpinLockHolder hold(lock_);
  if (cause_.load(std::memory_order_relaxed) != nullptr) return false;
  callback.is_linked = true;
  PushBack(callbacks_, callback);
  return true;
}

bool CancelNode::Remove(Callback& callback) {
  SpinLockHolder hold(lock_);
  if (!callback.is_linked) return false;
  Take(callbacks_, callback);
  callback.is_linked = false;
  return true;
}

CancelNode* TakeOutermostScope(Record& fiber, uint64_t id) {
  WaitBlock* const block = fiber.block.load(std::memory_order_seq_cst);  // order: owner, cancel
  if (block == nullptr) return nullptr;
  SpinLockHolder hold(block->node_lock);
  if (block->fiber.load(std::memory_order_acquire) != &fiber ||  // order: owner
      fiber.id.load(std::memory_order_acquire) != id ||          // order: owner
      // What is open outside of the shield is cancelled by the owner when the shield has ended.
      block->shields.load(std::memory_order_seq_cst) != 0) {  // order: cancel
    return nullptr;
  }
  CancelNode* node = block->node;
  if (node == nullptr || node->owner_id() != id) return nullptr;
  while (node->parent() != nullptr && node->parent()->owner_id() == id) node = node->parent();
  node->Ref();
  return node;
}

void PassCancellationOn(WaitBlock& mine) {
  Record* const fiber = mine.fiber.load(std::memory_order_relaxed);
  if (fiber == nullptr) return;
  const absl::Status* const cause = fiber->cancel.load(std::memory_order_seq_cst);  // order: cancel
  if (cause == nullptr) return;
  if (CancelNode* scope = TakeOutermostScope(*fiber, fiber->id.load(std::memory_order_relaxed)); scope != nullptr) {
    scope->Cancel(*cause);
    scope->Unref();
  }
}

CancelNode* SwapNode(WaitBlock& block, CancelNode* node) {
  SpinLockHolder hold(block.node_lock);
  return std::exchange(block.node, node);
}

}  // namespace fiber::internal
