// SPDX-License-Identifier: Apache-2.0
//
// What fibers are queued in, with owner, thieves and takers from outside; and where workers sleep.
#include <algorithm>
#include <memory>
#include <utility>

#include "fiber/internal/record.h"
#include "fiber/internal/stack_cache.h"
#include "sched/internal/futex_source.h"
#include "sched/internal/idle.h"
#include "sched/internal/ring.h"
#include "sched/internal/shared_queue.h"
#include "sched/internal/unstarted_deque.h"
#include "tests/model/case_list.h"

namespace model {
namespace {

using fiber::internal::kNeverNs;
using fiber::internal::Record;
using fiber::internal::StackCache;
using sched::internal::FutexSource;
using sched::internal::Idle;
using sched::internal::Ring;
using sched::internal::SharedQueue;
using sched::internal::UnstartedDeque;
using std::make_shared;

// Fibers by number, each taken once.
struct Ledger {
  Record fibers[6];
  bool is_taken[6] = {};
  int taken = 0;
  void Take(Record* fiber) {
    Touch(this);
    const auto i = fiber - fibers;
    Check(i >= 0 && i < 6, "what was taken is no fiber");
    Check(!is_taken[i], "a fiber is taken twice");
    is_taken[i] = true;
    ++taken;
  }
  void CheckTaken(int count) { Check(taken == count, "a fiber was lost"); }
};

template <int kSlots>
struct RingAndLedger : Ledger {
  Ring<kSlots> ring;
  void Steal() {
    Record* stolen[kSlots];
    const size_t count = ring.TakeHalf(stolen);
    for (size_t i = 0; i < count; ++i) Take(stolen[i]);
  }
  void Drain() {
    while (Record* fiber = ring.Pop()) Take(fiber);
  }
};

Case RingWithTwoThieves() {
  auto ring = make_shared<RingAndLedger<4>>();
  return {.threads = {[ring] {
                        for (int i = 0; i < 3; ++i) Check(ring->ring.Push(ring->fibers[i]), "full");
                        if (Record* fiber = ring->ring.Pop()) ring->Take(fiber);
                      },
                      [ring] { ring->Steal(); }, [ring] { ring->Steal(); }},
          .finish = [ring] {
            ring->Drain();
            ring->CheckTaken(3);
          }};
}

// Full, emptied by a thief, filled again in the same slots.
Case RingGoesRound() {
  auto ring = make_shared<RingAndLedger<2>>();
  return {.threads = {[ring] {
                        int pushed = 0;
                        for (int i = 0; i < 5; ++i) {
                          if (ring->ring.Push(ring->fibers[pushed])) {
                            ++pushed;
                          } else if (Record* fiber = ring->ring.Pop()) {
                            ring->Take(fiber);
                          }
                        }
                        ring->Drain();
                        ring->CheckTaken(std::min(pushed, ring->taken));
                      },
                      [ring] {
                        ring->Steal();
                        ring->Steal();
                      }},
          .finish = [ring] { Check(ring->ring.is_empty(), "the owner left some"); }};
}

struct DequeAndLedger : Ledger {
  UnstartedDeque<4> deque;
};

// The last fiber is wanted by the owner, from the one end, and by thieves, from the other.
Case DequeWithTwoThieves() {
  auto deque = make_shared<DequeAndLedger>();
  auto steal = [deque] {
    if (Record* fiber = deque->deque.TakeOldest()) deque->Take(fiber);
  };
  return {.threads = {[deque] {
                        Check(deque->deque.Push(deque->fibers[0]), "full");
                        Check(deque->deque.Push(deque->fibers[1]), "full");
                        while (Record* fiber = deque->deque.TakeNewest()) deque->Take(fiber);
                      },
                      steal, steal},
          .finish = [deque] {
            while (Record* fiber = deque->deque.TakeOldest()) deque->Take(fiber);
            deque->CheckTaken(2);
          }};
}

Case DequeWhoseOwnerAlsoTakesTheOldest() {
  auto deque = make_shared<DequeAndLedger>();
  return {.threads = {[deque] {
                        for (int i = 0; i < 3; ++i)
                          Check(deque->deque.Push(deque->fibers[i]), "full");
                        if (Record* fiber = deque->deque.TakeOldest()) deque->Take(fiber);
                        while (Record* fiber = deque->deque.TakeNewest()) deque->Take(fiber);
                      },
                      [deque] {
                        for (int i = 0; i < 2; ++i) {
                          if (Record* fiber = deque->deque.TakeOldest()) deque->Take(fiber);
                        }
                      }},
          .finish = [deque] {
            while (Record* fiber = deque->deque.TakeOldest()) deque->Take(fiber);
            deque->CheckTaken(3);
          }};
}

// Workers as worker.cc has them, with nothing but a shared queue, two of whose fibers are the work.
struct Workers : Ledger {
  Idle idle;
  SharedQueue queue;
  FutexSource source;
  fiber::internal::Atomic<bool> is_stopped{false};

  void Wake() {
    if (idle.TryWake()) source.Interrupt();
  }
  void Push(int i) {
    queue.Push(fibers[i]);
    Wake();
  }
  void Work(int wanted) {
    Idle::Role role = Idle::Role::kBusy;
    for (;;) {
      if (is_stopped.load(std::memory_order_acquire)) break;
      size_t count = 0;
      Record* fiber = queue.Take(1, &count);
      if (fiber == nullptr && (role == Idle::Role::kSearcher || idle.TryStartSearching(2))) {
        role = Idle::Role::kSearcher;
        fiber = queue.Take(1, &count);
      }
      if (fiber != nullptr) {
        if (role == Idle::Role::kSearcher) {
          role = Idle::Role::kBusy;
          if (idle.StopSearching()) Wake();
        } else if (idle.idle() > 0 && queue.size() > 0) {
          Wake();
        }
        Take(fiber);
        if (taken == wanted) {
          is_stopped.store(true, std::memory_order_release);
          source.Interrupt();
        }
        continue;
      }
      idle.Enter(role);
      if (queue.size() == 0 && !is_stopped.load(std::memory_order_acquire)) source.Poll(kNeverNs);
      role = idle.Leave();
    }
    source.Interrupt();
  }
};

Case IdleWorkersMissNoPushFromOutside() {
  auto workers = make_shared<Workers>();
  auto work = [workers] { workers->Work(2); };
  return {.threads = {work, work, [workers] {
                        workers->Push(0);
                        workers->Push(1);
                      }}};
}

Case IdleWorkersMissNoPushOfTwo() {
  auto workers = make_shared<Workers>();
  return {.threads = {[workers] { workers->Work(2); }, [workers] { workers->Push(0); },
                      [workers] { workers->Push(1); }}};
}

// A run queue as run_queue.h has it, smaller; its owner and those who take from it as worker.cc has
// them.
struct NextSlotAndLedger : Ledger {
  fiber::internal::Atomic<Record*> next_slot{nullptr};
  Ring<4> ring;

  bool has_fibers() const {
    return next_slot.load(std::memory_order_seq_cst) != nullptr || !ring.is_empty();
  }
  void PushNext(int i) {
    Record* displaced = next_slot.exchange(&fibers[i], std::memory_order_seq_cst);
    if (displaced != nullptr) Check(ring.Push(*displaced), "full");
  }
  Record* TakeNextSlot() {
    if (next_slot.load(std::memory_order_relaxed) == nullptr) return nullptr;
    return next_slot.exchange(nullptr, std::memory_order_acq_rel);
  }
  Record* TakeLocal() {
    Record* fiber = TakeNextSlot();
    return fiber != nullptr ? fiber : ring.Pop();
  }
  // By others.
  bool Steal() {
    Record* stolen[4];
    size_t count = ring.TakeHalf(stolen);
    if (count == 0) {
      stolen[0] = TakeNextSlot();
      if (stolen[0] != nullptr) count = 1;
    }
    for (size_t i = 0; i < count; ++i) Take(stolen[i]);
    return count > 0;
  }
};

Case NextSlotIsTakenFromOutside() {
  auto queue = make_shared<NextSlotAndLedger>();
  auto steal = [queue] { (void)queue->Steal(); };
  return {.threads = {[queue] {
                        for (int i = 0; i < 3; ++i) queue->PushNext(i);
                        while (Record* fiber = queue->TakeLocal()) queue->Take(fiber);
                        Check(!queue->has_fibers(), "the owner left some");
                      },
                      steal, steal},
          .finish = [queue] { queue->CheckTaken(3); }};
}

// A worker makes work and then stays in user code: the one that sleeps has to come for all of it.
struct StuckOwner : NextSlotAndLedger {
  Idle idle;
  FutexSource source;

  void Push(int i) {
    PushNext(i);
    if (idle.TryWake()) source.Interrupt();
  }
  void Work(int wanted) {
    Idle::Role role = Idle::Role::kBusy;
    while (taken < wanted) {
      if (role == Idle::Role::kSearcher || idle.TryStartSearching(2)) {
        role = Idle::Role::kSearcher;
        if (Steal()) {
          role = Idle::Role::kBusy;
          if (idle.StopSearching() && idle.TryWake()) source.Interrupt();
          continue;
        }
      }
      idle.Enter(role);
      if (!has_fibers()) source.Poll(kNeverNs);
      role = idle.Leave();
    }
  }
};

Case IdleWorkerMissesNoNextSlot() {
  auto owner = make_shared<StuckOwner>();
  return {.threads = {[owner] {
                        for (int i = 0; i < 3; ++i) owner->Push(i);
                      },
                      [owner] { owner->Work(3); }}};
}

// Keepers.
// -------------------------------------------------------------------------------------------------

// Workers as worker.cc has them, with nothing but deadlines and, for one of them, a fiber in which
// it stays.
struct Timekeepers {
  // This one never comes: whoever sleeps until then is woken by somebody or not at all.
  static constexpr int64_t kFarNs = 1000;
  static constexpr int64_t kNearNs = 500;

  Idle idle;
  FutexSource source;
  fiber::internal::Atomic<int64_t> due_ns[2] = {kNeverNs,
                                                kNeverNs};  // as published by two run queues
  fiber::internal::Atomic<bool> has_fiber{false};
  fiber::internal::Atomic<bool> is_stopped{false};

  int64_t EarliestDue() {
    const int64_t first = due_ns[0].load(std::memory_order_seq_cst);
    return std::min(first, due_ns[1].load(std::memory_order_seq_cst));
  }
  void TellKeeper() {
    if (idle.idle() > 0 && idle.IsKeeperLate(EarliestDue())) source.Interrupt();
  }
  // By the owner of the queue, who then runs a fiber.
  void Arm(int queue, int64_t ns) {
    due_ns[queue].store(ns, std::memory_order_seq_cst);
    TellKeeper();
  }
  void PushFiber() {
    has_fiber.store(true, std::memory_order_seq_cst);
    if (idle.TryWake()) source.Interrupt();
  }
  void ExpireTimers() {
    if (EarliestDue() > passed_ns()) return;
    is_stopped.store(true, std::memory_order_seq_cst);
  }
  void Work() {
    Idle::Role role = Idle::Role::kBusy;
    bool owes_keeper = false;
    while (!is_stopped.load(std::memory_order_seq_cst)) {
      if (has_fiber.load(std::memory_order_relaxed) &&
          has_fiber.exchange(false, std::memory_order_seq_cst)) {
        if (owes_keeper) TellKeeper();
        if (role == Idle::Role::kSearcher && idle.StopSearching() && idle.TryWake())
          source.Interrupt();
        return;  // stays in the fiber
      }
      idle.Enter(role);
      if (has_fiber.load(std::memory_order_seq_cst) || is_stopped.load(std::memory_order_seq_cst)) {
        role = idle.Leave();
        continue;
      }
      const int64_t due = EarliestDue();
      const bool is_keeper = idle.TryKeep(due, passed_ns());
      if (EarliestDue() >= due) {
        source.Poll(is_keeper && due < kFarNs ? due : kNeverNs);
      }
      if (is_keeper) idle.StopKeeping(due);
      owes_keeper = true;
      role = idle.Leave();
      ExpireTimers();
    }
    source.Interrupt();  // the next one may sleep on
  }
};

Case KeeperIsToldOfAnEarlierDeadline() {
  auto workers = make_shared<Timekeepers>();
  workers->due_ns[1].store(Timekeepers::kFarNs, std::memory_order_relaxed);
  auto work = [workers] { workers->Work(); };
  return {.threads = {work, work, [workers] { workers->Arm(0, Timekeepers::kNearNs); }}};
}

Case DeadlinesAreArmedByTwo() {
  auto workers = make_shared<Timekeepers>();
  return {.threads = {[workers] { workers->Work(); },
                      [workers] { workers->Arm(0, Timekeepers::kNearNs); },
                      [workers] { workers->Arm(1, Timekeepers::kFarNs); }}};
}

// One of two is woken for a fiber, and stays in it: the other keeps the time from then on.
Case KeeperLeaves() {
  auto workers = make_shared<Timekeepers>();
  workers->due_ns[0].store(Timekeepers::kNearNs, std::memory_order_relaxed);
  auto work = [workers] { workers->Work(); };
  return {.threads = {work, work, [workers] { workers->PushFiber(); }}};
}

// Free stacks.
// -------------------------------------------------------------------------------------------------

// A cache that ships, and the depot as stack_pool.cc has it, with one fiber in line at most.
struct Stacks {
  struct Stack {
    fiber::internal::WaitBlock block;
    bool is_owned = false;
  };
  Stack stacks[2];
  StackCache cache;
  fiber::internal::Atomic<size_t> waiting{0};
  fiber::internal::Atomic<bool> is_locked{false};
  // Under the lock.
  fiber::internal::WaitBlock* free = nullptr;
  bool is_in_line = false;
  bool is_started = false;

  Stack& Of(fiber::internal::WaitBlock* block) {
    return block == &stacks[0].block ? stacks[0] : stacks[1];
  }
  void Own(fiber::internal::WaitBlock* block) {
    Touch(this);
    Check(!std::exchange(Of(block).is_owned, true), "a stack has two owners");
  }
  void Disown(fiber::internal::WaitBlock* block) {
    Touch(this);
    Of(block).is_owned = false;
  }
  void Lock() {
    while (is_locked.exchange(true, std::memory_order_acquire)) fiber::internal::CpuRelax();
  }
  void Unlock() { is_locked.store(false, std::memory_order_release); }
  void GiveLocked(fiber::internal::WaitBlock* list) {
    while (list != nullptr) {
      fiber::internal::WaitBlock* const next = fiber::internal::NextFree(*list);
      fiber::internal::SetNextFree(*list, free);
      free = std::exchange(list, next);
    }
  }

  // The worker whose cache it is.
  void Free(int i) {
    Disown(&stacks[i].block);
    cache.Push(&stacks[i].block);
    if (waiting.load(std::memory_order_seq_cst) == 0) return;
    fiber::internal::WaitBlock* list = cache.TakeAll();
    if (list == nullptr) return;
    Lock();
    GiveLocked(list);
    if (is_in_line) {
      is_in_line = false;
      waiting.fetch_sub(1, std::memory_order_relaxed);
      Touch(&is_started);
      is_started = true;
    }
    Unlock();
  }
  void Reuse() {
    fiber::internal::WaitBlock* block = cache.Pop();
    if (block == nullptr) return;
    Own(block);
    Free(static_cast<int>(&Of(block) - stacks));
  }
  // A fiber that is to be started elsewhere.
  void Want() {
    for (;;) {
      Lock();
      waiting.fetch_add(1, std::memory_order_seq_cst);
      GiveLocked(cache.TakeAll());
      fiber::internal::WaitBlock* block = free;
      if (block != nullptr) {
        free = fiber::internal::NextFree(*block);
        waiting.fetch_sub(1, std::memory_order_relaxed);
      } else {
        is_in_line = true;
      }
      Unlock();
      if (block != nullptr) return Own(block);
      Await(&is_started, [this] { return is_started; });
      is_started = false;
    }
  }
};

Case FreedStackReachesWhoWaits() {
  auto stacks = make_shared<Stacks>();
  for (auto& stack : stacks->stacks) stack.is_owned = true;
  return {.threads = {[stacks] {
                        stacks->Free(0);
                        stacks->Reuse();
                        stacks->Free(1);
                      },
                      [stacks] { stacks->Want(); }}};
}

// Those who empty a cache, while its owner uses it.
Case CacheIsEmptiedByOthers() {
  auto stacks = make_shared<Stacks>();
  for (auto& stack : stacks->stacks) stack.is_owned = true;
  auto take = [stacks] {
    fiber::internal::WaitBlock* list = stacks->cache.TakeAll();
    for (; list != nullptr; list = fiber::internal::NextFree(*list)) stacks->Own(list);
  };
  return {.threads = {[stacks] {
                        stacks->Free(0);
                        stacks->Free(1);
                        stacks->Reuse();
                        while (fiber::internal::WaitBlock* block = stacks->cache.Pop())
                          stacks->Own(block);
                        Check(stacks->cache.size() == 0, "what is left is counted wrongly");
                      },
                      take, take},
          .finish = [stacks] {
            for (auto& stack : stacks->stacks) Check(stack.is_owned, "a stack was lost");
          }};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"RingWithTwoThieves", RingWithTwoThieves},
      {"RingGoesRound", RingGoesRound},
      {"DequeWithTwoThieves", DequeWithTwoThieves},
      {"DequeWhoseOwnerAlsoTakesTheOldest", DequeWhoseOwnerAlsoTakesTheOldest},
      {"IdleWorkersMissNoPushFromOutside", IdleWorkersMissNoPushFromOutside, 3},
      {"IdleWorkersMissNoPushOfTwo", IdleWorkersMissNoPushOfTwo, 4},
      {"NextSlotIsTakenFromOutside", NextSlotIsTakenFromOutside},
      {"IdleWorkerMissesNoNextSlot", IdleWorkerMissesNoNextSlot},
      {"KeeperIsToldOfAnEarlierDeadline", KeeperIsToldOfAnEarlierDeadline, 3},
      {"DeadlinesAreArmedByTwo", DeadlinesAreArmedByTwo},
      {"KeeperLeaves", KeeperLeaves, 3},
      {"FreedStackReachesWhoWaits", FreedStackReachesWhoWaits},
      {"CacheIsEmptiedByOthers", CacheIsEmptiedByOthers},
  };
  return kCases;
}

}  // namespace model
