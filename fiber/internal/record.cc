// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/record.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"

namespace fiber::internal {
namespace {

// Against those who read the names of fibers that run.
constinit SpinLock names_lock;

// The registry of all fibers: chunks of records that are never given back, so whoever holds a stale pointer to a
// record finds a record.
class RecordSlab {
 public:
  static constexpr size_t kChunkBytes = 2 << 20;
  static constexpr size_t kChunkRecords = kChunkBytes / sizeof(Record);
  static constexpr uint32_t kBatch = 64;

  static RecordSlab& Get() {
    static RecordSlab* const slab = new RecordSlab;  // never destroyed: fibers may outlive statics
    return *slab;
  }

  // Up to kBatch free records, linked by `next`. null: there is no memory for one.
  Record* TakeBatch(uint32_t* count) {
    SpinLockHolder hold(lock_);
    Record* list = nullptr;
    for (*count = 0; *count < kBatch; ++*count) {
      Record* record = free_;
      if (record != nullptr) {
        free_ = record->next;
      } else {
        if (carved_ == chunks_.size() * kChunkRecords && !TryAddChunk()) return list;
        record = new (&chunks_[carved_ / kChunkRecords][carved_ % kChunkRecords]) Record;
        ++carved_;
      }
      record->next = list;
      list = record;
    }
    return list;
  }

  void GiveBatch(Record* first, Record* last) {
    SpinLockHolder hold(lock_);
    last->next = free_;
    free_ = first;
  }

  size_t Visit(size_t from, size_t most, absl::FunctionRef<bool(Record&)> visit) {
    constexpr size_t kAtOnce = 256;
    for (size_t end = from + most; from < end;) {
      // Chunks stay where they are, so only finding one needs the lock.
      Record* records;
      size_t count;
      {
        SpinLockHolder hold(lock_);
        if (from >= carved_) return 0;
        records = &chunks_[from / kChunkRecords][from % kChunkRecords];
        count = std::min({kAtOnce, carved_ - from, kChunkRecords - from % kChunkRecords});
      }
      for (size_t i = 0; i < count; ++i, ++from) {
        if (records[i].id.load(std::memory_order_acquire) == 0) continue;  // order: owner
        if (!visit(records[i])) return from + 1;
      }
    }
    return from;
  }

  bool IsChunk(const void* address) {
    SpinLockHolder hold(lock_);
    return std::find(chunks_.begin(), chunks_.end(), address) != chunks_.end();
  }

 private:
  bool TryAddChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    // On small pages: a huge one saves faults where memory is at hand, but in a virtual machine whose host has to find it
    // first, touching records cost 0.27 us each instead of 0.05.
    void* memory = mmap(nullptr, kChunkBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    try {
      chunks_.push_back(static_cast<Record*>(memory));
    } catch (const std::bad_alloc&) {
      munmap(memory, kChunkBytes);
      return false;
    }
    return true;
  }

  RecordSlab() {
    HoldAcrossForks(lock_);
    HoldAcrossForks(names_lock);
  }

  SpinLock lock_;
  Record* free_ ABSL_GUARDED_BY(lock_) = nullptr;
  std::vector<Record*> chunks_ ABSL_GUARDED_BY(lock_);
  size_t carved_ ABSL_GUARDED_BY(lock_) = 0;
};

[[maybe_unused]] const RecordSlab& records_made_before_main = RecordSlab::Get();

// Ids are handed to threads in blocks: unique, only roughly in the order of spawning.
constexpr uint64_t kIdBlock = 1024;
Atomic<uint64_t> next_id_block{1};

uint64_t NextId(ThreadState& thread) {
  if (thread.next_id == thread.end_id) {
    thread.next_id = next_id_block.fetch_add(kIdBlock, std::memory_order_relaxed);
    thread.end_id = thread.next_id + kIdBlock;
  }
  return thread.next_id++;
}

// Whoever spawns in a loop would fill the log.
void LogNoMemory() {
  constexpr int64_t kIntervalNs = 10'000'000'000;
  static Atomic<int64_t> next_log_ns{0};
  const int64_t now = MonotonicNs();
  int64_t next = next_log_ns.load(std::memory_order_relaxed);
  if (now < next || !next_log_ns.compare_exchange_strong(next, now + kIntervalNs, std::memory_order_relaxed,
                                                         std::memory_order_relaxed)) {
    return;
  }
  LogLine("no memory for the records of more fibers: address space (ulimit -v), data (ulimit -d), the "
          "memory limit, CommitLimit or vm.max_map_count is exhausted; raise it or start fewer");
}

// What a thread keeps: up to two batches, so that it neither takes nor gives on every fiber.
constexpr uint32_t kMostFree = 2 * RecordSlab::kBatch;

void GiveFreeRecords(ThreadState& thread, uint32_t count) {
  if (count == 0) return;
  Record* first = thread.free_records;
  Record* last = first;
  for (uint32_t i = 1; i < count; ++i) last = last->next;
  thread.free_records = last->next;
  thread.free_record_count -= count;
  RecordSlab::Get().GiveBatch(first, last);
}

}  // namespace

Record& AllocateRecord(ThreadState& thread) {
  if (thread.free_records == nullptr) {
    thread.free_records = RecordSlab::Get().TakeBatch(&thread.free_record_count);
    if (thread.free_records == nullptr) [[unlikely]] {
      LogNoMemory();
      throw std::bad_alloc();
    }
  }
  Record& record = *thread.free_records;
  thread.free_records = record.next;
  --thread.free_record_count;
  record.next = nullptr;
  record.flags = 0;
  record.join.store(0, std::memory_order_relaxed);
  record.state.store(State::kNew, std::memory_order_relaxed);
  record.id.store(NextId(thread), std::memory_order_release);  // order: owner
  return record;
}

void FreeRecord(ThreadState& thread, Record& record) {
  record.id.store(0, std::memory_order_release);  // order: owner
  record.state.store(State::kFree, std::memory_order_relaxed);
  if (const absl::Status* cause = record.cancel.load(std::memory_order_relaxed); cause != nullptr) {
    FreeCause(cause);
    record.cancel.store(nullptr, std::memory_order_relaxed);
  }
  record.next = thread.free_records;
  thread.free_records = &record;
  if (++thread.free_record_count > kMostFree) GiveFreeRecords(thread, RecordSlab::kBatch);
}

void ReturnFreeRecords(ThreadState& thread) { GiveFreeRecords(thread, thread.free_record_count); }

size_t VisitRecords(size_t from, size_t most, absl::FunctionRef<bool(Record&)> visit) {
  return RecordSlab::Get().Visit(from, most, visit);
}

void ForEachRecord(absl::FunctionRef<void(Record&)> visit) {
  size_t from = 0;
  do {
    from = VisitRecords(from, RecordSlab::kChunkRecords, [&visit](Record& record) {
      visit(record);
      return true;
    });
  } while (from != 0);
}

bool IsSlabOfRecords(const void* address) { return RecordSlab::Get().IsChunk(address); }

size_t CountRecordsInUse() {
  size_t count = 0;
  ForEachRecord([&count](Record&) { ++count; });
  return count;
}

std::string Describe(const Record& record) {
  std::string text =
      absl::StrCat("fiber ", record.id.load(std::memory_order_relaxed));
  if (const WaitBlock* block = record.block.load(std::memory_order_acquire);  // order: owner
      block != nullptr && block->name != nullptr) {
    absl::StrAppend(&text, " '", *block->name, "'");
  }
  absl::StrAppend(&text, " (spawned at ", record.site.file_name(), ":", record.site.line(), ")");
  return text;
}

namespace {

std::string NameOfUnheld(const Record& record) {
  const WaitBlock* block = record.block.load(std::memory_order_acquire);  // order: owner
  if (block == nullptr) return "";
  SpinLockHolder hold(names_lock);
  // Names are deleted under this lock; and a block that has gone to another fiber says so.
  if (block->fiber.load(std::memory_order_acquire) != &record || block->name == nullptr) return "";  // order: owner
  return *block->name;
}

}  // namespace

void SetName(WaitBlock& block, std::string* name) {
  std::string* before;
  {
    SpinLockHolder hold(names_lock);
    before = std::exchange(block.name, name);
  }
  delete before;
}

Identity IdentifyUnheld(Record& record) {
  return {.id = record.id.load(std::memory_order_acquire),  // order: owner
          .name = NameOfUnheld(record),
          .site = std::atomic_ref<std::source_location>(record.site).load(std::memory_order_relaxed)};
}

std::string DescribeUnheld(Record& record) {
  const Identity fiber = IdentifyUnheld(record);
  std::string text = absl::StrCat("fiber ", fiber.id);
  if (!fiber.name.empty()) absl::StrAppend(&text, " '", fiber.name, "'");
  absl::StrAppend(&text, " (spawned at ", fiber.site.file_name(), ":", fiber.site.line(), ")");
  return text;
}

}  // namespace fiber::internal
