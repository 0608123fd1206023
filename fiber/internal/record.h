// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_RECORD_H_
#define WEFT_FIBER_INTERNAL_RECORD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/wait_block.h"

namespace fiber {
class Scheduler;
}

namespace fiber::internal {

struct ThreadState;

// A fiber's state is also the right to touch its stack. park.h has the transitions.
enum class State : uint32_t {
  kFree,       // the record is in a free list, or being filled in
  kNew,        // spawned; no stack yet
  kReady,      // in exactly one run queue
  kRunning,    // on a worker
  kParking,    // still on its worker, but already visible to those it waits for
  kParked,     // off its worker; nobody touches the stack
  kWoken,      // unparked before it was off its worker
  kHeld,       // parked, and somebody reads or changes its stack
  kHeldWoken,  // unparked meanwhile
  kDone,       // its closure has returned and is destroyed
};

// Options of a spawn that are rare enough to live on the heap until the first run.
struct SpawnExtras {
  // Of its own, so that it can change hands in the middle of a park, where nothing may be allocated.
  std::unique_ptr<std::string> name;
};

// Record is a fiber. 128 bytes from spawn to join, in slabs that are never discarded and can be walked.
//
// Protection: fields without a remark are written before the fiber is first queued, or belong to whoever the state
// gives the stack to.
struct alignas(128) Record {
  // What a switch touches.
  // The saved stack pointer while off its worker; before the first run, the Ambient it inherits. Atomic for PrefetchStack only.
  Atomic<void*> context{nullptr};
  Atomic<State> state{State::kFree};
  uint16_t flags = 0;                // kFlag…; const from spawn to release, but for kFlagBound
  uint16_t blocker = 0;              // see is_blocker
  Record* next = nullptr;            // link of the queue that holds it
  Atomic<WaitBlock*> block{nullptr};  // from the first run to the end; order: owner (release / acquire)
  Scheduler* scheduler = nullptr;    // const from spawn to release; who walks the slabs reads it with SchedulerOf
  Atomic<uint64_t> id{0};            // 0: free. Never reused
  std::source_location site;         // const from spawn to release
  uint64_t parent_id = 0;

  // What spawn, end and join touch.
  void (*run)(Record&) = nullptr;    // calls the closure, keeps its outcome, destroys the closure
  Atomic<uintptr_t> join{0};         // see join.h
  Atomic<const absl::Status*> cancel{nullptr};  // the cause; null: not cancelled. order: cancel
  alignas(8) std::byte storage[40];  // outcome and closure where they fit, else pointers to them

  static constexpr uint16_t kFlagHeapTask = 1;   // storage: void* task, SpawnExtras* extras
  static constexpr uint32_t kStackClassShift = 1;
  static constexpr uint16_t kStackClassMask = 3u << kStackClassShift;
  static constexpr uint16_t kFlagBound = 16;  // to its thread: see NoMigrate. Set and cleared by the fiber itself
  static constexpr uint16_t kFlagEntered = 8;  // by who spawns it, which is outside: see EnterOnlyScheduler

  bool is_bound() const { return (flags & kFlagBound) != 0; }
  // That it held up its worker in the kernel when it ran last: so it will, most likely. A hint, set by the monitor of whoever
  // runs it, even if it has just gone on, or ended.
  bool is_blocker() const {
    return std::atomic_ref(const_cast<uint16_t&>(blocker)).load(std::memory_order_relaxed) != 0;
  }
  void set_blocker(bool is_blocker) {
    std::atomic_ref(blocker).store(is_blocker ? 1 : 0, std::memory_order_relaxed);
  }
  StackClass stack_class() const {
    return static_cast<StackClass>((flags & kStackClassMask) >> kStackClassShift);
  }
  void*& heap_task() { return reinterpret_cast<void**>(storage)[0]; }
  SpawnExtras*& extras() { return reinterpret_cast<SpawnExtras**>(storage)[1]; }
};
static_assert(sizeof(Record) == 128);

// A record's scheduler, for those who walk the slabs while records are released and spawned anew.
inline Scheduler* SchedulerOf(Record& record) {
  return std::atomic_ref<Scheduler*>(record.scheduler).load(std::memory_order_relaxed);
}

// Takes a record from the thread's free list, the process's, or fresh memory. Throws std::bad_alloc, as every
// allocation of a spawn may, when there is none.
Record& AllocateRecord(ThreadState& thread);
// REQUIRES: nobody refers to it any more.
void FreeRecord(ThreadState& thread, Record& record);
// Hands a thread's free records to the process. At thread exit.
void ReturnFreeRecords(ThreadState& thread);

// Calls `visit` for every record that is not free at that moment. Fibers come and go meanwhile: `visit` checks id
// and state by itself.
void ForEachRecord(absl::FunctionRef<void(Record&)> visit);

// The same for up to `most` records from index `from` on; a visit that returns false ends it early. Returns the index to go
// on from; zero: that was the last record.
size_t VisitRecords(size_t from, size_t most, absl::FunctionRef<bool(Record&)> visit);

// True if a mapping that begins at `address` holds records, so is kept. For tests that look for leaks.
bool IsSlabOfRecords(const void* address);

// How many records are in use (approximate while fibers come and go).
size_t CountRecordsInUse();

// Names the fiber that has the block; null: it has no name. By that fiber or its worker, since others may be reading.
void SetName(WaitBlock& block, std::string* name);

// "fiber 12 'name' (spawned at file.cc:7)". By the fiber itself, its worker, or whoever holds it.
std::string Describe(const Record& record);
// The same by those who walk the slabs; the name only once the fiber has started.
std::string DescribeUnheld(Record& record);

// Identity is what a fiber is known by to who does not hold it.
struct Identity {
  uint64_t id = 0;   // 0: it has ended
  std::string name;  // "": none, or not started
  std::source_location site;
};
// Consistent if the record has that id afterwards, too.
Identity IdentifyUnheld(Record& record);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_RECORD_H_
