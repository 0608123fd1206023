// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/thread_state.h"

#include <cxxabi.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "fiber/internal/ambient.h"
#include "fiber/internal/context.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/scheduler.h"

namespace fiber::internal {
namespace {

constinit thread_local ThreadState* this_thread = nullptr;

// Blocks for plain threads and alarms: no stack, never discarded.
class PlainBlocks {
 public:
  static PlainBlocks& Get() {
    static PlainBlocks* const blocks = new PlainBlocks;
    return *blocks;
  }
  WaitBlock* Take() {
    {
      SpinLockHolder hold(lock_);
      if (WaitBlock* block = free_; block != nullptr) {
        free_ = block->next_free;
        return block;
      }
    }
    return new WaitBlock;
  }
  void Give(WaitBlock* block) {
    SpinLockHolder hold(lock_);
    block->next_free = free_;
    free_ = block;
  }

 private:
  PlainBlocks() { HoldAcrossForks(lock_); }

  SpinLock lock_;
  WaitBlock* free_ ABSL_GUARDED_BY(lock_) = nullptr;
};

[[maybe_unused]] const PlainBlocks& blocks_made_before_main = PlainBlocks::Get();

// Gives back at thread exit what a thread has kept. A thread that uses us after that, in a later thread_local
// destructor, gets a new state, which is then leaked.
struct Reaper {
  ~Reaper() {
    ThreadState* thread = this_thread;
    if (thread == nullptr) return;
    // A fiber has called exit(): it still stands on its worker, which others look for stacks, and what else is destroyed
    // may have it park.
    if (thread->scheduler != nullptr || thread->blocks_for != nullptr) return;
    if (thread->are_stacks_listed) return;  // the same, in a child of fork() made by a fiber
    if (thread->plain_block != nullptr) {
      DropValues(*thread->plain_block);
      PlainBlocks::Get().Give(thread->plain_block);
    }
    ReturnFreeRecords(*thread);
    this_thread = nullptr;
    delete thread;
  }
};
thread_local Reaper reaper;

void Adopt(ThreadState* thread) {
  thread->errno_address = &errno;
  thread->exceptions = reinterpret_cast<ExceptionState*>(abi::__cxa_get_globals());
#ifdef WEFT_ASAN
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    void* bottom = nullptr;
    pthread_attr_getstack(&attributes, &bottom, &thread->own_stack_size);
    thread->own_stack_bottom = bottom;
    pthread_attr_destroy(&attributes);
  }
#endif
#ifdef WEFT_TSAN
  thread->own_sanitizer_fiber = __tsan_get_current_fiber();
#endif
  this_thread = thread;
  (void)&reaper;  // constructed from here on
}

// Out of line, so that ThisThread() saves no registers.
[[gnu::noinline]] ThreadState* MakeThisThreads() {
  auto* thread = new ThreadState;
  Adopt(thread);
  return thread;
}

}  // namespace

std::unique_ptr<ThreadState> NewThreadState() {
  try {
    return std::make_unique<ThreadState>();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void AdoptThreadState(std::unique_ptr<ThreadState> state) { Adopt(state.release()); }

// The asm keeps the compiler from proving that two calls return the same, which they do not across a park.
__attribute__((noinline)) ThreadState& ThisThread() {
  asm volatile("" ::: "memory");
  ThreadState* thread = this_thread;
  if (thread == nullptr) [[unlikely]] return *MakeThisThreads();
  return *thread;
}

__attribute__((noinline)) ThreadState* ThisThreadOrNull() {
  asm volatile("" ::: "memory");
  return this_thread;
}

void BecomeWorker(ThreadState& thread, Scheduler& scheduler, void* worker) {
  if (thread.scheduler != nullptr || thread.blocks_for != nullptr) Fatal("a worker of one runtime cannot become another's");
  thread.scheduler = &scheduler;
  thread.worker = worker;
  // Since the fork, if this was a worker of the parent's.
  if (!std::exchange(thread.are_stacks_listed, true)) StackDepot::Get().RegisterCaches(thread.stacks);
}

void GiveStacks(ThreadState& thread) {
  for (StackCache& cache : thread.stacks) {
    if (cache.size() > 0) StackDepot::Get().GiveFrom(cache);
  }
}

void StopBeingWorker(ThreadState& thread) {
  StackDepot::Get().UnregisterCaches(thread.stacks);
  thread.are_stacks_listed = false;
  thread.scheduler = nullptr;
  thread.worker = nullptr;
}

void LeaveInFork(ThreadState& thread) {
  thread.current = nullptr;
  thread.scheduler = nullptr;
  thread.worker = nullptr;
  thread.blocks_for = nullptr;
  thread.blocked_fiber = nullptr;
  thread.set_aside = nullptr;
}

WaitBlock& PlainBlock(ThreadState& thread) {
  if (thread.plain_block == nullptr) thread.plain_block = PlainBlocks::Get().Take();
  return *thread.plain_block;
}

WaitBlock& TakePlainBlock() { return *PlainBlocks::Get().Take(); }

void GivePlainBlock(WaitBlock& block) { PlainBlocks::Get().Give(&block); }

uint32_t RandomBelow(ThreadState& thread, uint32_t n) {
  if (thread.random == 0) {
    thread.random = reinterpret_cast<uintptr_t>(&thread) ^ static_cast<uint64_t>(MonotonicNs());
  }
  // splitmix64 (Steele, Lea and Flood, 2014): its state is a counter, so that any seed will do.
  thread.random += 0x9e3779b97f4a7c15;
  uint64_t mixed = thread.random;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  mixed ^= mixed >> 31;
  return static_cast<uint32_t>(((mixed >> 32) * n) >> 32);
}

uint32_t ChooseBelow(uint32_t n) {
  ThreadState& thread = ThisThread();
  return thread.scheduler == nullptr ? RandomBelow(thread, n)
                                     : thread.scheduler->ChooseBelow(thread, n);
}

int64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);  // cannot fail for this clock
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

int64_t ThreadCpuNs() {
  timespec used;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);  // cannot fail for this clock
  return used.tv_sec * int64_t{1'000'000'000} + used.tv_nsec;
}

int64_t NowNs() {
  ThreadState& thread = ThisThread();
  return thread.scheduler != nullptr ? thread.scheduler->NowNs() : MonotonicNs();
}

namespace {

// One write, so that lines of several threads do not mix.
void WriteLine(const char* prefix, const char* format, va_list arguments) {
  char line[1024];
  int size = snprintf(line, sizeof line, "%s", prefix);
  const int more = vsnprintf(line + size, sizeof line - static_cast<size_t>(size) - 1, format, arguments);
  size += more < 0 ? 0 : more;
  if (size > static_cast<int>(sizeof line) - 2) size = static_cast<int>(sizeof line) - 2;
  line[size++] = '\n';
  // Nobody can be told if stderr is closed.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line, static_cast<size_t>(size));
}

}  // namespace

void LogLine(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  WriteLine("weft: ", format, arguments);
  va_end(arguments);
}

void Fatal(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  WriteLine("weft: fatal: ", format, arguments);
  va_end(arguments);
  if (const Record* current = ThisThread().current; current != nullptr) {
    LogLine("in %s", Describe(*current).c_str());
  }
  abort();
}

}  // namespace fiber::internal
