// SPDX-License-Identifier: Apache-2.0
//
// Backtraces by libunwind, from inside a fiber and of a parked one: without an end at the entry of the stack, profilers
// and crash reporters show garbage below every fiber, or follow it for ever.
#if !__has_include(<libunwind.h>)
#error "libunwind is missing: apt-get install libunwind-dev"
#endif
#define UNW_LOCAL_ONLY
#include <libunwind.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace contract {
namespace {

using fiber::internal::Record;
using testing::Contains;
using testing::HasSubstr;

// The functions of a backtrace, the innermost first.
std::vector<std::string> Functions(unw_context_t* context) {
  constexpr size_t kMost = 60;
  std::vector<std::string> functions;
  unw_cursor_t cursor;
  EXPECT_EQ(unw_init_local(&cursor, context), 0);
  int step;
  do {
    char name[256] = "?";
    unw_word_t offset;
    (void)unw_get_proc_name(&cursor, name, sizeof name, &offset);  // long ones are cut
    functions.push_back(name);
    step = unw_step(&cursor);
  } while (step > 0 && functions.size() < kMost);
  EXPECT_EQ(step, 0) << "the end is not seen to be one";
  return functions;
}

void ExpectEndsAtTheEntry(const std::vector<std::string>& functions) {
  ASSERT_GE(functions.size(), 3u);
  EXPECT_THAT(functions.back(), HasSubstr("FiberEntry")) << testing::PrintToString(functions);
  EXPECT_THAT(functions, testing::Not(Contains("?")));
}

__attribute__((noinline)) std::vector<std::string> OwnFunctions() {
  unw_context_t context;
  unw_getcontext(&context);
  return Functions(&context);
}

TEST(UnwindTest, ABacktraceFromInsideAFiberEndsAtTheEntry) {
  sched::Run({.workers = 2}, [] {
    for (int i = 0; i < 3; ++i) {  // on a stack of its own, and on one that is used again
      auto child = fiber::Spawn([] {
        ExpectEndsAtTheEntry(OwnFunctions());
        fiber::Yield();
        ExpectEndsAtTheEntry(OwnFunctions());
      });
      child.Join();
    }
  });
}

// What the switch left on the stack (Boost.Context's layout on x86-64): control words, six registers, where to go on.
struct Saved {
  uint64_t control_words, r12, r13, r14, r15, rbx, rbp, rip;
};

TEST(UnwindTest, ABacktraceOfAParkedFiberEndsAtTheEntry) {
  sched::Run({.workers = 2}, [] {
    fiber::Event release;
    std::atomic<Record*> record = nullptr;
    auto parked = fiber::Spawn([&] {
      record.store(fiber::internal::ThisThread().current, std::memory_order_release);
      EXPECT_TRUE(release.Wait().ok());
    });
    while (record.load(std::memory_order_acquire) == nullptr) fiber::Yield();
    Record& held = *record.load(std::memory_order_acquire);
    while (!fiber::internal::TryHold(held)) fiber::Yield();
    const auto* saved = static_cast<const Saved*>(held.context.load(std::memory_order_relaxed));
    unw_context_t context;
    unw_getcontext(&context);
    auto& registers = context.uc_mcontext.gregs;
    registers[REG_R12] = static_cast<greg_t>(saved->r12);
    registers[REG_R13] = static_cast<greg_t>(saved->r13);
    registers[REG_R14] = static_cast<greg_t>(saved->r14);
    registers[REG_R15] = static_cast<greg_t>(saved->r15);
    registers[REG_RBX] = static_cast<greg_t>(saved->rbx);
    registers[REG_RBP] = static_cast<greg_t>(saved->rbp);
    registers[REG_RIP] = static_cast<greg_t>(saved->rip);
    registers[REG_RSP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(saved + 1));
    const std::vector<std::string> functions = Functions(&context);
    fiber::internal::Release(held);
    release.Set();
    parked.Join();
    ExpectEndsAtTheEntry(functions);
    EXPECT_THAT(functions, Contains(HasSubstr("Event4Wait")));
  });
}

}  // namespace
}  // namespace contract
