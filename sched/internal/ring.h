// SPDX-License-Identifier: Apache-2.0
//
// Ring: the queue of woken and yielded fibers of one run queue. First in, first out.
//
// One owner pushes; the owner pops one at a time and anybody takes half, both by a CAS on head_. Go's runqget and
// runqgrab (runtime/proc.go) work the same way.
//
//   owner, Push                              owner, Pop / thief, StealInto
//   reads head_ (acquire)                    reads head_ (acquire), tail_ (acquire)
//   writes slot[tail]                        reads slot[head…]
//   publishes tail_ + 1                      CAS head_ → head + n (acq_rel)
//
// A slot is overwritten only after head_ has passed it, and a taker that read it before that fails its CAS, since
// head_ (64 bits) never has the same value twice. So every fiber is taken once, by whoever's CAS covered its slot.
//
// order: ring — tail_ publishes the slots; head_ hands their space back to the owner.
// order: idle-wake — the store of tail_ is also the "push" of the idle protocol (idle.h), hence seq_cst.
#ifndef WEFT_SCHED_INTERNAL_RING_H_
#define WEFT_SCHED_INTERNAL_RING_H_

#include <cstddef>
#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"

namespace sched::internal {

using fiber::internal::Atomic;
using fiber::internal::Record;

template <size_t kSlots>
class Ring {
  static_assert((kSlots & (kSlots - 1)) == 0);

 public:
  // Owner only. False: full.
  bool Push(Record& fiber) {
    const uint64_t head = head_.load(std::memory_order_acquire);  // order: ring
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head >= kSlots) return false;
    Slot(tail).store(&fiber, std::memory_order_relaxed);
    tail_.store(tail + 1, std::memory_order_seq_cst);  // order: ring, idle-wake
    return true;
  }

  // Owner only. The oldest; null: empty.
  Record* Pop() {
    uint64_t head = head_.load(std::memory_order_acquire);  // order: ring
    for (;;) {
      if (head == tail_.load(std::memory_order_relaxed)) return nullptr;
      Record* fiber = Slot(head).load(std::memory_order_relaxed);
      if (head_.compare_exchange_weak(head, head + 1, std::memory_order_acq_rel,  // order: ring
                                      std::memory_order_acquire)) {
        return fiber;
      }
    }
  }

  // Owner only. The one that Pop() comes to after `ahead` others, if no thief does first; null: none.
  Record* Peek(uint64_t ahead) {
    const uint64_t at = head_.load(std::memory_order_relaxed) + ahead;
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    return tail - at - 1 < kSlots ? Slot(at).load(std::memory_order_relaxed) : nullptr;
  }

  // Takes the older half (at least one, at most `kMost`) into `out`. Returns how many. Anyone.
  template <size_t kMost>
  size_t TakeHalf(Record* (&out)[kMost]) {
    uint64_t head = head_.load(std::memory_order_acquire);  // order: ring
    for (;;) {
      const uint64_t tail = tail_.load(std::memory_order_acquire);  // order: ring
      uint64_t count = tail - head;
      if (count > kSlots) {  // head was stale when tail was read
        head = head_.load(std::memory_order_acquire);  // order: ring
        continue;
      }
      count -= count / 2;
      if (count == 0) return 0;
      if (count > kMost) count = kMost;
      for (uint64_t i = 0; i < count; ++i) {
        out[i] = Slot(head + i).load(std::memory_order_relaxed);
      }
      if (head_.compare_exchange_weak(head, head + count, std::memory_order_acq_rel,  // order: ring
                                      std::memory_order_acquire)) {
        return count;
      }
    }
  }

  // Anyone. The idle protocol's look: seq_cst on both sides of it.
  bool is_empty() const {
    return head_.load(std::memory_order_seq_cst) ==  // order: idle-wake
           tail_.load(std::memory_order_seq_cst);    // order: idle-wake
  }
  // Anyone. A guess: the two are not read at once.
  uint64_t apparent_size() const {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    return tail > head ? tail - head : 0;
  }
  // Owner only, and exact for it but for thieves.
  uint64_t size() const {
    return tail_.load(std::memory_order_relaxed) - head_.load(std::memory_order_relaxed);
  }

 private:
  Atomic<Record*>& Slot(uint64_t index) { return slots_[index % kSlots]; }

  alignas(64) Atomic<uint64_t> head_{0};
  alignas(64) Atomic<uint64_t> tail_{0};
  Atomic<Record*> slots_[kSlots] = {};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_RING_H_
