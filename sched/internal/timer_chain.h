// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_TIMER_CHAIN_H_
#define WEFT_SCHED_INTERNAL_TIMER_CHAIN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"

namespace sched::internal {

// TimerEntry says when something is due. `key` is never followed: expiring entries touches no cold
// records.
struct TimerEntry {
  void* key;
  int64_t deadline_ns;
};

// TimerChunk is an array of entries behind a small header; a slot of the wheel is a chain of them.
//
// Rejected: one std::vector a slot. Growing it copies a whole burst under the owner's lock and
// needs up to three times the memory meanwhile; it can be neither spliced in constant time nor
// given back piece by piece.
struct TimerChunk {
  TimerChunk* next;
  uint16_t begin;  // entries before it have been taken
  uint16_t end;    // not up to date in the last chunk of a chain
  uint16_t capacity;
  uint16_t size_class;

  TimerEntry* entries() { return reinterpret_cast<TimerEntry*>(this + 1); }
};
static_assert(sizeof(TimerChunk) == sizeof(TimerEntry),
              "chunks are counted in entries: one for the header");

// TimerChunkPool allocates chunks of 64 B to 1 KiB, and keeps a few so that a quiet wheel does not
// visit the allocator.
class TimerChunkPool {
 public:
  static constexpr int kSizeClasses = 5;
  static constexpr size_t kSmallestBytes = 64;
  static constexpr size_t kMaxCachedBytes = 32 * 1024;

  TimerChunkPool() = default;
  ~TimerChunkPool();  // REQUIRES: all chunks were put back
  TimerChunkPool(const TimerChunkPool&) = delete;
  TimerChunkPool& operator=(const TimerChunkPool&) = delete;

  // An empty chunk. Throws std::bad_alloc.
  TimerChunk* Get(int size_class);

  // Gives it back to the allocator once enough are cached.
  void Put(TimerChunk* chunk) noexcept;

  // What the chunks take, in use or cached.
  size_t bytes() const { return bytes_; }

 private:
  static size_t BytesOf(int size_class) { return kSmallestBytes << size_class; }

  TimerChunk* cached_[kSizeClasses] = {};
  size_t cached_bytes_ = 0;
  size_t bytes_ = 0;
};

// TimerChain is a queue of entries, oldest first, in chunks that double up to 1 KiB: about half of
// a short chain may be empty, and never more than a kilobyte of a long one.
//
// Lifetime: does not know its pool, so it must be empty when it is destroyed.
class TimerChain {
 public:
  TimerChain() = default;
  TimerChain(const TimerChain&) = delete;
  TimerChain& operator=(const TimerChain&) = delete;

  bool empty() const { return last_ == nullptr; }

  // Throws std::bad_alloc; the chain is as before then.
  void Append(const TimerEntry& entry, TimerChunkPool& pool) {
    if (end_ == capacity_) Grow(pool);
    last_->entries()[end_++] = entry;
  }

  // Appends all of `other` and leaves it empty. Constant time.
  void Splice(TimerChain& other) noexcept;

  // REQUIRES: !empty()
  const TimerEntry& front() const { return last_->next->entries()[last_->next->begin]; }
  void PopFront(TimerChunkPool& pool) noexcept { DropOldest(1, pool); }

  // Moves the oldest entries, at most `max` and at most one chunk, to the end of *out and returns
  // how many. Throws std::bad_alloc; the chain is as before then. REQUIRES: !empty()
  size_t Take(size_t max, std::vector<TimerEntry>* out, TimerChunkPool& pool);

  // Removes the entries for which keep() is false and packs the rest. Returns how many were
  // removed. Allocates nothing. REQUIRES: keep does not throw.
  size_t Sweep(absl::FunctionRef<bool(const TimerEntry&)> keep, TimerChunkPool& pool) noexcept;

 private:
  void Grow(TimerChunkPool& pool);
  void LinkLast(TimerChunk* chunk) noexcept;
  TimerChunk* UnlinkFirst() noexcept;  // REQUIRES: !empty()
  uint16_t EndOf(const TimerChunk* chunk) const { return chunk == last_ ? end_ : chunk->end; }
  void DropOldest(size_t count, TimerChunkPool& pool) noexcept;  // REQUIRES: all in the first chunk

  // The list is circular, last_->next is the oldest chunk: both ends and splicing for one pointer.
  // The end of the last chunk is kept here and not in it: appending then only writes to the chunk,
  // which a cold cache does not hold up (a million inserts over 1000 slots: 22 -> 13 ns each).
  // Invariant: every chunk holds at least one entry.
  TimerChunk* last_ = nullptr;
  uint16_t end_ = 0;
  uint16_t capacity_ = 0;
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_TIMER_CHAIN_H_
