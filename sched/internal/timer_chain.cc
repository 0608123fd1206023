// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/timer_chain.h"

#include <algorithm>
#include <new>
#include <utility>

namespace sched::internal {

TimerChunkPool::~TimerChunkPool() {
  for (TimerChunk* chunk : cached_) {
    while (chunk != nullptr) ::operator delete(std::exchange(chunk, chunk->next));
  }
}

TimerChunk* TimerChunkPool::Get(int size_class) {
  TimerChunk* chunk = cached_[size_class];
  const size_t bytes = BytesOf(size_class);
  if (chunk != nullptr) {
    cached_[size_class] = chunk->next;
    cached_bytes_ -= bytes;
  } else {
    chunk = static_cast<TimerChunk*>(::operator new(bytes));
    bytes_ += bytes;
  }
  const auto capacity = static_cast<uint16_t>(bytes / sizeof(TimerEntry) - 1);
  return new (chunk) TimerChunk{.next = nullptr,
                                .begin = 0,
                                .end = 0,
                                .capacity = capacity,
                                .size_class = static_cast<uint16_t>(size_class)};
}

void TimerChunkPool::Put(TimerChunk* chunk) noexcept {
  const size_t bytes = BytesOf(chunk->size_class);
  if (cached_bytes_ + bytes > kMaxCachedBytes) {
    ::operator delete(chunk);
    bytes_ -= bytes;
    return;
  }
  chunk->next = cached_[chunk->size_class];
  cached_[chunk->size_class] = chunk;
  cached_bytes_ += bytes;
}

void TimerChain::Grow(TimerChunkPool& pool) {
  constexpr int kLargest = TimerChunkPool::kSizeClasses - 1;
  LinkLast(pool.Get(last_ == nullptr ? 0 : std::min(last_->size_class + 1, kLargest)));
}

void TimerChain::LinkLast(TimerChunk* chunk) noexcept {
  if (last_ == nullptr) {
    chunk->next = chunk;
  } else {
    last_->end = end_;
    chunk->next = last_->next;
    last_->next = chunk;
  }
  last_ = chunk;
  end_ = chunk->end;
  capacity_ = chunk->capacity;
}

TimerChunk* TimerChain::UnlinkFirst() noexcept {
  TimerChunk* first = last_->next;
  if (first == last_) {
    first->end = std::exchange(end_, 0);
    capacity_ = 0;
    last_ = nullptr;
  } else {
    last_->next = first->next;
  }
  return first;
}

void TimerChain::Splice(TimerChain& other) noexcept {
  if (other.last_ == nullptr) return;
  if (last_ != nullptr) {
    last_->end = end_;
    std::swap(last_->next, other.last_->next);
  }
  last_ = std::exchange(other.last_, nullptr);
  end_ = std::exchange(other.end_, 0);
  capacity_ = std::exchange(other.capacity_, 0);
}

void TimerChain::DropOldest(size_t count, TimerChunkPool& pool) noexcept {
  TimerChunk* first = last_->next;
  first->begin = static_cast<uint16_t>(first->begin + count);
  if (first->begin == EndOf(first)) pool.Put(UnlinkFirst());
}

size_t TimerChain::Take(size_t max, std::vector<TimerEntry>* out, TimerChunkPool& pool) {
  TimerChunk* first = last_->next;
  const size_t count = std::min<size_t>(max, EndOf(first) - first->begin);
  const TimerEntry* from = first->entries() + first->begin;
  out->insert(out->end(), from, from + count);
  DropOldest(count, pool);
  return count;
}

namespace {

size_t SweepChunk(absl::FunctionRef<bool(const TimerEntry&)> keep, TimerChunk* chunk) {
  TimerEntry* const entries = chunk->entries();
  const uint16_t size = chunk->end;
  uint16_t kept = chunk->begin;
  for (uint16_t i = chunk->begin; i < size; ++i) {
    if (keep(entries[i])) entries[kept++] = entries[i];
  }
  chunk->end = kept;
  return size - kept;
}

}  // namespace

size_t TimerChain::Sweep(absl::FunctionRef<bool(const TimerEntry&)> keep,
                         TimerChunkPool& pool) noexcept {
  TimerChain kept;
  size_t removed = 0;
  while (!empty()) {
    TimerChunk* chunk = UnlinkFirst();
    removed += SweepChunk(keep, chunk);
    while (chunk->begin < chunk->end && kept.end_ < kept.capacity_) {
      kept.last_->entries()[kept.end_++] = chunk->entries()[chunk->begin++];
    }
    if (chunk->begin == chunk->end) {
      pool.Put(chunk);
    } else {
      kept.LinkLast(chunk);
    }
  }
  Splice(kept);
  return removed;
}

}  // namespace sched::internal
