// SPDX-License-Identifier: Apache-2.0
//
// Poll slots: where a fiber that waits for a descriptor and a poller with news of it meet.
//
// Problem. The kernel tells of each edge once. The fiber that reads may at that moment be waiting, about to wait, in the
// middle of a system call, timing out, or elsewhere altogether; events are collected by several threads at once, and may
// be delivered late, after the descriptor was closed and its record used again.
//
// Rejected:
//  - A lock per slot: a poller that loses its CPU inside it stops the reader, and the common case pays for it.
//  - Poller loads the slot, loads the waiter's word, takes the waiter out by CAS, claims with that word. The CAS proves
//    nothing: the fiber may have timed out and come back meanwhile, the slot holds the same block for its next wait, and
//    the claim with the old word fails. That wait has lost its event.
//  - Poller takes the waiter out by CAS, then loads its word and claims: the fiber may be in a wait for something else by
//    then, and gets woken out of it.
//
// The word:
//
// | value     | means                                           | next                                                  |
// |-----------|-------------------------------------------------|-------------------------------------------------------|
// | 0         | no news since the last system call; nobody waits | ready: a poller; B: the waiter                       |
// | ready     | news                                            | 0: the waiter, directly before a system call          |
// | B         | the wait of block B, open or claimed            | B+ready: a poller; 0: who unlinks                     |
// | B+ready   | likewise, and there was news (or B wants none)  | ready: who unlinks                                    |
//
// At most one waiter at a time (the lock of the flow sees to that). Whoever claims the wait *as a user of this slot* (a
// poller, Close, a deadline that is moved) unlinks before it unparks; claimed by anybody else (its timer, a cancellation)
// or by itself, the waiter unlinks when it runs again, before its block is used for another wait. So:
//
//   (1) While the slot holds B, the wait that linked it is B's latest.
//
//   who waits (fiber of block B)                    who has news (any number of pollers)
//   opens wait n                                    marks: 0 → ready, done; ready, B+ready: done;
//   links: CAS 0 → B; finds ready: does not wait      CAS B → B+ready: goes on
//   looks at what Close and deadlines have stored   w = B's word
//   parks                                           the slot still holds B?  else done
//   …                                               claims B with w; fails: done
//   claimed by its timer, a canceller, itself:      stores ready; unparks B
//     unlinks: B → 0, B+ready → ready
//
// No news is lost. After the mark the word has the ready bit, and only the waiter takes it away, before a system call
// that comes after the news. Unlinking keeps it.
//
// No waiter sleeps on news. Its link found 0, so the mark came later and saw B; let n be the wait linked at the mark. The
// poller goes on to claim it: w is n's word or a later one. Later: n is over. n's, but the slot no longer holds B: n is
// over. Both: the claim fails only if another claimed n, who unparks it.
//
// No other wait is claimed. If the claim succeeds, w was open from its load on; between load and claim the slot held B, so
// by (1) the wait linked was B's latest, which is w's.
//
// Close and moved deadlines do the same, without a mark: they store what they have to say, then look at the slot; the
// waiter links, then looks at what they stored. One of them sees the other.
//
// order: poll-slot — seq_cst on the link, on the mark, and on the load with which Close or a moved deadline looks: the
// store-load pair with Descriptor::ended and Flow::deadline_ns. The rest is hand-off: acquire and release.
#ifndef WEFT_NETPOLL_INTERNAL_POLL_SLOT_H_
#define WEFT_NETPOLL_INTERNAL_POLL_SLOT_H_

#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/park.h"
#include "fiber/internal/wait_block.h"

namespace netpoll::internal {

using fiber::internal::Atomic;
using fiber::internal::WaitBlock;

// Outcomes of a wait that was linked in a slot or in a flow's queue; in a select, beside the number of the clause.
inline constexpr uint32_t kOutcomeReady = 0;            // there is news (queue: the flow is now locked for the waiter)
inline constexpr uint32_t kOutcomeLookAgain = 1u << 30;  // the deadline was moved, or the runtime has ended
inline constexpr uint32_t kOutcomeClosed = 1u << 31;     // closed; whoever closed has given up the waiter's lock and reference

class PollSlot {
 public:
  // The waiter's side: one at a time. -------------------------------------------------------------------------------

  bool is_ready() const {
    return (word_.load(std::memory_order_acquire) & kReady) != 0;  // order: poll-slot
  }

  // Directly before a system call, and never otherwise. REQUIRES: nobody is linked.
  void ClearReady() {
    if (word_.load(std::memory_order_relaxed) == 0) return;
    // Complete before the system call looks at the socket, or news that comes between would meet the old ready bit.
    word_.exchange(0, std::memory_order_seq_cst);  // order: poll-slot
  }

  // Links the open wait of `block`, of which it is clause number `clause`. False: there is news, it was not linked.
  // REQUIRES: nobody is linked.
  [[nodiscard]] bool TryLink(WaitBlock& block, uint32_t clause = 0) {
    clause_ = clause;
    uintptr_t expected = 0;
    return word_.compare_exchange_strong(expected, reinterpret_cast<uintptr_t>(&block),
                                         std::memory_order_seq_cst,  // order: poll-slot
                                         std::memory_order_relaxed);
  }
  // Links a wait that news does not end, and that leaves `ready` behind. REQUIRES: nobody is linked.
  void LinkDeaf(WaitBlock& block) {
    clause_ = 0;
    word_.exchange(reinterpret_cast<uintptr_t>(&block) | kReady,
                   std::memory_order_seq_cst);  // order: poll-slot
  }
  // After a wait that no user of this slot has claimed.
  void Unlink() {
    uintptr_t seen = word_.load(std::memory_order_relaxed);
    while (!word_.compare_exchange_weak(seen, seen & kReady,
                                        std::memory_order_acq_rel,  // order: poll-slot
                                        std::memory_order_relaxed)) {
    }
  }

  // Everybody else's: any thread. -----------------------------------------------------------------------------------

  // There is news: whoever waits is unparked with kOutcomeReady, whoever comes next does not wait. By pollers.
  void MarkReady() {
    uintptr_t seen = word_.load(std::memory_order_relaxed);
    do {
      // Already known. If somebody waits under this bit, whoever set it has unparked him, or he wants no news.
      if ((seen & kReady) != 0) return;
    } while (!word_.compare_exchange_weak(seen, seen | kReady,
                                          std::memory_order_seq_cst,  // order: poll-slot
                                          std::memory_order_relaxed));
    if (seen != 0) UnparkReady(*BlockOf(seen));
  }

  // Claims whoever waits, for `outcome`, and unlinks him. The caller unparks him (fiber::internal::Unpark). Null: nobody
  // waits, or he is being unparked for another reason.
  [[nodiscard]] WaitBlock* ClaimWaiter(uint32_t outcome) {
    WaitBlock* block = BlockOf(word_.load(std::memory_order_seq_cst));  // order: poll-slot
    if (block == nullptr || !TryClaim(*block)) return nullptr;
    Unlink();
    block->outcome = outcome | clause_;
    return block;
  }

  // The slot of a new descriptor. Stale pollers may still mark it.
  void Reset() { word_.store(0, std::memory_order_relaxed); }

 private:
  static constexpr uintptr_t kReady = 1;
  static_assert(alignof(WaitBlock) > kReady);

  static WaitBlock* BlockOf(uintptr_t word) { return reinterpret_cast<WaitBlock*>(word & ~kReady); }
  bool TryClaim(WaitBlock& block) {
    const uint64_t open_word = block.word.Load();
    if (!fiber::internal::WaitWord::IsOpen(open_word)) return false;
    if (BlockOf(word_.load(std::memory_order_acquire)) != &block) return false;  // order: poll-slot
    return block.word.TryClaim(open_word);
  }

  void UnparkReady(WaitBlock& block) {
    if (!TryClaim(block)) return;
    // Nobody else stores now: the ready bit keeps pollers away, and the waiter sleeps.
    word_.store(kReady, std::memory_order_release);  // order: poll-slot
    block.outcome = kOutcomeReady | clause_;
    fiber::internal::Unpark(block);
  }

  Atomic<uintptr_t> word_{0};  // order: poll-slot
  uint32_t clause_ = 0;        // of the wait that is linked; the waiter's, for who has claimed it
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_POLL_SLOT_H_
