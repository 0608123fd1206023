// SPDX-License-Identifier: Apache-2.0
//
// FIBER_TEST: a GoogleTest test whose body runs as a fiber, on a runtime of its own.
//
//   FIBER_TEST(CacheTest, ASecondReaderWaitsForTheFirst) {
//     Cache cache;
//     auto first = fiber::Spawn([&] { return cache.Get("key"); });
//     EXPECT_EQ(cache.Get("key"), first.Join());
//   }
//
// EXPECT and ASSERT count in whatever fiber they are; an ASSERT that fails returns from the function
// it stands in, as everywhere. (SCOPED_TRACE belongs to a thread: not across calls that park.)
//
// The runtime has as many workers as WEFT_WORKERS or the machine says. FIBER_TEST_ON runs its body
// with several numbers in turn, each on a runtime of its own, since one worker hides races and many
// hide what only happens when fibers share one:
//
//   FIBER_TEST_ON(CacheTest, NothingIsLostWhenTwoEvict, 1, 2, 8) { … }
//
// WEFT_WORKERS=N in the environment runs it with N alone: what a failure says to do.
//
// A test fails if fibers are left a second after its body has returned: those that sched::Run()
// would cancel. They are named, with what they wait for and where they were spawned; then they are
// cancelled. For the same on seeded schedules, where a second is no time: fiber/sim/gtest.h.
#ifndef WEFT_SCHED_GTEST_H_
#define WEFT_SCHED_GTEST_H_

#include <initializer_list>
#include <source_location>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "sched/runtime.h"

namespace sched {

// FiberTestOptions says how a body is run.
struct FiberTestOptions {
  RuntimeOptions runtime = {};
  // How long fibers have to end by themselves when the body has returned: it may have told them to
  // a moment ago.
  absl::Duration grace = absl::Seconds(1);
};

// Runs the body of a GoogleTest test as a fiber of a new runtime; for tests with a fixture, or with
// options:
//
//   TEST_F(CacheTest, StaysWithinItsStack) {
//     sched::RunInTest({.runtime = {.default_stack_bytes = 64 << 10}}, [&] { … });
//   }
//
// Fails the test as said above; what escapes `body` is rethrown. Fibers that survive their
// cancellation for RuntimeOptions::drain end the process, by name. Blocks the thread.
//
// REQUIRES: the caller is on a plain thread, not in a fiber
void RunInTest(const FiberTestOptions& options, absl::FunctionRef<void()> body,
               std::source_location site = std::source_location::current());

// The same with each of these numbers of workers in turn, or with WEFT_WORKERS alone, and stops
// after the first with which the test fails. Blocks the thread.
void RunInTestOn(std::initializer_list<int> workers, absl::FunctionRef<void()> body,
                 std::source_location site = std::source_location::current());

}  // namespace sched

#define FIBER_TEST(Suite, Name)                                             \
  static void Suite##_##Name##_FiberBody();                                 \
  TEST(Suite, Name) { ::sched::RunInTest({}, Suite##_##Name##_FiberBody); } \
  static void Suite##_##Name##_FiberBody()

// The numbers of workers follow the name.
#define FIBER_TEST_ON(Suite, Name, ...)                                                  \
  static void Suite##_##Name##_FiberBody();                                              \
  TEST(Suite, Name) { ::sched::RunInTestOn({__VA_ARGS__}, Suite##_##Name##_FiberBody); } \
  static void Suite##_##Name##_FiberBody()

#endif  // WEFT_SCHED_GTEST_H_
