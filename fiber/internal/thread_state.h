// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_THREAD_STATE_H_
#define WEFT_FIBER_INTERNAL_THREAD_STATE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// What the next context does, first thing, for the one that was left. park.h has the transitions.
enum class After : uint8_t { kNothing, kYield, kPark, kDone };

// The C++ runtime's per-thread exception state (Itanium C++ ABI, __cxa_eh_globals).
struct ExceptionState {
  void* caught;
  unsigned int uncaught;
};

// Published is a pointer that one thread writes, and a monitor may read at any time. Relaxed: what it points to is never
// freed, and nothing is concluded from it but that it is still the same.
template <class T>
class Published {
 public:
  Published& operator=(T* pointer) {
    pointer_.store(pointer, std::memory_order_relaxed);
    return *this;
  }
  operator T*() const { return pointer_.load(std::memory_order_relaxed); }  // NOLINT: reads like a pointer
  T* operator->() const { return *this; }

 private:
  std::atomic<T*> pointer_{nullptr};
};

// ThreadState is what the fiber layer knows about one OS thread, worker or plain. Everything is the thread's own, but that
// a monitor may look which fiber is on it.
//
// A pointer to it must not be kept across a park: the fiber may come back on another thread. Switch() therefore
// returns the state of the thread it came back on, and ThisThread() is opaque to the compiler, which would
// otherwise keep thread_local addresses across a park.
struct ThreadState {
  Published<Record> current;         // the fiber on this thread; null: the thread is on its own stack
  Scheduler* scheduler = nullptr;    // whose worker this is; null: a plain thread
  void* worker = nullptr;            // the scheduler's own per-thread state
  // While a fiber holds up this thread or is bound to it (blocking_region.h), which then is no worker.
  void* set_aside = nullptr;         // what was `worker`
  Scheduler* blocks_for = nullptr;   // what was `scheduler`, in a thread that counts as a plain one
  Record* blocked_fiber = nullptr;   // and what was `current`

  // Handed over across a switch.
  Record* from = nullptr;            // null: the thread's own stack was left
  WaitBlock* ended = nullptr;        // kDone: the stack that was left for good
  After after = After::kNothing;
  void* own_context = nullptr;       // the thread's own stack while a fiber runs
  int32_t turn_left = 0;             // of the fiber that runs; see SpendTurn

  // Recorded at start: compilers fold calls of __errno_location and __cxa_get_globals across a park.
  int* errno_address = nullptr;
  ExceptionState* exceptions = nullptr;

  uint64_t random = 0;               // RandomBelow's; zero: not seeded

  WaitBlock* plain_block = nullptr;  // what this thread waits through when it is on its own stack
  StackCache stacks[kStackClasses];
  bool are_stacks_listed = false;    // in the depot, which looks into them until they are taken off
  Record* free_records = nullptr;
  uint32_t free_record_count = 0;
  uint64_t next_id = 0;
  uint64_t end_id = 0;

  // Sanitizers: the thread's own stack and context.
  const void* own_stack_bottom = nullptr;
  size_t own_stack_size = 0;
  void* own_sanitizer_fiber = nullptr;
};

// For a thread that is about to be made: by its maker, who can say that there is no memory (null), and for the thread to adopt
// before it does anything else.
std::unique_ptr<ThreadState> NewThreadState();
void AdoptThreadState(std::unique_ptr<ThreadState> state);

// The calling thread's state. Never inlined, never folded. Throws std::bad_alloc, in a thread that has none yet.
ThreadState& ThisThread();
// Null if it has none yet: it has run no fiber. Allocates nothing.
ThreadState* ThisThreadOrNull();

// The calling thread runs fibers of `scheduler` from here on, with `worker` as the scheduler's own per-thread state.
void BecomeWorker(ThreadState& thread, Scheduler& scheduler, void* worker);
// The free stacks that it keeps go to where others find them.
void GiveStacks(ThreadState& thread);
// Gives back what only a worker keeps.
void StopBeingWorker(ThreadState& thread);

// In a child of fork(): the calling thread, a worker until now, is a plain one, on the stack of the fiber that it ran. The
// rest of that fiber's runtime is not there.
void LeaveInFork(ThreadState& thread);

// The block through which the calling thread waits when it is on its own stack.
WaitBlock& PlainBlock(ThreadState& thread);

// A block without a stack, and back again: nothing counts any more that is filed for it.
WaitBlock& TakePlainBlock();
void GivePlainBlock(WaitBlock& block);

// One of 0 … n - 1, all alike, by the thread's own generator.
uint32_t RandomBelow(ThreadState& thread, uint32_t n);
// The same by the caller's scheduler, which in a simulation takes it from the seed.
uint32_t ChooseBelow(uint32_t n);

// The machine's monotonic clock.
int64_t MonotonicNs();

// What the calling thread has used of its CPU. A system call, some 300 ns.
int64_t ThreadCpuNs();
// The clock of the caller's scheduler.
int64_t NowNs();

// Ends the process with a message: for misuse that can only be a bug. Names the running fiber.
[[noreturn]] void Fatal(const char* format, ...) __attribute__((format(printf, 1, 2)));
// One line on stderr.
void LogLine(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_THREAD_STATE_H_
