// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_SHARED_QUEUE_H_
#define WEFT_SCHED_INTERNAL_SHARED_QUEUE_H_

#include <cstddef>

#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"
#include "fiber/internal/spin_lock.h"

namespace sched::internal {

using fiber::internal::Atomic;
using fiber::internal::Record;

// SharedQueue is a queue of fibers that any thread fills and empties, without bound: the fibers' own links make it up,
// so nothing is ever full. It has two lines, each first in, first out, which take turns: whoever was about to run elsewhere
// does not go behind all others (PushAhead), nor before all of them.
//
// A blocker (Record::is_blocker) is taken alone, since whoever runs it gives up its own queue for that.
//
// A runtime has two: one for runnable fibers (unparked from outside, or overflow of a ring), one for unstarted ones.
class SharedQueue {
 public:
  void Push(Record& fiber) {
    fiber.next = nullptr;
    PushList(&fiber, &fiber, 1);
  }
  // Linked by `next`; last->next is null.
  void PushList(Record* first, Record* last, size_t count) { Add(kRegular, first, last, count); }
  // The same, in the other line.
  void PushAhead(Record* first, Record* last, size_t count) { Add(kAhead, first, last, count); }

  // Up to `most` of the oldest of each line in turn, linked by `next`; null: empty. *count says how many.
  Record* Take(size_t most, size_t* count) {
    *count = 0;
    if (size() == 0) return nullptr;
    fiber::internal::SpinLockHolder hold(lock_);
    Record* first = nullptr;
    Record* last = nullptr;
    size_t taken = 0;
    while (taken < most) {
      const int turn = lines_[1 - turn_].first != nullptr ? 1 - turn_ : turn_;
      Line& line = lines_[turn];
      Record* const next = line.first;
      if (next == nullptr || (taken > 0 && next->is_blocker())) break;
      turn_ = turn;  // not before: whose turn it is and who is not taken must not lose it, time and again
      line.first = next->next;
      if (line.first == nullptr) line.last = nullptr;
      (first == nullptr ? first : last->next) = next;
      last = next;
      ++taken;
      if (next->is_blocker()) break;
    }
    if (first == nullptr) return nullptr;
    last->next = nullptr;
    size_.store(size_.load(std::memory_order_relaxed) - taken, std::memory_order_relaxed);
    *count = taken;
    return first;
  }

  // Anyone. The idle protocol's look.
  size_t size() const { return size_.load(std::memory_order_seq_cst); }  // order: idle-wake

 private:
  enum : int { kAhead, kRegular };
  struct Line {
    Record* first = nullptr;
    Record* last = nullptr;
  };

  void Add(int which, Record* first, Record* last, size_t count) {
    fiber::internal::SpinLockHolder hold(lock_);
    Line& line = lines_[which];
    (line.last == nullptr ? line.first : line.last->next) = first;
    line.last = last;
    size_.store(size_.load(std::memory_order_relaxed) + count,
                std::memory_order_seq_cst);  // order: idle-wake
  }

  fiber::internal::SpinLock lock_;
  Line lines_[2] ABSL_GUARDED_BY(lock_);
  int turn_ ABSL_GUARDED_BY(lock_) = kRegular;  // whose was the last one taken
  Atomic<size_t> size_{0};  // written under lock_
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_SHARED_QUEUE_H_
