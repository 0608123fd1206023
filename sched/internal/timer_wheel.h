// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_TIMER_WHEEL_H_
#define WEFT_SCHED_INTERNAL_TIMER_WHEEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "sched/internal/timer_chain.h"

namespace sched::internal {

// TimerWheel holds deadlines and hands them out once they have passed. An entry is a plain (key,
// deadline) pair: the wheel never follows the key, and a timer that was cancelled stays until it is
// due or swept.
//
//   TimerWheel wheel(now);
//   wheel.Insert(timer, now + 5'000'000, now);
//   ...                                                 // sleep until wheel.NextDue()
//   std::vector<TimerWheel::Entry> due;
//   bool more = true;
//   while (more) {
//     more = wheel.Expire(now, 64, &due);               // under the owner's lock
//     for (const auto& entry : due) Wake(entry.key);    // without it
//     due.clear();
//   }
//
// Precision: never early; late by less than the width of a slot, which is 1/64 of the duration
// asked for, but at least 1024 ns and at most 2^20 ns (about a millisecond).
//
//   level    slot width       holds durations          slot is
//   0        2^10 ns   1 us   up to 524 us             fired when it ends
//   1        2^13 ns   8 us   up to 4.2 ms             fired when it ends
//   2        2^16 ns  66 us   up to 34 ms              fired when it ends
//   3        2^19 ns 524 us   up to 268 ms             fired when it ends
//   4        2^20 ns 1.0 ms   the next 1.1 s           fired when it ends
//   5        2^29 ns 537 ms   the next 9 minutes       spread over level 4 before it begins
//   6        2^38 ns 275 s    the next 78 hours        spread over levels 4 and 5 before it begins
//   7        2^47 ns  39 h    everything else          spread over levels 4 to 7 before it begins
//
// Levels 0 to 3 are Linux's non-cascading wheel (kernel/time/timer.c since 4.8): precision follows
// from the duration alone, so an entry is written once and read once. Levels 4 to 7 are the
// hierarchical wheel of Varghese and Lauck ("Hashed and Hierarchical Timing Wheels", SOSP 1987): an
// entry's due tick follows from its deadline alone, so that moving it between them costs no
// precision. Slots hold arrays, not linked records (timer_chain.h).
//
// Rejected: a heap (a cache miss a level and O(log n) for timers of which most are cancelled);
// intrusive lists (expiring touches every cold record); Linux's own far levels (their slots are
// minutes wide).
//
// Time: may stand still or jump by years. A `now_ns` before an earlier one counts as that earlier
// one. Deadlines in the last 2^20 ns before INT64_MAX, 292 years, are held but never fall due.
//
// Errors: Insert() and Expire() throw std::bad_alloc; nothing was inserted then, and nothing lost.
// Thread safety: none; the owner has a lock.
class TimerWheel {
 public:
  using Entry = TimerEntry;
  static constexpr int64_t kNever = INT64_MAX;

  explicit TimerWheel(int64_t now_ns);
  ~TimerWheel();
  TimerWheel(const TimerWheel&) = delete;
  TimerWheel& operator=(const TimerWheel&) = delete;

  // Files `key` under its deadline. One that has passed already is handed out by the next Expire().
  void Insert(void* key, int64_t deadline_ns, int64_t now_ns);

  // Removes what is due at `now_ns` and appends it to *due, roughly in the order of deadlines.
  // Stops after `max` steps, a step being an entry handed out or one moved to a finer level, so
  // that the owner holds its lock only briefly. True if there is more to do at `now_ns`, even if
  // this call handed out nothing.
  bool Expire(int64_t now_ns, size_t max, std::vector<Entry>* due);

  // When to call Expire() next: the end of the first slot, or the instant by which a far slot has
  // to be spread; kNever if nothing will fall due. Stays where it is while Expire() is overdue.
  // Constant time.
  int64_t NextDue() const;

  size_t size() const { return size_; }

  // What the wheel takes, itself included.
  size_t bytes() const;

  // Keeps only the entries for which keep(const Entry&) is true. Visits all of them. REQUIRES: keep
  // does not throw.
  template <class Keep>
  void Sweep(Keep keep) {
    SweepEntries(keep);
  }

 private:
  static constexpr int kLevels = 8;
  static constexpr int kFine = 4;  // the far level that fires; those above it cascade
  static constexpr int kSlots = 1024;
  static constexpr int kShift[kLevels] = {10, 13, 16, 19, 20, 29, 38, 47};
  struct Slots;

  static int LevelFor(uint64_t duration_ns);
  int64_t DoneTick(int level) const;
  int EarliestLevel() const;
  int64_t EarliestFar() const;
  TimerChain& ChainAt(int level, int64_t tick) const;
  void InsertNear(int level, const Entry& entry);
  void InsertFar(const Entry& entry);
  void Put(int level, int64_t tick, const Entry& entry);
  void Fire(int level);
  size_t Cascade(int level, size_t max);
  void CascadeAhead(size_t max);
  void SlotIsEmpty(int level, int64_t tick);
  void FindNext(int level);
  void SweepEntries(absl::FunctionRef<bool(const Entry&)> keep);

  // A tick of a level is a multiple of its slot width; the slot of tick t falls due at the instant
  // t << shift.
  //
  // Invariants:
  // (1) The occupied slots of a level are those of ticks in (DoneTick, DoneTick + kSlots], so that
  //     a slot never holds two ticks. Far levels share one instant for that, that of kFine.
  // (2) next_due_ns_[level] is the instant of its first occupied slot, kNever if there is none.
  // (3) now_ns_ < kNever, so that an instant that does not fit into 63 bits is never due.
  int64_t now_ns_;  // the latest time seen
  int64_t next_due_ns_[kLevels];
  int64_t done_ns_[kFine + 1];  // what is due until then has left its level
  size_t size_ = 0;
  TimerChain due_;                 // left its level, not yet handed out
  int64_t due_since_ns_ = kNever;  // before which none of that was due; kNever if due_ is empty
  std::unique_ptr<Slots> levels_[kLevels];  // made by the first entry of a level
  TimerChunkPool pool_;
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_TIMER_WHEEL_H_
