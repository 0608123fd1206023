// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_CANCEL_NODE_H_
#define WEFT_FIBER_INTERNAL_CANCEL_NODE_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/stack_list.h"
#include "fiber/internal/wait_block.h"
#include "fiber/internal/wait_queue.h"

namespace fiber::internal {

// CancelNode is something that can be cancelled, once: a scope, or what a CancelSource stands for. Nodes form trees:
// cancelling one cancels all below it, before Cancel() returns (of several at once, before the first one's does).
//
// Who learns of it, and how:
//  - members, fibers (or threads) that live under the node: their parking calls look at the node before they begin, and a
//    wait that is under way is claimed;
//  - waiters, clauses of selects;
//  - callbacks;
//  - nodes below.
//
// Why no member sleeps through it: the canceller stores the cause, then looks at each member's wait; a member opens its
// wait, then looks at the cause. order: cancel, as for a single fiber (wait.h). A member that joins later sees the cause.
//
// Lifetime: counted. A node's owner takes it out of its parent's list (Detach) before it gives its reference up; so who
// holds the parent's lock may take a reference of any node in the list.
class CancelNode {
 public:
  // A fiber or thread under the node, for as long as it stays there.
  struct Member {
    Member* next = nullptr;
    Member* prev = nullptr;
    WaitBlock* block = nullptr;
    uint32_t shields = 0;  // how many shields it had when it joined: behind further ones it is out of reach
  };
  // To be run when the node is cancelled, by who cancels it.
  struct Callback {
    Callback* next = nullptr;
    Callback* prev = nullptr;
    bool is_linked = false;
    void (*prepare)(Callback& self) = nullptr;  // under the lock, when it is taken out of the list
    void (*run)(Callback& self) = nullptr;      // afterwards; `self` may be gone once it returns
  };

  // With one reference, the caller's. Cancelled at once if `parent` is; null: a root. `owner_id`: the fiber whose scope it
  // is, or zero.
  static CancelNode* New(CancelNode* parent, uint64_t owner_id);
  CancelNode(const CancelNode&) = delete;
  CancelNode& operator=(const CancelNode&) = delete;

  void Ref() { references_.fetch_add(1, std::memory_order_relaxed); }
  void Unref();
  // Out of its parent's reach from now on. By its owner, once.
  void Detach();

  bool is_cancelled() const {
    return cause_.load(std::memory_order_seq_cst) != nullptr;  // order: cancel
  }
  // What is seen of its cause (wait.h), or OK.
  absl::Status status() const;
  // As given to Cancel(), or OK.
  absl::Status cause() const;

  // Cancels it and all below. False: it was cancelled already, and keeps its cause. Any thread.
  bool Cancel(const absl::Status& cause);

  void Join(Member& member, WaitBlock& block);
  void Leave(Member& member);
  // Names the fibers that are members, for messages.
  std::string DescribeMembers() const;

  // For a select's clause. False: it is cancelled, and nothing was linked.
  [[nodiscard]] bool Link(Waiter& waiter);
  void Unlink(Waiter& waiter);

  // False: it is cancelled, and nothing was added.
  [[nodiscard]] bool Add(Callback& callback);
  // False: it was taken out to be run.
  [[nodiscard]] bool Remove(Callback& callback);

  // Its owner, who has `block`, is not under it himself any more; who cancels the owner finds it all the same. By the owner.
  void LeaveAsOwner(const WaitBlock& block) { left_by_.store(&block, std::memory_order_relaxed); }
  // The innermost node that reaches the fiber (thread) with `mine`; null: there is none. By itself.
  static CancelNode* Around(const WaitBlock& mine) {
    CancelNode* node = mine.node;
    while (node != nullptr && node->left_by_.load(std::memory_order_relaxed) == &mine) node = node->parent_;
    return node;
  }

  CancelNode* parent() const { return parent_; }
  uint64_t owner_id() const { return owner_id_; }

 private:
  CancelNode(CancelNode* parent, uint64_t owner_id) : parent_(parent), owner_id_(owner_id) {}
  ~CancelNode() {
    if (parent_ != nullptr) parent_->Unref();
  }

  // Whom a canceller has found. They are unparked once all nodes are marked: who wakes finds the innermost he is under
  // cancelled, whichever of those around it was the reason.
  struct Found {
    CancelNode* todo = nullptr;  // below those that are marked, with a reference each
    StackChain members;
    ClaimedWaiters waiters;
  };
  // The part of Cancel() that is this node's.
  bool CancelThis(const absl::Status& cause, Found& found);
  // One by one: a callback may end the registration of the next.
  void RunCallbacks();

  // A ring through `next` and `prev`, as in WaitQueue.
  template <class T>
  static void PushBack(T*& first, T& entry);
  template <class T>
  static void Take(T*& first, T& entry);

  CancelNode* const parent_;  // counted
  const uint64_t owner_id_;
  Atomic<uint32_t> references_{1};             // order: count
  absl::Status given_;                          // written once, before cause_ names it
  Atomic<const absl::Status*> cause_{nullptr};  // &given_ once it is cancelled; order: cancel
  mutable SpinLock lock_;
  Member* members_ ABSL_GUARDED_BY(lock_) = nullptr;
  Callback* callbacks_ ABSL_GUARDED_BY(lock_) = nullptr;
  WaitQueue waiters_ ABSL_GUARDED_BY(lock_);
  CancelNode* below_ ABSL_GUARDED_BY(lock_) = nullptr;
  // In the parent's list: guarded by the parent's lock.
  CancelNode* next = nullptr;
  CancelNode* prev = nullptr;
  bool is_below_ = false;
  // No Atomic: only whether it is the reader's own matters.
  std::atomic<const WaitBlock*> left_by_{nullptr};
  CancelNode* next_todo_ = nullptr;  // of the one canceller that has marked it
};

// A fiber that is cancelled by itself passes it on to the scopes that it has open: the outermost of them, with a reference
// for the caller; null: there is none, or it is behind a shield. For a canceller; any thread.
CancelNode* TakeOutermostScope(Record& fiber, uint64_t id);

// At the end of a shield: if the caller was cancelled behind it, so are the scopes it has open now. order: cancel — either
// who cancels the fiber finds the shield ended, or this finds the cause.
void PassCancellationOn(WaitBlock& mine);

// Puts the caller under `node` (null: under none); returns what it was under before.
CancelNode* SwapNode(WaitBlock& block, CancelNode* node);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_CANCEL_NODE_H_
