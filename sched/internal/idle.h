// SPDX-License-Identifier: Apache-2.0
//
// Idle workers: who sleeps, who searches, who is woken, and who keeps the time.
//
// Problem: a worker that finds no work sleeps, and whoever makes work must not miss it; but waking a thread costs tens of
// microseconds, so a push must not wake anybody while somebody awake is looking anyway.
//
// Rejected: waking on every push (a storm of wake-ups that find nothing); counting work in one shared word (every push
// and pop on one cache line).
//
// Protocol (Go's: "spinning" threads, runtime/proc.go). One word holds: how many workers sleep or are about to (idle),
// how many search (searching), and how many wake-ups are on their way (grants).
//
//   who makes work                            who runs out of it
//   push to a queue                           searches every queue: nothing
//   reads the word: somebody is idle, nobody  stops searching and becomes idle, in one step on the word
//     searches                                looks at every queue once more: nothing
//   CAS searching + 1, grants + 1             sleeps in the event source
//   EventSource::Interrupt()                  leaves: idle − 1, and takes a grant if there is one: then it is a searcher
//
// Nothing is lost: push and read, and becoming idle and the look, are a store-load pair on each side, all seq_cst. If the
// worker's step comes first, the pusher reads that it is idle and wakes somebody. Otherwise the push comes before the
// worker's look, which finds it. If the pusher does nothing because somebody searches, that searcher will stop searching
// later, by that same step, and look after that.
//
// A grant is taken by whoever leaves next, whatever woke it; that one searches every queue. At most one is under way
// (a CAS needs searching = 0), an Interrupt is never lost, and at least one worker was idle at the CAS, so somebody leaves.
// A searcher that finds work and was the last one wakes another: there may be more where that came from.
//
// Time: one idle worker, the keeper, sleeps until the earliest deadline of any run queue, which is published as its own;
// the others sleep without end. Whoever publishes an earlier one, or comes back from sleep, and so may have been the
// keeper or been told in place of another, owes the keeper a look: before it runs a fiber, which may take long. If it
// sleeps again instead, it reads all deadlines anyway: a lone sleeper wakes nobody else.
//
//   who owes a look                           who goes to sleep
//   has published its queue's earliest        is idle already; takes the office, unless somebody keeps an earlier time
//     deadline, or left the office            reads all queues' earliest deadlines (again)
//   reads the word, deadlines and the office  sleeps: the keeper until the earliest, others without end
//   idle, and the keeper is late: Interrupt
//
// The same store-load pair again, twice: on the deadlines, so that a new one is either slept by or told of; and on the
// office, so that who relied on the keeper is seen to be idle by the keeper that leaves. An office whose time has passed
// is taken over: its keeper has yet to get a CPU.
//
// order: idle-wake — seq_cst on every access named above, on the word, the queues' sizes, and the deadlines.
#ifndef WEFT_SCHED_INTERNAL_IDLE_H_
#define WEFT_SCHED_INTERNAL_IDLE_H_

#include <algorithm>
#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/wait_block.h"

namespace sched::internal {

using fiber::internal::Atomic;
using fiber::internal::kNeverNs;

class Idle {
 public:
  // What a worker that runs out of work has to do with the word.
  enum class Role : uint8_t { kBusy, kSearcher };

  // Busy → searcher, unless half of those awake search already: more would only get in each other's way.
  [[nodiscard]] bool TryStartSearching(uint32_t workers) {
    uint64_t word = word_.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t awake = workers - std::min(workers, IdleOf(word));  // there may be more for a while (Crew::AddSeats)
      if (2 * SearchingOf(word) >= awake) return false;
      if (word_.compare_exchange_weak(word, word + kSearching,
                                      std::memory_order_seq_cst,  // order: idle-wake
                                      std::memory_order_relaxed)) {
        return true;
      }
    }
  }

  // Searcher → busy: it found work. True: it was the last one, so the caller wakes another.
  [[nodiscard]] bool StopSearching() {
    return SearchingOf(word_.fetch_sub(kSearching, std::memory_order_seq_cst)) == 1;  // order: idle-wake
  }

  // Becomes idle. The caller then looks at every queue once more.
  void Enter(Role role) {
    word_.fetch_add(role == Role::kSearcher ? kIdle - kSearching : kIdle,
                    std::memory_order_seq_cst);  // order: idle-wake
  }

  // Is idle no more. Returns what it is now: a searcher if a wake-up was on its way.
  [[nodiscard]] Role Leave() {
    uint64_t word = word_.load(std::memory_order_relaxed);
    for (;;) {
      const bool is_granted = GrantsOf(word) > 0;
      if (word_.compare_exchange_weak(word, word - kIdle - (is_granted ? kGrant : 0),
                                      std::memory_order_seq_cst,  // order: idle-wake
                                      std::memory_order_relaxed)) {
        return is_granted ? Role::kSearcher : Role::kBusy;
      }
    }
  }

  // After a push: true if the caller must interrupt the event source, once.
  [[nodiscard]] bool TryWake() {
    uint64_t word = word_.load(std::memory_order_seq_cst);  // order: idle-wake
    while (IdleOf(word) > 0 && SearchingOf(word) == 0) {
      if (word_.compare_exchange_weak(word, word + kSearching + kGrant,
                                      std::memory_order_seq_cst,  // order: idle-wake
                                      std::memory_order_seq_cst)) {
        return true;
      }
    }
    return false;
  }

  // By whoever owes a look: true if it must interrupt the event source.
  [[nodiscard]] bool IsKeeperLate(int64_t deadline_ns) const {
    return IdleOf(word_.load(std::memory_order_seq_cst)) > 0 &&        // order: idle-wake
           keeper_ns_.load(std::memory_order_seq_cst) > deadline_ns;   // order: idle-wake
  }

  // An idle worker means to sleep until `deadline_ns`: true if it is now the keeper. False: somebody keeps time that is
  // no later, or nobody has to.
  [[nodiscard]] bool TryKeep(int64_t deadline_ns, int64_t now_ns) {
    int64_t kept = keeper_ns_.load(std::memory_order_seq_cst);  // order: idle-wake
    while (deadline_ns < kept || (kept <= now_ns && deadline_ns != kNeverNs)) {
      if (keeper_ns_.compare_exchange_weak(kept, deadline_ns,
                                           std::memory_order_seq_cst,  // order: idle-wake
                                           std::memory_order_seq_cst)) {
        return true;
      }
    }
    return false;
  }
  // The keeper leaves, unless somebody took the office over. It owes a look then.
  void StopKeeping(int64_t deadline_ns) {
    keeper_ns_.compare_exchange_strong(deadline_ns, kNeverNs,
                                       std::memory_order_seq_cst,  // order: idle-wake
                                       std::memory_order_relaxed);
  }

  // Also read after pushes, to spare the rest when nobody is idle: hence as strong as TryWake's.
  uint32_t idle() const {
    return IdleOf(word_.load(std::memory_order_seq_cst));  // order: idle-wake
  }

  // Whether somebody has nothing to do. A hint.
  bool has_others() const {
    const uint64_t word = word_.load(std::memory_order_relaxed);
    return IdleOf(word) > 0 || SearchingOf(word) > 0;
  }

 private:
  static constexpr uint64_t kIdle = 1;
  static constexpr uint64_t kSearching = uint64_t{1} << 20;
  static constexpr uint64_t kGrant = uint64_t{1} << 40;
  static constexpr uint64_t kMask = kSearching - 1;
  static uint32_t IdleOf(uint64_t word) { return static_cast<uint32_t>(word & kMask); }
  static uint32_t SearchingOf(uint64_t word) { return static_cast<uint32_t>((word >> 20) & kMask); }
  static uint32_t GrantsOf(uint64_t word) { return static_cast<uint32_t>((word >> 40) & kMask); }

  alignas(64) Atomic<uint64_t> word_{0};
  Atomic<int64_t> keeper_ns_{kNeverNs};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_IDLE_H_
