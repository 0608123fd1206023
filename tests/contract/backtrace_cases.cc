// SPDX-License-Identifier: Apache-2.0
//
// Every backtrace of a fiber ends at the entry of its stack, whoever makes it and by whichever means: frames beyond it are
// garbage in a profile, and an unwinder that finds none may run for ever.
#include <unwind.h>

#include <cstdint>
#include <cstring>

#include "fiber/go.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "tests/contract/cases.h"
#include "tests/contract/moving.h"

namespace contract {
namespace {

constexpr int kMost = 60;  // frames; those of a case are fewer

struct Trace {
  int frames = 0;
  uintptr_t outermost = 0;  // the program counter there
};

_Unwind_Reason_Code AddFrame(_Unwind_Context* context, void* argument) {
  Trace& trace = *static_cast<Trace*>(argument);
  const uintptr_t program_counter = _Unwind_GetIP(context);
  if (program_counter == 0) return _URC_NO_REASON;  // says that there is no more
  trace.outermost = program_counter;
  return ++trace.frames > kMost ? _URC_END_OF_STACK : _URC_NO_REASON;
}

// The entry's call returns to an instruction that is not to be reached.
bool IsEntry(uintptr_t program_counter) {
  return memcmp(reinterpret_cast<const void*>(program_counter), "\x0f\x0b", 2) == 0;
}

// As the C++ runtime itself unwinds, and glibc's backtrace().
__attribute__((noinline)) void CheckByTables() {
  Trace trace;
  const _Unwind_Reason_Code code = _Unwind_Backtrace(AddFrame, &trace);
  HOLDS(code == _URC_END_OF_STACK);
  HOLDS(trace.frames >= 3 && trace.frames <= kMost);
  HOLDS(IsEntry(trace.outermost));
}

// As the kernel does for perf: from frame pointer to frame pointer, until one is null.
__attribute__((noinline)) void CheckByFramePointers() {
#if !defined(WEFT_NO_FRAME_POINTERS)
  const auto* block = fiber::internal::ThisThread().current->block.load(std::memory_order_relaxed);
  const auto* frame = static_cast<void* const*>(__builtin_frame_address(0));
  for (int frames = 0; frames <= kMost; ++frames) {
    const char* place = reinterpret_cast<const char*>(frame);
    const bool is_inside = place >= block->stack_low && place + 2 * sizeof(void*) <= block->stack_high;
    HOLDS(is_inside);
    if (!is_inside) return;
    const auto* next = static_cast<void* const*>(frame[0]);
    if (next == nullptr) {
      HOLDS(frames >= 2);
      HOLDS(IsEntry(reinterpret_cast<uintptr_t>(frame[1])));
      return;
    }
    HOLDS(next > frame);
    if (next <= frame) return;
    frame = next;
  }
  HOLDS(!"the chain of frame pointers ends");
#endif
}

void CheckBacktrace() {
  CheckByTables();
  CheckByFramePointers();
}

struct Tracer {
  ~Tracer() {
    CheckBacktrace();
    Move();
    CheckBacktrace();
  }
};

void BacktracesEndAtTheEntry() {
  CheckBacktrace();
  Move();
  CheckBacktrace();
  try {
    Tracer tracer;
    throw 1;
  } catch (int) {
    CheckBacktrace();
    Move();
    CheckBacktrace();
  }
}

// A stack runs one fiber after the other.
void BacktracesEndOnStacksThatAreUsedAgain() {
  for (int i = 0; i < 5; ++i) {
    auto child = fiber::Spawn([] {
      CheckBacktrace();
      auto grandchild = fiber::Spawn([] { CheckBacktrace(); });
      fiber::Yield();
      CheckBacktrace();
    });
    child.Join();
  }
}

constexpr Case kBacktraceCases[] = {
    {"BacktracesEndAtTheEntry", BacktracesEndAtTheEntry},
    {"BacktracesEndOnStacksThatAreUsedAgain", BacktracesEndOnStacksThatAreUsedAgain},
};

}  // namespace

std::span<const Case> BacktraceCases() { return kBacktraceCases; }

}  // namespace contract
