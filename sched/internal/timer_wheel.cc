// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/timer_wheel.h"

#include <algorithm>
#include <bit>

namespace sched::internal {
namespace {

// The first tick at or after the instant. REQUIRES: ns > INT64_MIN
constexpr int64_t TickAtOrAfter(int64_t ns, int shift) { return ((ns - 1) >> shift) + 1; }

constexpr int64_t InstantOf(int64_t tick, int shift) {
  return tick > (TimerWheel::kNever >> shift) ? TimerWheel::kNever : tick << shift;
}

}  // namespace

struct TimerWheel::Slots {
  static constexpr int kWords = kSlots / 64;

  static size_t IndexOf(int64_t tick) { return static_cast<uint64_t>(tick) % kSlots; }

  void Mark(int64_t tick) { occupied[IndexOf(tick) / 64] |= uint64_t{1} << (IndexOf(tick) % 64); }
  void Unmark(int64_t tick) {
    occupied[IndexOf(tick) / 64] &= ~(uint64_t{1} << (IndexOf(tick) % 64));
  }

  // How many slots after `tick` the first occupied one lies, 1 to kSlots; 0 if all are empty.
  int DistanceToNext(int64_t tick) const {
    const size_t start = IndexOf(tick + 1);
    size_t word = start / 64;
    uint64_t bits = occupied[word] & (~uint64_t{0} << (start % 64));
    for (int i = 0; i < kWords; ++i) {
      if (bits != 0) break;
      word = (word + 1) % kWords;
      bits = occupied[word];
    }
    if (bits == 0) return 0;
    const size_t found = word * 64 + static_cast<size_t>(std::countr_zero(bits));
    return static_cast<int>((found - start) % kSlots) + 1;
  }

  uint64_t occupied[kWords] = {};
  TimerChain chains[kSlots];
};

TimerWheel::TimerWheel(int64_t now_ns) : now_ns_(std::min(now_ns, kNever - 1)) {
  std::fill(std::begin(next_due_ns_), std::end(next_due_ns_), kNever);
  std::fill(std::begin(done_ns_), std::end(done_ns_), now_ns_);
}

TimerWheel::~TimerWheel() {
  SweepEntries([](const Entry&) { return false; });
}

size_t TimerWheel::bytes() const {
  size_t bytes = sizeof(*this) + pool_.bytes();
  for (const auto& slots : levels_) bytes += slots == nullptr ? 0 : sizeof(Slots);
  return bytes;
}

// Slots of 1/64 of the duration. A duration of 512 slots can lie 513 ticks ahead, hence more slots
// than that.
int TimerWheel::LevelFor(uint64_t duration_ns) {
  static_assert(kShift[0] == 10 && kShift[kFine - 1] == 19, "three bits a level, from 2^19 ns on");
  const int width = std::bit_width(duration_ns);
  return width <= 19 ? 0 : std::min((width - 17) / 3, kFine);
}

int64_t TimerWheel::DoneTick(int level) const {
  return done_ns_[std::min(level, kFine)] >> kShift[level];
}

// Of levels with the same instant the coarsest, since its entries may be due at that very instant.
int TimerWheel::EarliestLevel() const {
  int earliest = 0;
  for (int level = 1; level < kLevels; ++level) {
    if (next_due_ns_[level] <= next_due_ns_[earliest]) earliest = level;
  }
  return earliest;
}

int64_t TimerWheel::EarliestFar() const {
  return *std::min_element(next_due_ns_ + kFine, next_due_ns_ + kLevels);
}

int64_t TimerWheel::NextDue() const {
  return std::min(due_since_ns_, next_due_ns_[EarliestLevel()]);
}

TimerChain& TimerWheel::ChainAt(int level, int64_t tick) const {
  return levels_[level]->chains[Slots::IndexOf(tick)];
}

void TimerWheel::Insert(void* key, int64_t deadline_ns, int64_t now_ns) {
  now_ns_ = std::max(now_ns_, std::min(now_ns, kNever - 1));
  const Entry entry{.key = key, .deadline_ns = deadline_ns};
  if (deadline_ns <= now_ns_) {
    due_.Append(entry, pool_);
    due_since_ns_ = std::min(due_since_ns_, now_ns_);
  } else {
    const int level = LevelFor(static_cast<uint64_t>(deadline_ns) - static_cast<uint64_t>(now_ns_));
    if (level < kFine) {
      InsertNear(level, entry);
    } else {
      // Without this the lag since the last Expire() would send entries to coarser levels than need
      // be.
      if (EarliestFar() > now_ns_) done_ns_[kFine] = now_ns_;
      InsertFar(entry);
    }
  }
  ++size_;
}

// Nobody may have called Expire() for a while: the slot may still hold an overdue tick of the last
// round.
void TimerWheel::InsertNear(int level, const Entry& entry) {
  const int64_t tick = TickAtOrAfter(entry.deadline_ns, kShift[level]);
  if (tick > DoneTick(level) + kSlots) {
    while (next_due_ns_[level] <= now_ns_) Fire(level);
    done_ns_[level] = now_ns_;
  }
  Put(level, tick, entry);
}

// In the finest level whose round reaches that far. Correct however far DoneTick lags behind the
// time: a coarser level is then chosen, and spread again.
void TimerWheel::InsertFar(const Entry& entry) {
  const int64_t fine_tick = TickAtOrAfter(entry.deadline_ns, kShift[kFine]);
  for (int level = kFine; level < kLevels; ++level) {
    const int64_t last = DoneTick(level) + kSlots;
    const int64_t tick = fine_tick >> (kShift[level] - kShift[kFine]);
    if (tick <= last || level == kLevels - 1) return Put(level, std::min(tick, last), entry);
  }
}

void TimerWheel::Put(int level, int64_t tick, const Entry& entry) {
  if (levels_[level] == nullptr) levels_[level] = std::make_unique<Slots>();
  ChainAt(level, tick).Append(entry, pool_);
  levels_[level]->Mark(tick);
  next_due_ns_[level] = std::min(next_due_ns_[level], InstantOf(tick, kShift[level]));
}

bool TimerWheel::Expire(int64_t now_ns, size_t max, std::vector<Entry>* due) {
  now_ns_ = std::max(now_ns_, std::min(now_ns, kNever - 1));
  while (max > 0) {
    if (!due_.empty()) {
      const size_t taken = due_.Take(max, due, pool_);
      size_ -= taken;
      max -= taken;
      if (due_.empty()) due_since_ns_ = kNever;
      continue;
    }
    const int level = EarliestLevel();
    if (next_due_ns_[level] > now_ns_) {
      CascadeAhead(max);
      return false;
    }
    if (level <= kFine) {
      Fire(level);
    } else {
      done_ns_[kFine] = next_due_ns_[level] - 1;
      max -= Cascade(level, max);
    }
  }
  return NextDue() <= now_ns_;
}

// Its entries are due; handing them out is Expire()'s.
void TimerWheel::Fire(int level) {
  const int64_t tick = next_due_ns_[level] >> kShift[level];
  done_ns_[level] = next_due_ns_[level];
  due_.Splice(ChainAt(level, tick));
  due_since_ns_ = std::min(due_since_ns_, next_due_ns_[level]);
  SlotIsEmpty(level, tick);
}

// Moves up to `max` entries of the level's first slot to finer levels. They are filed one by one,
// so that a failed allocation or the end of `max` leaves the rest where it is. Returns the number
// of entries moved.
size_t TimerWheel::Cascade(int level, size_t max) {
  const int64_t tick = next_due_ns_[level] >> kShift[level];
  TimerChain& chain = ChainAt(level, tick);
  size_t moved = 0;
  for (; moved < max && !chain.empty(); ++moved) {
    InsertFar(chain.front());
    chain.PopFront(pool_);
  }
  if (chain.empty()) SlotIsEmpty(level, tick);
  return moved;
}

// A slot may be spread as soon as the level below reaches to its end, half a round before it must
// be. Doing it in the slack of calls that come anyway keeps a million far timers from holding up
// the near ones later.
void TimerWheel::CascadeAhead(size_t max) {
  if (EarliestFar() == kNever) return;
  done_ns_[kFine] = now_ns_;
  for (int level = kFine + 1; level < kLevels && max > 0; ++level) {
    if (next_due_ns_[level] == kNever) continue;
    const int ratio_shift = kShift[level] - kShift[level - 1];
    const int64_t tick = next_due_ns_[level] >> kShift[level];
    const int64_t last = ((tick + 1) << ratio_shift) - 1;
    if (last <= DoneTick(level - 1) + kSlots) max -= Cascade(level, max);
  }
}

void TimerWheel::SlotIsEmpty(int level, int64_t tick) {
  levels_[level]->Unmark(tick);
  FindNext(level);
}

void TimerWheel::FindNext(int level) {
  const int64_t done = DoneTick(level);
  const int distance = levels_[level]->DistanceToNext(done);
  next_due_ns_[level] = distance == 0 ? kNever : InstantOf(done + distance, kShift[level]);
}

void TimerWheel::SweepEntries(absl::FunctionRef<bool(const Entry&)> keep) {
  size_ -= due_.Sweep(keep, pool_);
  if (due_.empty()) due_since_ns_ = kNever;
  for (int level = 0; level < kLevels; ++level) {
    if (levels_[level] == nullptr) continue;
    for (int64_t tick = 0; tick < kSlots; ++tick) {
      TimerChain& chain = ChainAt(level, tick);
      size_ -= chain.Sweep(keep, pool_);
      if (chain.empty()) levels_[level]->Unmark(tick);
    }
    FindNext(level);
  }
}

}  // namespace sched::internal
