// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_WAIT_BLOCK_H_
#define WEFT_FIBER_INTERNAL_WAIT_BLOCK_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "fiber/internal/atomic.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/wait_reason.h"

namespace fiber::internal {

struct Ambient;
class CancelNode;
struct LocalSlot;
struct Record;
struct WaitBlock;

inline constexpr int64_t kNeverNs = INT64_MAX;

// WaitWord is the right to complete a wait, won exactly once.
//
// | state   | meaning                                | next, by whom                                       |
// |---------|----------------------------------------|-----------------------------------------------------|
// | Closed  | its owner waits for nothing            | Open, with the next number: the owner               |
// | Open    | whoever claims completes the wait      | Claimed: a peer, a timer, a canceller, or the owner |
// | Claimed | exactly one unpark comes (or came)     | Closed by the owner's next Open, in effect          |
//
// The word holds a number beside the state. Numbers go on for as long as the block exists, across the fibers
// that use it, so a claimer that comes late with an old word always fails: a CAS from (n, Open) can only
// succeed while wait n is open.
//
// A claimer that found the block by itself (a timer, a canceller, a poller) reads the word first, then checks
// that the block still waits for what it came for (its deadline has passed, its fiber is the one meant, the
// slot still holds it), then claims with the word read. If the claim succeeds the number never changed between,
// so the check was about this very wait.
//
// order: claim — acq_rel on a successful CAS: what the claimer wrote for the sleeper happens before its unpark,
// what the sleeper wrote before Open is visible to whoever claims. Open and Load are seq_cst: they are the two sides
// of the store-load pair with the cancellation flag.
class WaitWord {
 public:
  static constexpr uint64_t kOpen = 1;
  static constexpr uint64_t kClaimed = 2;
  static constexpr uint64_t kStateMask = 3;
  static constexpr uint64_t kInterruptible = 4;  // a canceller may claim this wait
  static constexpr uint64_t kFlagMask = 7;

  // Owner only. Returns the word to claim with.
  uint64_t Open(bool is_interruptible) {
    const uint64_t number = (word_.load(std::memory_order_relaxed) | kFlagMask) + 1;
    const uint64_t word = number | kOpen | (is_interruptible ? kInterruptible : 0);
    word_.store(word, std::memory_order_seq_cst);  // order: claim
    return word;
  }
  uint64_t Load() const { return word_.load(std::memory_order_seq_cst); }  // order: claim
  static bool IsOpen(uint64_t word) { return (word & kStateMask) == kOpen; }
  static bool IsInterruptible(uint64_t word) { return (word & kInterruptible) != 0; }
  [[nodiscard]] bool TryClaim(uint64_t open_word) {
    // Loading first keeps losers from taking the line for themselves.
    return word_.load(std::memory_order_relaxed) == open_word &&
           word_.compare_exchange_strong(open_word, (open_word & ~kStateMask) | kClaimed,
                                         std::memory_order_acq_rel,  // order: claim
                                         std::memory_order_relaxed);
  }

 private:
  Atomic<uint64_t> word_{0};
};

// Waiter is one clause of one wait: an entry in the wait queue of the thing waited for.
//
// Protection: the lock of the queue it is linked in; before and after that its owner's.
struct Waiter {
  Waiter* next = nullptr;
  Waiter* prev = nullptr;
  WaitBlock* block = nullptr;
  uint64_t open_word = 0;  // what to claim with
  void* value = nullptr;   // what a peer completes for the sleeper, by its own convention
  uint32_t clause = 0;     // the outcome if this clause is claimed
  uint32_t amount = 0;     // permits wanted, and the like
  bool is_linked = false;

  [[nodiscard]] inline bool TryClaim();
};

// DeadlineTimer is the deadline of a wait: `deadline_ns` is the owner's wish, `filed_ns` the deadline of the one entry
// that counts among those which schedulers have filed for this block, if any.
//
// Disarming only clears the wish; the entry stays filed and finds nothing to do, or is filed anew under a later wish. So
// arming and disarming a timeout that is not used (the common case by far) touches no lock. Entries that do not count
// any more are ignored when they fall due, and may be dropped.
//
//   owner, arming                                   scheduler, when an entry falls due (OnTimer)
//   store the wish                                  CAS filed_ns: the entry's deadline → Busy; else it does not count
//   filed early enough (TryFile)? then done         load the wish
//   else CAS filed_ns → the wish, and file it       still to come: filed_ns = the wish, and file it; else filed_ns = never
//
// Busy shuts out the owner, and schedulers with other entries, which wait a few instructions. When a fiber ends, nothing
// counts any more (ForgetTimer): the block may next serve a fiber of another runtime, and this one's wheels, with what they
// hold, may go. An entry that an earlier runtime still holds may name the same instant as a new one: `filed_by` says
// whose counts. It only changes while nothing is filed.
//
// order: timer — all of these are seq_cst: the owner's store and load, the scheduler's CAS and load are a store-load
// pair, so either the owner finds the entry taken, or the scheduler sees the wish.
struct DeadlineTimer {
  static constexpr int64_t kBusyNs = INT64_MIN;
  Atomic<int64_t> deadline_ns{kNeverNs};
  Atomic<int64_t> filed_ns{kNeverNs};
  Atomic<const void*> filed_by{nullptr};
};

enum class StackClass : uint8_t { k64KiB, k256KiB, k1MiB, k8MiB };
inline constexpr int kStackClasses = 4;
inline constexpr size_t kStackClassBytes[kStackClasses] = {64u << 10, 256u << 10, 1u << 20, 8u << 20};

// Ringer is what a deadline sets off where no wait ends by it (alarm.h).
struct Ringer {
  // Once, by who has claimed the wait: a worker, anywhere.
  void (*ring)(Ringer& self) = nullptr;
};

// WaitBlock holds what others touch while a fiber waits, and describes the stack it is paired with for life.
//
// Blocks live in slabs that are never discarded or reused for anything else, so a timer or canceller that is late
// finds a block with a higher number, never garbage. A fiber has a block from its first run to its end; a plain
// thread gets one (without a stack) at its first wait.
struct WaitBlock {
  WaitWord word;
  Atomic<Record*> fiber{nullptr};  // null: a plain thread's, or nobody's
  Atomic<uint32_t> signal{0};      // what a plain thread sleeps on (futex)
  uint32_t outcome = 0;            // written by the claimer before it unparks
  DeadlineTimer timer;
  WaitReason reason = WaitReason::kNone;
  StackClass stack_class = StackClass::k64KiB;
  bool is_stack_guarded = false;
  bool is_stack_resident = false;  // the stack's pages have been touched since they were last given back
  // While > 0, only who came behind the latest of its shields may cancel it. Written outside of waits.
  Atomic<uint32_t> shields{0};
  Atomic<uint64_t> trimmed_word{0};  // the trimmer's own note
  const void* object = nullptr;    // waited for; for dumps only
  Waiter waiter;                   // the first clause
  char* stack_low = nullptr;       // usable bytes: [stack_low, stack_high); null: a plain thread's
  char* stack_high = nullptr;
  WaitBlock* next_free = nullptr;  // link in the cache or depot that holds it
  std::string* name = nullptr;      // owned; null: unnamed. Written by SetName only
  Ambient* ambient = nullptr;       // counted; the owner's
  CancelNode* node = nullptr;       // the innermost the owner is under; written by the owner, with the lock
  SpinLock node_lock;               // for `node`, against who cancels the fiber and looks for its scopes
  // Nobody waits: `object` is a Ringer, for whoever claims by the deadline. Changes while nothing is filed; no Atomic, since a
  // claim tells whether what was read before it held.
  std::atomic<bool> is_alarm{false};
  LocalSlot* locals = nullptr;      // the fiber's FiberLocals; the owner's
#ifdef WEFT_TSAN
  void* sanitizer_fiber = nullptr;  // ThreadSanitizer's context, kept with the stack
#endif
};
#ifndef WEFT_TSAN
static_assert(sizeof(WaitBlock) <= 192);
#endif

inline bool Waiter::TryClaim() { return block->word.TryClaim(open_word); }

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_WAIT_BLOCK_H_
