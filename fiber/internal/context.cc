// SPDX-License-Identifier: Apache-2.0
//
// The one file that knows Boost.Context: the switch, the entry of a fiber, and a fiber's end.
#include "fiber/internal/context.h"

#include <boost/context/detail/fcontext.hpp>
#include <sched.h>

#include "fiber/internal/ambient.h"
#include "fiber/internal/join.h"
#include "fiber/internal/leave_hook.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/park.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/stack_guard.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"

namespace fiber::internal {
namespace {

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

// Of a stack that was left for good, at `context`: what never returned has left its frames poisoned; what did return has cleared
// its own, below these.
void UnpoisonFrames([[maybe_unused]] const WaitBlock& block, [[maybe_unused]] void* context) {
#ifdef WEFT_ASAN
  const auto* const frames = static_cast<char*>(context);
  __asan_unpoison_memory_region(frames, static_cast<size_t>(block.stack_high - frames));
#endif
}

// A stack that was left for good.
void ReturnStack(ThreadState& thread, WaitBlock& block) {
  StackCache& cache = thread.stacks[static_cast<int>(block.stack_class)];
  cache.Push(&block);
  StackDepot& depot = StackDepot::Get();
  if (cache.size() > StackCache::kMost || depot.HasWaiters()) [[unlikely]] depot.GiveFrom(cache);
}

// First thing on the context that was switched to: what the one that was left could not do for itself. Not inlined by force:
// ThreadSanitizer must see its accesses, and sees none of Switch's.
void AfterSwitch(ThreadState& thread, void* context) {
  Record* from = thread.from;
  switch (thread.after) {
    case After::kNothing:
      thread.own_context = context;
      break;
    case After::kYield:
      from->context.store(context, std::memory_order_relaxed);
      from->state.store(State::kReady, std::memory_order_relaxed);
      from->scheduler->QueueYielded(*from);
      break;
    case After::kPark:
      from->context.store(context, std::memory_order_relaxed);
      if (!FinishPark(*from)) from->scheduler->QueueReady(*from);
      break;
    case After::kDone:
      UnpoisonFrames(*thread.ended, context);
      ReturnStack(thread, *thread.ended);
      break;
  }
}

#ifdef WEFT_ASAN
void StartSwitch(void** fake_stack, ThreadState& thread, const Record* to) {
  if (to == nullptr) {
    __sanitizer_start_switch_fiber(fake_stack, thread.own_stack_bottom, thread.own_stack_size);
  } else {
    const WaitBlock* block = to->block.load(std::memory_order_relaxed);
    __sanitizer_start_switch_fiber(fake_stack, block->stack_low,
                                   static_cast<size_t>(block->stack_high - block->stack_low));
  }
}
void FinishSwitch(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#endif
#ifdef WEFT_TSAN
void* SanitizerFiber(ThreadState& thread, const Record* to) {
  return to == nullptr ? thread.own_sanitizer_fiber
                       : to->block.load(std::memory_order_relaxed)->sanitizer_fiber;
}
#endif

void Bind(Record& fiber, WaitBlock& block) {
  block.fiber.store(&fiber, std::memory_order_release);  // order: owner
  fiber.block.store(&block, std::memory_order_release);  // order: owner
}

// From here on nobody may find the block through the fiber, nor the fiber through the block.
void Unbind(Record& fiber, WaitBlock& block) {
  block.fiber.store(nullptr, std::memory_order_release);  // order: owner
  fiber.block.store(nullptr, std::memory_order_release);  // order: owner
}

// User code runs only while the fiber has its block: the destructor of a detached fiber's outcome may park, like any
// other.
void RunFiber(Record& self, WaitBlock& block) {
  Scheduler* scheduler = self.scheduler;
  self.run(self);
  for (;;) {
    DiscardIfDetached(self);
    DropValues(block);
    CheckCanary(block);
    Unbind(self, block);
    self.state.store(State::kDone, std::memory_order_relaxed);
    ThreadState& thread = ThisThread();  // it may be on another by now
    if (thread.current != &self) [[unlikely]] {
      Fatal("a fiber returns in a child of fork(): there it may only exec or _exit");
    }
    if (FinishJoin(thread, self)) break;
    // Detached since we looked.
    Bind(self, block);
    self.state.store(State::kRunning, std::memory_order_relaxed);
  }
  ForgetTimer(block);
  if (block.name != nullptr) SetName(block, nullptr);
  scheduler->OnFiberEnded(ThisThread());
}

}  // namespace

// What every stack runs, called by the entry under this name. A fiber that ends hands its stack to the next unstarted one,
// which is then called without a switch; otherwise the stack is left for good.
//
// Done is published (FinishJoin) after the closure is destroyed and before the stack is left: nothing after that
// touches the record, and the stack belongs to this worker until the next context returns it.
extern "C" [[noreturn, gnu::used, gnu::visibility("hidden")]] WEFT_NO_TSAN void weft_run_fibers(
    transfer_t transfer) {
#ifdef WEFT_ASAN
  FinishSwitch(nullptr);
#endif
  ThreadState* thread = static_cast<ThreadState*>(transfer.data);
  AfterSwitch(*thread, transfer.fctx);
  Record* self = thread->current;
  WaitBlock& block = *self->block.load(std::memory_order_relaxed);
  for (;;) {
    RunFiber(*self, block);
    thread = &ThisThread();
    Record* next = thread->scheduler->TakeNext(*thread, &block);
    if (next != nullptr && next->block.load(std::memory_order_relaxed) == &block) {
      next->state.store(State::kRunning, std::memory_order_relaxed);
      thread->current = next;
      thread->turn_left = kTurn;
      self = next;
      continue;
    }
    thread->ended = &block;
    Switch(*thread, next, After::kDone);
    __builtin_unreachable();
  }
}

namespace {

// The entry of every stack, and the end of every backtrace: there is no caller (for those who read unwind tables) and no
// frame pointer above (for those who follow these). In C++ it could be said of a part of the function only, and Boost
// leaves a frame pointer that points to code.
#if defined(__x86_64__)
[[gnu::naked, noreturn]] void FiberEntry(transfer_t) {
  asm(".cfi_undefined rip\n"
      "xorl %ebp, %ebp\n"
      "subq $8, %rsp\n"  // what is called is aligned; and perf does not read the uppermost word of a stack
      ".cfi_adjust_cfa_offset 8\n"
      "call weft_run_fibers\n"
      "ud2");
}
#else
[[noreturn]] void FiberEntry(transfer_t transfer) { weft_run_fibers(transfer); }
#endif

void Adopt(Record& fiber, WaitBlock& block) {
  if ((fiber.flags & Record::kFlagHeapTask) != 0 && fiber.extras() != nullptr) {
    SetName(block, fiber.extras()->name.release());
    delete fiber.extras();
    fiber.extras() = nullptr;
  }
  block.ambient = static_cast<Ambient*>(fiber.context.load(std::memory_order_relaxed));
  Bind(fiber, block);
}

// jump_fcontext(), entered by a jump as it is left by one. A CPU predicts that a return goes to where the last call came from: a call
// that nobody returns from would leave each return between here and the fiber's own code predicted by its neighbour's call.
// (`yield` takes three quarters of the time so.) On other architectures it is left by what they count as a return.
//
// With a shadow stack it would have to be a call; see RefuseShadowStacks. REQUIRES of whoever this is inlined into: that it calls
// something, so has no red zone, where the address is pushed.
[[gnu::always_inline]] inline transfer_t Jump(void* target, void* data) {
#if defined(__x86_64__) && defined(__LP64__)
  transfer_t result;
  asm volatile(
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "jmp jump_fcontext@PLT\n"
      "1:"
      : "=a"(result.fctx), "=d"(result.data), "+D"(target), "+S"(data)
      :
      : "rcx", "r8", "r9", "r10", "r11", "cc", "memory", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)",
        "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
        "xmm14", "xmm15"
#ifdef __AVX512F__
        , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28",
        "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#endif
  );
  return result;
#else
  return jump_fcontext(target, data);
#endif
}

}  // namespace

void RefuseShadowStacks() {
#if defined(__x86_64__) && defined(__LP64__)
  uint64_t pointer = 0;
  asm volatile("rdsspq %0" : "+r"(pointer));  // a CPU or a kernel without them leaves it as it is
  if (pointer != 0) {
    Fatal("this process has a shadow stack (CET), and fibers have none: start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK");
  }
#endif
}

WEFT_NO_TSAN ThreadState& Switch(ThreadState& thread, Record* to, After after) {
  thread.from = thread.current;
  thread.after = after;
  thread.turn_left = kTurn;
  ExceptionState exceptions{};
  const bool has_exceptions =
      thread.exceptions->caught != nullptr || thread.exceptions->uncaught != 0;
  if (has_exceptions) [[unlikely]] {
    exceptions = *thread.exceptions;
    *thread.exceptions = ExceptionState{};
  }
  void* target;
  thread.current = to;
  if (to == nullptr) {
    target = thread.own_context;
  } else {
    if (to->state.load(std::memory_order_relaxed) == State::kNew) {
      WaitBlock* block = to->block.load(std::memory_order_relaxed);
      to->context.store(make_fcontext(block->stack_high,
                                      static_cast<size_t>(block->stack_high - block->stack_low),
                                      FiberEntry),
                        std::memory_order_relaxed);
    }
    to->state.store(State::kRunning, std::memory_order_relaxed);
    target = to->context.load(std::memory_order_relaxed);
  }
#ifdef WEFT_ASAN
  void* fake_stack = nullptr;
  StartSwitch(after == After::kDone ? nullptr : &fake_stack, thread, to);
#endif
#ifdef WEFT_TSAN
  __tsan_switch_to_fiber(SanitizerFiber(thread, to), 0);
#endif
  const transfer_t transfer = Jump(target, &thread);
#ifdef WEFT_ASAN
  FinishSwitch(fake_stack);
#endif
  ThreadState& back = *static_cast<ThreadState*>(transfer.data);
  AfterSwitch(back, transfer.fctx);
  if (has_exceptions) [[unlikely]] *back.exceptions = exceptions;
  return back;
}

bool BindStack(ThreadState& thread, Record& fiber, WaitBlock* spare) {
  const StackClass cls = fiber.stack_class();
  if (spare != nullptr && spare->stack_class == cls) {
    Adopt(fiber, *spare);
    return true;
  }
  StackCache& cache = thread.stacks[static_cast<int>(cls)];
  WaitBlock* block = cache.Pop();
  if (block == nullptr) [[unlikely]] {
    block = StackDepot::Get().TakeForCache(cls, cache, fiber);
    if (block == nullptr) return false;
  }
#ifdef WEFT_TSAN
  if (block->sanitizer_fiber == nullptr) block->sanitizer_fiber = __tsan_create_fiber(0);
#endif
  Adopt(fiber, *block);
  return true;
}

void YieldFiber() {
  ThreadState& thread = ThisThread();
  TellLeaveHook(*thread.current, Leaving::kYield);
  const int saved_errno = *thread.errno_address;
  if (thread.current->is_bound()) [[unlikely]] {
    sched_yield();  // cannot fail
    return;
  }
  Record* next = nullptr;
  const bool is_left = thread.scheduler->TakeNextForYield(thread, &next);
  ThreadState& back = is_left ? Switch(thread, next, After::kYield) : thread;
  *back.errno_address = saved_errno;
}

void SpendTurn(int32_t cost) {
  ThreadState& thread = ThisThread();
  if ((thread.turn_left -= cost) > 0) return;
  thread.turn_left = kTurn;
  if (thread.current != nullptr) YieldFiber();
}

}  // namespace fiber::internal
