// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/stack_pool.h"

#include <pthread.h>
#include <sys/uio.h>

#include <algorithm>
#include <new>

#include "fiber/internal/record.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

constexpr size_t kMostTaken = 32;              // by one call
constexpr int64_t kCarveRetryNs = 10'000'000;  // asking a kernel that said no costs some 10 µs

// All pages of a stack.
iovec PagesOf(const WaitBlock& block) {
  return {block.stack_low, LayoutOf(block.stack_class).stack_bytes};
}

absl::Status MemoryUsedUp() { return absl::ResourceExhaustedError(kStackMemoryUsedUp); }

#ifdef WEFT_ASAN
constexpr bool kIsAddressSanitized = true;
#else
constexpr bool kIsAddressSanitized = false;
#endif

GuardMode BestGuardMode(GuardMode wanted) {
  return kIsAddressSanitized ? std::max(wanted, GuardMode::kMprotect) : wanted;
}

[[maybe_unused]] const StackDepot& depot_made_before_main = StackDepot::Get();

}  // namespace

StackDepot& StackDepot::Make() {
  auto* depot = new StackDepot(StackPoolOptions{});
  // Refused for want of memory: then only a fork in the middle of a Take() or Give() would suffer.
  (void)pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
  return *depot;
}

StackDepot::StackDepot(const StackPoolOptions& options)
    : options_(options),
      guards_(std::in_place, BestGuardMode(options.guard), options.mprotect_budget) {}

void StackDepot::SetOptions(const StackPoolOptions& options) {
  Record* startable;
  {
    std::lock_guard carving(carve_mutex_);
    SpinLockHolder hold(lock_);
    if (options.guard != options_.guard || options.mprotect_budget != options_.mprotect_budget) {
      guards_.emplace(BestGuardMode(options.guard), options.mprotect_budget);
    }
    if (options.commit_by_chunk != options_.commit_by_chunk ||
        options.max_arena_slots != options_.max_arena_slots) {
      for (StackArena*& arena : arena_) arena = nullptr;
    }
    options_ = options;
    for (Pool& pool : pools_) pool.carve_failure = absl::OkStatus();
    NoteExcessLocked();
    startable = PopWaitersLocked();
  }
  Start(startable);
}

void StackDepot::SetMaxMemory(size_t bytes) {
  Record* startable;
  {
    std::lock_guard carving(carve_mutex_);
    SpinLockHolder hold(lock_);
    options_.max_stack_memory = bytes;
    startable = PopWaitersLocked();
  }
  Start(startable);
}

size_t StackDepot::HeadroomLocked() const {
  if (options_.max_stack_memory == 0) return SIZE_MAX / 2;
  const size_t most = options_.max_stack_memory / kPageBytes;
  const size_t charged = carved_ - discarded_idle_;
  return charged < most ? most - charged : 0;
}

size_t StackDepot::TakeableLocked(const Pool& pool, const StackLayout& layout) const {
  const size_t others = is_discard_refused_ ? 0 : resident_idle_ - pool.resident.size();
  const size_t carvable = pool.carve_failure.ok() ? layout.batch : 0;
  return pool.resident.size() +
         std::min(HeadroomLocked() + others, pool.discarded.size() + carvable);
}

void StackDepot::NoteExcessLocked() {
  least_resident_idle_ = std::min(least_resident_idle_, resident_idle_);
  const size_t most = is_discard_refused_ ? SIZE_MAX : options_.max_resident_idle;
  excess_.store(resident_idle_ > most ? resident_idle_ - most : 0, std::memory_order_relaxed);
}

void StackDepot::PushLocked(const StackChain& resident, const StackChain& discarded) {
  if (resident.count > 0) {
    pools_[static_cast<int>(resident.first->stack_class)].resident.Push(resident);
    resident_idle_ += resident.count;
    NoteExcessLocked();
  }
  if (discarded.count > 0) {
    pools_[static_cast<int>(discarded.first->stack_class)].discarded.Push(discarded);
    discarded_idle_ += discarded.count;
  }
}

StackChain StackDepot::PopLocked(Pool& pool, size_t want) {
  StackChain chain = pool.resident.Pop(want);
  resident_idle_ -= chain.count;
  NoteExcessLocked();
  if (chain.count == 0) {
    chain = pool.discarded.Pop(std::min(want, HeadroomLocked()));
    discarded_idle_ -= chain.count;
  }
  if (chain.count > 0) is_stall_seen_ = is_stall_said_ = false;
  return chain;
}

WaitBlock* StackDepot::Take(StackClass cls, size_t want, absl::Status* why) {
  want = std::clamp<size_t>(want, 1, kMostTaken);
  Pool* pool;
  for (;;) {
    bool is_memory_used_up;
    {
      SpinLockHolder hold(lock_);
      pool = &pools_[static_cast<int>(cls)];
      if (WaitBlock* list = PopLocked(*pool, want).first; list != nullptr) return list;
      is_memory_used_up = HeadroomLocked() == 0;
    }
    if (!is_memory_used_up) break;
    // Idle stacks of other classes hold what is missing.
    if (DiscardIdle(want) == 0) {
      *why = MemoryUsedUp();
      return nullptr;
    }
  }

  Record* startable = nullptr;
  WaitBlock* list = CarveAndTake(*pool, cls, want, why, &startable);
  Start(startable);
  return list;
}

WaitBlock* StackDepot::CarveAndTake(Pool& pool, StackClass cls, size_t want, absl::Status* why,
                                    Record** startable) {
  std::lock_guard carving(carve_mutex_);
  {
    SpinLockHolder hold(lock_);
    // Whoever carved meanwhile left some.
    if (WaitBlock* list = PopLocked(pool, want).first; list != nullptr) return list;
    if (!pool.carve_failure.ok() && MonotonicNs() < pool.carve_retry_ns) {
      *why = pool.carve_failure;
      return nullptr;
    }
  }
  absl::Status failure;
  const StackChain made = Carve(cls, &failure);
  SpinLockHolder hold(lock_);
  pool.carve_failure = failure;
  if (made.count == 0) {
    pool.carve_retry_ns = MonotonicNs() + kCarveRetryNs;
    *why = failure;
    return nullptr;
  }
  pool.carved += made.count;
  carved_ += made.count;
  PushLocked({}, made);
  const StackChain taken = PopLocked(pool, want);
  if (taken.count == 0) *why = MemoryUsedUp();  // may throw: nobody has been taken out of the line yet
  *startable = PopWaitersLocked();
  return taken.first;
}

StackChain StackDepot::Carve(StackClass cls, absl::Status* why) {
  const StackLayout& layout = LayoutOf(cls);
  StackArena*& arena = arena_[static_cast<int>(cls)];
  if (arena == nullptr || arena->carved.load(std::memory_order_relaxed) == arena->slot_count) {
    StackArena* reserved = ReserveArena(cls, options_.max_arena_slots,
                                        options_.commit_by_chunk || kIsAddressSanitized, why);
    if (reserved == nullptr) return {};
    arena = reserved;
    PublishArena(*arena);
    SpinLockHolder hold(lock_);
    ++arenas_;
  }
  const uint32_t first = arena->carved.load(std::memory_order_relaxed);
  const uint32_t count = std::min(layout.batch, arena->slot_count - first);
  *why = CommitSlots(*arena, first, count);
  if (!why->ok()) return {};

  iovec ranges[kMaxStackBatch];
  bool is_guarded[kMaxStackBatch];
  for (uint32_t i = 0; i < count; ++i) {
    ranges[i] = {arena->slot(first + i), layout.guard_bytes};
  }
  guards_->Install(ranges, count, is_guarded);

  StackChain chain;
  for (uint32_t i = 0; i < count; ++i) {
    auto* block = new (arena->block(first + i)) WaitBlock;
    block->stack_class = cls;
    block->is_stack_guarded = is_guarded[i];
    block->stack_low = arena->stack_low(first + i);
    block->stack_high = arena->stack_high(first + i);
    chain.Append(*block);
  }
  arena->carved.store(first + count, std::memory_order_release);  // order: arena
  return chain;
}

void StackDepot::Sort(WaitBlock* list, StackChain* resident, StackChain* discarded) {
  while (list != nullptr) {
    WaitBlock* next = NextFree(*list);
    (list->is_stack_resident ? resident : discarded)->Append(*list);
    list = next;
  }
}

void StackDepot::Give(WaitBlock* list) {
  StackChain resident;
  StackChain discarded;
  Sort(list, &resident, &discarded);
  GiveSorted(resident, discarded);
}

void StackDepot::GiveSorted(const StackChain& resident, const StackChain& discarded) {
  Record* startable;
  {
    SpinLockHolder hold(lock_);
    PushLocked(resident, discarded);
    startable = PopWaitersLocked();
  }
  Start(startable);
}

void StackDepot::Discard(StackChain* resident, StackChain* discarded) {
  iovec ranges[kMaxStackBatch];
  bool is_discarded[kMaxStackBatch];
  WaitBlock* blocks[kMaxStackBatch];
  WaitBlock* list = resident->first;
  *resident = {};
  while (list != nullptr) {
    size_t count = 0;
    for (; list != nullptr && count < kMaxStackBatch; list = NextFree(*list)) {
      blocks[count] = list;
      ranges[count++] = PagesOf(*list);
    }
    DiscardPages(ranges, count, is_discarded);
    for (size_t i = 0; i < count; ++i) {
      blocks[i]->is_stack_resident = !is_discarded[i];
      (is_discarded[i] ? discarded : resident)->Append(*blocks[i]);
    }
  }
}

size_t StackDepot::DiscardIdle(size_t most) {
  size_t total = 0;
  StackChain refused[kStackClasses];  // set aside: the last ones given are the first ones taken
  size_t refusals = 0;
  while (total < most && refusals < kMostTaken) {
    StackChain resident;
    {
      SpinLockHolder hold(lock_);
      for (Pool& pool : pools_) {
        resident = pool.resident.Pop(std::min(most - total, kMostTaken));
        if (resident.count > 0) break;
      }
      resident_idle_ -= resident.count;
      NoteExcessLocked();
    }
    if (resident.count == 0) break;
    StackChain discarded;
    Discard(&resident, &discarded);
    GiveSorted({}, discarded);
    total += discarded.count;
    refusals += resident.count;
    for (WaitBlock* next = resident.first; next != nullptr;) {
      WaitBlock* const block = std::exchange(next, NextFree(*next));
      refused[static_cast<int>(block->stack_class)].Append(*block);
    }
  }
  {
    SpinLockHolder hold(lock_);
    if (total > 0) {
      is_discard_refused_ = false;
    } else if (refusals > 0) {
      is_discard_refused_ = true;
      discard_retry_ns_ = MonotonicNs() + kDiscardRetryNs;
    }
    NoteExcessLocked();
  }
  for (const StackChain& chain : refused) {
    if (chain.count > 0) GiveSorted(chain, {});
  }
  return total;
}

int64_t StackDepot::DiscardExcess(int64_t now_ns, size_t most) {
  {
    SpinLockHolder hold(lock_);
    if (is_discard_refused_ && now_ns >= discard_retry_ns_) {
      is_discard_refused_ = false;  // until the next refusal
      NoteExcessLocked();
    }
    if (now_ns - rest_began_ns_ >= kRestNs) {
      const size_t kept = options_.max_resident_idle;
      rested_ = least_resident_idle_ > kept ? least_resident_idle_ - kept : 0;
      least_resident_idle_ = resident_idle_;
      rest_began_ns_ = now_ns;
    }
    rested_ = std::min(rested_, Excess());
    most = std::min(most, rested_);
    rested_ -= most;
  }
  DiscardIdle(most);
  SpinLockHolder hold(lock_);
  if (is_discard_refused_ && resident_idle_ > options_.max_resident_idle) return discard_retry_ns_;
  if (Excess() == 0) return kNeverNs;
  return rested_ > 0 ? now_ns : rest_began_ns_ + kRestNs;
}

// Who calls is about to leave its stack, and in no state to throw: no memory to say why is a reason like others.
WaitBlock* StackDepot::TakeOrNone(StackClass cls, absl::Status* why) noexcept {
  try {
    return Take(cls, kMostTaken, why);
  } catch (const std::bad_alloc&) {
    // No memory to say why: a failure all the same, or WaitInLine would believe that there is a stack.
    SpinLockHolder hold(lock_);
    Pool& pool = pools_[static_cast<int>(cls)];
    pool.carve_failure = absl::Status(absl::StatusCode::kResourceExhausted, "");
    pool.carve_retry_ns = MonotonicNs() + kCarveRetryNs;
    return nullptr;
  }
}

// Where pages cannot be given back, what is not used costs none.
bool StackDepot::MayPopulate() {
  SpinLockHolder hold(lock_);
  return !is_discard_refused_;
}

WaitBlock* StackDepot::TakeForCache(StackClass cls, StackCache& cache, Record& fiber) {
  for (;;) {
    absl::Status why;
    if (WaitBlock* block = TakeOrNone(cls, &why); block != nullptr) {
      if (cache.WasFilled() && MayPopulate()) PopulateTops(block);
      StackChain rest;
      for (WaitBlock* next = NextFree(*block); next != nullptr;) {
        WaitBlock* current = next;
        next = NextFree(*current);
        rest.Append(*current);
      }
      if (rest.count > 0) {
        cache.PushList(rest.first, rest.last, static_cast<uint32_t>(rest.count));
        if (HasWaiters()) GiveFrom(cache);
      }
      block->is_stack_resident = true;
      return block;
    }
    if (WaitInLine(cls, fiber, why)) return nullptr;
  }
}

void StackDepot::RegisterCaches(StackCache* caches) {
  SpinLockHolder hold(lock_);
  caches->next_registered = registered_;
  registered_ = caches;
}

void StackDepot::UnregisterCaches(StackCache* caches) {
  {
    SpinLockHolder hold(lock_);
    StackCache** link = &registered_;
    while (*link != caches) link = &(*link)->next_registered;
    *link = caches->next_registered;
  }
  for (int i = 0; i < kStackClasses; ++i) Give(caches[i].TakeAll());
}

StackPoolStats StackDepot::Stats() const {
  StackPoolStats stats;
  SpinLockHolder hold(lock_);
  stats.arenas = arenas_;
  for (int i = 0; i < kStackClasses; ++i) {
    stats.carved[i] = pools_[i].carved;
    stats.free[i] = pools_[i].resident.size() + pools_[i].discarded.size();
    stats.waiting += pools_[i].waiting;
  }
  stats.resident_idle = resident_idle_;
  stats.waits = waits_;
  for (int way = 0; way < 4; ++way) stats.guards[way] = guards_->Count(static_cast<GuardMode>(way));
  return stats;
}

void StackDepot::BeforeFork() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Get().carve_mutex_.lock();
  Get().lock_.Lock();
}

void StackDepot::AfterForkInParent() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  Get().lock_.Unlock();
  Get().carve_mutex_.unlock();
}

// The child has none of the parent's workers: those in line wait for ever.
void StackDepot::AfterForkInChild() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  StackDepot& depot = Get();
  for (Pool& pool : depot.pools_) {
    pool.first_waiting = pool.last_waiting = nullptr;
    pool.waiting = 0;
  }
  depot.waiting_.store(0, std::memory_order_relaxed);
  depot.lock_.Unlock();
  depot.carve_mutex_.unlock();
}

}  // namespace fiber::internal
