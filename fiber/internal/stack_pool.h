// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_POOL_H_
#define WEFT_FIBER_INTERNAL_STACK_POOL_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/stack_arena.h"
#include "fiber/internal/stack_cache.h"
#include "fiber/internal/stack_guard.h"
#include "fiber/internal/stack_list.h"
#include "fiber/internal/stack_pages.h"
#include "fiber/internal/wait_block.h"

namespace fiber {
class Scheduler;
}

namespace fiber::internal {

struct StackPoolOptions {
  // Bound on the memory of stacks: a page for each that is in use or in a worker's cache, and for
  // each free one that keeps its pages. 0: none. What fibers need beyond a page is not accounted
  // for, so leave room for that.
  size_t max_stack_memory = 0;
  // So many free stacks keep their pages in the depot for good; the others lose them when they have
  // not been used for a while (DiscardExcess).
  size_t max_resident_idle = 4096;
  // The best way to try; under AddressSanitizer at best kMprotect.
  GuardMode guard = GuardMode::kAuto;
  // Mappings that guards may use. 0: three quarters of vm.max_map_count.
  size_t mprotect_budget = 0;
  uint32_t max_arena_slots = UINT32_MAX;
  // Ask for memory as stacks are carved, as in overcommit mode 2.
  bool commit_by_chunk = false;
};

struct StackPoolStats {
  size_t arenas = 0;
  size_t carved[kStackClasses] = {};
  size_t free[kStackClasses] = {};  // in the depot
  size_t resident_idle = 0;         // of these, with pages
  size_t waiting = 0;               // fibers that wait for a stack
  size_t waits = 0;                 // how often one had to
  size_t guards[4] = {};            // stacks by GuardMode
};

// Why there is none under StackPoolOptions::max_stack_memory.
inline constexpr char kStackMemoryUsedUp[] =
    "no stack for another fiber: RuntimeOptions::max_stack_memory (if not set, half of the control "
    "group's memory limit) is reached: raise it";
// What a failure to make stacks names; nothing: there was no memory to say it.
inline absl::string_view LimitIn(const absl::Status& failure) {
  return failure.message().empty() ? "no stack for another fiber: the heap is exhausted" : failure.message();
}

// StackDepot holds all stacks of the process that are neither in use nor in a worker's cache, makes
// new ones, and keeps the fibers that found none in line.
//
// No wake-up is lost between a fiber that finds no stack and a worker that frees one into its own
// cache, which nobody else sees. order: stack-wait — store-load:
//
//   fiber finds no stack (WaitInLine, under lock_)    worker frees a stack
//   waiting_ + 1                                      push to its cache
//   look into every registered cache                  look at waiting_ (HasWaiters)
//
// All four are seq_cst. If the worker's look comes before the addition, its push came before the
// fiber's look, which finds the stack. Otherwise the worker sees a waiter and calls GiveFrom(),
// which takes lock_, so comes after the fiber is in line, and starts it. A stack that is in neither
// place is on its way, in the hands of a thread that will push it or give it to the depot, where
// lock_ orders the two.
//
// Giving starts as many of those in line as could now take a stack. None is set aside for them: a
// started fiber may find that somebody was faster, and gets in line again.
//
// Thread safety: any thread. Nothing parks; making new stacks holds up the thread for some 50 µs.
class StackDepot {
 public:
  // The process's. Never destroyed.
  static StackDepot& Get() {
    static StackDepot& depot = Make();
    return depot;
  }

  explicit StackDepot(const StackPoolOptions& options);
  StackDepot(const StackDepot&) = delete;
  StackDepot& operator=(const StackDepot&) = delete;
  ~StackDepot() = delete;  // stacks are for ever

  // Stacks that exist stay as they are.
  void SetOptions(const StackPoolOptions& options);
  // Only StackPoolOptions::max_stack_memory.
  void SetMaxMemory(size_t bytes);

  // Takes up to `want` (at least 1) free stacks of `cls`, linked by next_free; makes new ones if
  // there is none. null: none to be had, and *why, kResourceExhausted, names the limit and the
  // remedy.
  WaitBlock* Take(StackClass cls, size_t want, absl::Status* why);
  // Takes back free stacks of one class, linked by next_free, and starts fibers that wait for one.
  void Give(WaitBlock* list);

  // For a worker whose `cache` is empty: a stack for `fiber`, and some more for the cache. null:
  // `fiber` waits, and comes back to Scheduler::RequeueNew() when a stack is free; it may not be
  // touched any more.
  WaitBlock* TakeForCache(StackClass cls, StackCache& cache, Record& fiber);
  // Whether fibers wait for a stack: after a push to a cache, its owner looks, and calls GiveFrom()
  // if so.
  bool HasWaiters() const {
    return waiting_.load(std::memory_order_seq_cst) != 0;  // order: stack-wait
  }
  // For a cache that is too full, or if fibers wait for stacks. All of it: what was used last comes
  // back first. By its owner.
  void GiveFrom(StackCache& cache) { Give(cache.TakeAll()); }

  // Makes the caches, one a class, known to those who look for a stack; and forgets them, after
  // taking back what they hold. By their owner.
  void RegisterCaches(StackCache* caches);
  void UnregisterCaches(StackCache* caches);

  // Lets the first in line try again, since memory may have come free elsewhere. For a monitor, now
  // and then.
  void RetryWaiters();
  // If fibers wait for a stack and nobody can return one, since all others are fibers of `scheduler`
  // that are parked without a deadline for what only a fiber or a thread of this process can bring:
  // says so, once until a stack is taken again. Not so if one waits for a descriptor, which the world
  // outside may make ready. For a monitor, as often as it likes: it looks four times a second at
  // most, and speaks when it has seen this twice in a row.
  void LookForStall(const Scheduler& scheduler, int64_t now_ns);
  // Gives back the pages of up to `most` free stacks; how many that were. 0.6 µs a stack. What the kernel refuses (somebody may
  // have locked a page of a stack) is passed over, but after 32 of those it gives up.
  size_t DiscardIdle(size_t most);
  // Gives back pages of free stacks beyond max_resident_idle: of as many as were free throughout the
  // last kRestNs, up to `most` at a time. For a monitor; returns when it is to come again, now_ns at
  // the earliest, kNeverNs if there are none; if the kernel took none back, after kDiscardRetryNs.
  // Fibers that come and go by the hundred thousand find
  // the stacks of those before them, with their pages, which cost three times as much to get anew.
  int64_t DiscardExcess(int64_t now_ns, size_t most);
  static constexpr int64_t kRestNs = 1'000'000'000;
  static constexpr int64_t kDiscardRetryNs = 10'000'000'000;
  // Free stacks with pages beyond max_resident_idle, rested or not; 0 while the kernel takes none back.
  size_t Excess() const {
    return excess_.load(std::memory_order_relaxed);  // a hint: it is read again under the lock
  }

  StackPoolStats Stats() const;

 private:
  static StackDepot& Make();

  struct Pool {
    StackList resident;
    StackList discarded;  // no pages, or never touched
    Record* first_waiting = nullptr;
    Record* last_waiting = nullptr;
    size_t waiting = 0;
    size_t carved = 0;
    absl::Status carve_failure;  // why the last attempt to make stacks failed; ok: it did not
    int64_t carve_retry_ns = 0;  // not before
  };

  static void Sort(WaitBlock* list, StackChain* resident, StackChain* discarded);
  // Gives back the pages of resident stacks; what the kernel refuses stays in *resident.
  static void Discard(StackChain* resident, StackChain* discarded);
  // Stacks of one class.
  void GiveSorted(const StackChain& resident, const StackChain& discarded);
  // New stacks, under carve_mutex_, of which the caller gets up to `want`. null: *why says why.
  WaitBlock* CarveAndTake(Pool& pool, StackClass cls, size_t want, absl::Status* why,
                          Record** startable);
  // New stacks. Empty: *why says why. REQUIRES: carve_mutex_ is held.
  StackChain Carve(StackClass cls, absl::Status* why);
  WaitBlock* TakeOrNone(StackClass cls, absl::Status* why) noexcept;
  bool MayPopulate();
  // False: one could be had meanwhile, and `fiber` is not in line.
  bool WaitInLine(StackClass cls, Record& fiber, const absl::Status& why);

  // To be called after every change of resident_idle_ or of what it is compared with.
  void NoteExcessLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  void PushLocked(const StackChain& resident, const StackChain& discarded)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  StackChain PopLocked(Pool& pool, size_t want) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // How many more stacks without pages may be used under max_stack_memory.
  size_t HeadroomLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // How many stacks of a class could be had right now, at least if it is none, at most otherwise.
  size_t TakeableLocked(const Pool& pool, const StackLayout& layout) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // Takes those who may start out of line, linked.
  Record* PopWaitersLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  Record* PopWaiterLocked(Pool& pool, Record* list) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  static void Start(Record* list);

  static void BeforeFork();
  static void AfterForkInParent();
  static void AfterForkInChild();

  // Held while stacks are made, around system calls. Taken before lock_. Protects options_ (read
  // under either lock), guards_ and arena_.
  BlockingMutex carve_mutex_;
  StackPoolOptions options_;
  std::optional<StackGuards> guards_;
  StackArena* arena_[kStackClasses] = {};  // that stacks are carved from

  mutable SpinLock lock_;
  Pool pools_[kStackClasses] ABSL_GUARDED_BY(lock_);
  size_t resident_idle_ ABSL_GUARDED_BY(lock_) = 0;
  size_t least_resident_idle_ ABSL_GUARDED_BY(lock_) = 0;  // since rest_began_ns_
  int64_t rest_began_ns_ ABSL_GUARDED_BY(lock_) = 0;
  size_t rested_ ABSL_GUARDED_BY(lock_) = 0;  // what DiscardExcess() may take of the excess
  size_t discarded_idle_ ABSL_GUARDED_BY(lock_) = 0;
  size_t carved_ ABSL_GUARDED_BY(lock_) = 0;
  size_t arenas_ ABSL_GUARDED_BY(lock_) = 0;
  size_t waits_ ABSL_GUARDED_BY(lock_) = 0;
  int64_t next_log_ns_ ABSL_GUARDED_BY(lock_) = 0;
  int64_t next_stall_look_ns_ ABSL_GUARDED_BY(lock_) = 0;
  bool is_stall_seen_ ABSL_GUARDED_BY(lock_) = false;  // by the last look
  bool is_stall_said_ ABSL_GUARDED_BY(lock_) = false;
  bool is_discard_refused_ ABSL_GUARDED_BY(lock_) = false;  // then there is no excess, either
  int64_t discard_retry_ns_ ABSL_GUARDED_BY(lock_) = 0;
  StackCache* registered_ ABSL_GUARDED_BY(lock_) = nullptr;  // each worker's caches, by the first of them

  // Fibers in line, and the one about to be. Written under lock_. On a line that otherwise hardly
  // changes: every worker reads it whenever it frees a stack.
  alignas(64) Atomic<size_t> waiting_{0};  // order: stack-wait
  Atomic<size_t> excess_{0};  // stacks with pages beyond max_resident_idle. Written under lock_
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_POOL_H_
