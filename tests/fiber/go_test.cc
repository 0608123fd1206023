// SPDX-License-Identifier: Apache-2.0
// Spawning, joining, cancelling, and what a fiber keeps across parks, on many schedules.
#include "fiber/go.h"

#include <errno.h>

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/internal/record.h"
#include "fiber/internal/wait.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fiber {
namespace {

using sim::Simulate;

// Parks until the fiber is cancelled.
absl::Status ParkForEver() { return Sleep(Deadline::Never()); }

// Parks for one virtual nanosecond, without asking whether the fiber was cancelled.
void ParkBriefly() {
  internal::Wait wait(WaitReason::kSleep, nullptr, internal::Interruptible::kNo);
  wait.Open();
  (void)wait.Park(absl::Nanoseconds(1));
}

TEST(GoTest, NoRecordIsLeaked) {
  const size_t before = internal::CountRecordsInUse();
  const sim::Result result = Simulate({.schedules = 200}, [] {
    Go([] { Yield(); });
    auto joined = Spawn([] { return std::string(100, 'x'); });
    auto detached = Spawn([] { return std::string(100, 'y'); });
    auto waited = Spawn([] { Yield(); });
    auto dropped = Spawn([] { (void)ParkForEver(); });
    auto cancelled = Spawn([] { (void)ParkForEver(); });
    detached.Detach();
    cancelled.Cancel();
    EXPECT_TRUE(waited.Wait().ok());
    EXPECT_EQ(joined.Join(), std::string(100, 'x'));
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(internal::CountRecordsInUse(), before);
}

FIBER_SIM_TEST(GoTest, ADetachedFiberRuns) {
  bool ran = false;
  Go([&ran] { ran = true; });
  while (!ran) Yield();
}

FIBER_SIM_TEST(GoTest, JoinReturnsTheValue) {
  auto number = Spawn([] { return 42; });
  auto text = Spawn([] {
    Yield();
    return std::string("what a fiber returns");
  });
  EXPECT_EQ(text.Join(), "what a fiber returns");
  EXPECT_EQ(number.Join(), 42);
  EXPECT_FALSE(number.is_valid());
}

FIBER_SIM_TEST(GoTest, ValuesMayBeMoveOnlyOrVoidOrLarge) {
  auto owner = std::make_unique<int>(7);
  auto unique = Spawn([owner = std::move(owner)]() mutable { return std::move(owner); });
  bool ran = false;
  auto nothing = Spawn([&ran] { ran = true; });
  auto large = Spawn([] {
    std::array<int, 1000> numbers{};
    numbers[999] = 9;
    return numbers;
  });
  nothing.Join();
  EXPECT_TRUE(ran);
  EXPECT_EQ(*unique.Join(), 7);
  EXPECT_EQ(large.Join()[999], 9);
}

FIBER_SIM_TEST(GoTest, AReferenceIsReturnedAsAValue) {
  std::string text = "shared";
  auto child = Spawn([&text]() -> const std::string& { return text; });
  static_assert(std::is_same_v<decltype(child), JoinHandle<std::string>>);
  std::string copy = child.Join();
  text = "changed";
  EXPECT_EQ(copy, "shared");
}

FIBER_SIM_TEST(GoTest, TheClosureIsDestroyedBeforeJoinReturns) {
  auto captured = std::make_shared<int>(0);
  auto child = Spawn([captured] { Yield(); });
  EXPECT_TRUE(child.Wait().ok());
  EXPECT_EQ(captured.use_count(), 1);
  child.Join();
}

FIBER_SIM_TEST(GoTest, WhatTheFiberDidIsThereAfterJoin) {
  std::vector<int> results(8);
  std::vector<JoinHandle<void>> children;
  for (size_t i = 0; i < results.size(); ++i) {
    children.push_back(Spawn([&results, i] { results[i] = static_cast<int>(i) + 1; }));
  }
  for (auto& child : children) child.Join();
  EXPECT_EQ(results, (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
}

FIBER_SIM_TEST(GoTest, JoinRethrowsWhatEscapedTheFiber) {
  auto child = Spawn([]() -> int {
    Yield();
    throw std::runtime_error("lost");
  });
  EXPECT_TRUE(child.Wait().ok());  // it has ended; how, Join tells
  try {
    child.Join();
    ADD_FAILURE() << "no exception";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "lost");
  }
  EXPECT_FALSE(child.is_valid());
}

// A value whose destructor parks, as that of a JoinHandle does.
struct ParksWhenDestroyed {
  std::shared_ptr<int> count;
  ParksWhenDestroyed(std::shared_ptr<int> count) : count(std::move(count)) {}
  ParksWhenDestroyed(ParksWhenDestroyed&&) = default;
  ParksWhenDestroyed& operator=(ParksWhenDestroyed&&) = default;
  ~ParksWhenDestroyed() {
    if (count == nullptr) return;
    ParkBriefly();
    ++*count;
  }
};

FIBER_SIM_TEST(GoTest, AClosureMayParkWhenItIsDestroyed) {
  auto count = std::make_shared<int>(0);
  auto child = Spawn([owned = ParksWhenDestroyed(count)] {});
  child.Join();
  EXPECT_EQ(*count, 1);
  Go([owned = ParksWhenDestroyed(count)] {});
  while (count.use_count() > 1) ParkBriefly();
  EXPECT_EQ(*count, 2);
}

// The outcome of a detached fiber is destroyed by the fiber itself, at its end or before: it may
// still park.
FIBER_SIM_TEST(GoTest, TheOutcomeOfADetachedFiberMayParkWhenItIsDestroyed) {
  auto count = std::make_shared<int>(0);
  auto child = Spawn([count] { return ParksWhenDestroyed(count); });
  if (sim::CurrentSeed() % 2 == 0) Yield();
  child.Detach();
  while (count.use_count() > 1) ParkBriefly();
  EXPECT_EQ(*count, 1);
}

FIBER_SIM_TEST(GoTest, ADetachedFiberMayReturnAHandle) {
  bool was_cancelled = false;
  auto outer = Spawn([&was_cancelled] {
    return Spawn([&was_cancelled] { was_cancelled = absl::IsCancelled(ParkForEver()); });
  });
  outer.Detach();
  while (!was_cancelled) ParkBriefly();
}

FIBER_SIM_TEST(GoTest, DroppingAHandleCancelsAndJoins) {
  absl::Status seen;
  bool ended = false;
  {
    auto child = Spawn([&] {
      seen = ParkForEver();
      Yield();
      ended = true;
    });
  }
  EXPECT_TRUE(ended);
  EXPECT_EQ(seen, absl::CancelledError("its JoinHandle was dropped"));
}

FIBER_SIM_TEST(GoTest, AssigningOverAHandleCancelsAndJoins) {
  std::vector<std::string> events;
  auto child = Spawn([&] {
    (void)ParkForEver();
    events.push_back("first ended");
  });
  child = Spawn([&] { (void)ParkForEver(); });
  events.push_back("assigned");
  EXPECT_EQ(events, (std::vector<std::string>{"first ended", "assigned"}));
  EXPECT_TRUE(child.is_valid());
}

FIBER_SIM_TEST(GoTest, AnExceptionThatPassesAHandleWaitsForTheChild) {
  bool ended = false;
  try {
    auto child = Spawn([&ended] {
      (void)ParkForEver();
      try {
        throw std::logic_error("the child's own");
      } catch (const std::logic_error&) {
        Yield();
      }
      ended = true;
    });
    throw std::runtime_error("the parent's");
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "the parent's");
    EXPECT_TRUE(ended);
  }
}

FIBER_SIM_TEST(GoTest, TheExceptionOfADroppedFiberIsDropped) {
  auto child = Spawn([] { throw std::runtime_error("nobody asks"); });
}

FIBER_SIM_TEST(GoTest, HandlesAreMovable) {
  auto child = Spawn([] { return 1; });
  const FiberId id = child.id();
  JoinHandle<int> moved = std::move(child);
  EXPECT_FALSE(child.is_valid());
  EXPECT_EQ(child.id(), 0u);
  EXPECT_EQ(moved.id(), id);
  JoinHandle<int> empty;
  EXPECT_FALSE(empty.is_valid());
  empty = std::move(moved);
  EXPECT_EQ(empty.Join(), 1);
  std::vector<JoinHandle<int>> many;
  for (int i = 0; i < 5; ++i) many.push_back(Spawn([i] { return i; }));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(many[static_cast<size_t>(i)].Join(), i);
}

FIBER_SIM_TEST(GoTest, ADetachedHandleLetsTheFiberGoOn) {
  bool ended = false;
  {
    auto child = Spawn([&ended] {
      EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
      ended = true;
      return std::string("dropped");
    });
    child.Detach();
    EXPECT_FALSE(child.is_valid());
  }
  EXPECT_TRUE(Sleep(absl::Seconds(2)).ok());
  EXPECT_TRUE(ended);
}

FIBER_SIM_TEST(GoTest, AHandleMayBeDetachedAfterTheEnd) {
  auto captured = std::make_shared<int>(0);
  auto child = Spawn([captured] { return captured; });
  while (!child.is_done()) Yield();
  EXPECT_EQ(captured.use_count(), 2);
  child.Detach();
  EXPECT_EQ(captured.use_count(), 1);
}

FIBER_SIM_TEST(GoTest, AWaitThatTimesOutLeavesTheFiberToBeJoined) {
  const absl::Duration began = Now();
  auto child = Spawn([] {
    EXPECT_TRUE(Sleep(absl::Seconds(10)).ok());
    return 5;
  });
  for (int i = 1; i <= 3; ++i) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(child.Wait(absl::Seconds(1))));
    EXPECT_EQ(Now() - began, absl::Seconds(i));
  }
  EXPECT_FALSE(child.is_done());
  EXPECT_TRUE(child.Wait(absl::Seconds(20)).ok());
  EXPECT_TRUE(child.is_done());
  EXPECT_EQ(child.Join(), 5);
  EXPECT_EQ(Now() - began, absl::Seconds(10));
}

// The end and the deadline come at the same instant: either is right, and nothing is lost.
TEST(GoTest, AWaitMayEndEitherWayWhenTheFiberEndsAtItsDeadline) {
  int ok = 0, late = 0;
  const sim::Result result = Simulate({}, [&] {
    auto child = Spawn([] {
      EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
      return 3;
    });
    const absl::Status status = child.Wait(absl::Seconds(1));
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    ++(status.ok() ? ok : late);
    EXPECT_EQ(child.Join(), 3);
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_GT(ok, 50);
  EXPECT_GT(late, 50);
}

FIBER_SIM_TEST(GoTest, AWaitWithAPastDeadlineDoesNothing) {
  auto child = Spawn([] {});
  EXPECT_TRUE(absl::IsDeadlineExceeded(child.Wait(absl::ZeroDuration())));
  EXPECT_TRUE(child.Wait().ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(child.Wait(absl::Seconds(-1))));
  child.Join();
}

FIBER_SIM_TEST(CancelTest, ACallUnderWayOrTheNextOneSeesTheCancellation) {
  auto child = Spawn([] {
    const absl::Status first = Sleep(absl::Hours(1));
    EXPECT_EQ(first, absl::CancelledError("no more"));
    EXPECT_EQ(CheckCancelled(), first);
    EXPECT_EQ(Sleep(absl::Hours(1)), first);  // and every one after that
    EXPECT_EQ(Sleep(absl::ZeroDuration()), first);
    Yield();  // cannot fail
    return Now();
  });
  const absl::Duration began = Now();
  for (uint64_t i = 0; i < sim::CurrentSeed() % 5; ++i) Yield();
  child.Cancel(absl::CancelledError("no more"));
  EXPECT_EQ(child.Join(), began);
}

FIBER_SIM_TEST(CancelTest, TheFirstCauseStays) {
  auto child = Spawn([] { return ParkForEver(); });
  child.Cancel(absl::CancelledError("first"));
  child.Cancel(absl::CancelledError("second"));
  EXPECT_EQ(child.Join(), absl::CancelledError("first"));
}

FIBER_SIM_TEST(CancelTest, TheCodeIsAlwaysCancelled) {
  auto child = Spawn([] { return ParkForEver(); });
  child.Cancel(absl::InternalError("why"));
  EXPECT_EQ(child.Join(), absl::CancelledError("why"));
  auto other = Spawn([] { return ParkForEver(); });
  other.Cancel(absl::OkStatus());
  EXPECT_TRUE(absl::IsCancelled(other.Join()));
}

TEST(CancelTest, AFiberThatHasNotStartedStillStarts) {
  const sim::Result result = Simulate({.schedules = 50, .preempt_probability = 0}, [] {
    bool started = false;
    auto child = Spawn([&started] {
      started = true;
      return ParkForEver();
    });
    child.Cancel();
    EXPECT_FALSE(started);
    EXPECT_TRUE(absl::IsCancelled(child.Join()));
    EXPECT_TRUE(started);
  });
  EXPECT_TRUE(result.ok) << result.message;
}

FIBER_SIM_TEST(CancelTest, CancellingAnEndedFiberDoesNothing) {
  auto child = Spawn([] { return 1; });
  EXPECT_TRUE(child.Wait().ok());
  // Somebody else parks on the stack and the block that the child had.
  auto next = Spawn([] { return Sleep(absl::Seconds(1)); });
  Yield();
  child.Cancel();
  EXPECT_TRUE(next.Join().ok());
  EXPECT_EQ(child.Join(), 1);
}

FIBER_SIM_TEST(CancelTest, AJoinerThatIsCancelledCancelsTheChildAndGetsItsValue) {
  auto parent = Spawn([] {
    auto child = Spawn([] {
      const absl::Status status = ParkForEver();
      Yield();
      return status;
    });
    return child.Join();
  });
  for (uint64_t i = 0; i < sim::CurrentSeed() % 6; ++i) Yield();
  parent.Cancel(absl::CancelledError("from above"));
  EXPECT_EQ(parent.Join(), absl::CancelledError("from above"));
}

FIBER_SIM_TEST(CancelTest, AWaiterThatIsCancelledLeavesTheChildAlone) {
  auto child = Spawn([] { return Sleep(absl::Seconds(1)); });
  auto waiter = Spawn([&child] { return child.Wait(); });
  for (uint64_t i = 0; i < sim::CurrentSeed() % 6; ++i) Yield();
  waiter.Cancel();
  EXPECT_TRUE(absl::IsCancelled(waiter.Join()));
  EXPECT_TRUE(child.Join().ok());
}

// A cancel, a timeout and an end at one instant: one of them, and everything is still joined.
TEST(CancelTest, CancelTimeoutAndEndRaceAndOneWins) {
  int ok = 0, late = 0, cancelled = 0;
  const sim::Result result = Simulate({.schedules = 3000}, [&] {
    const Deadline at = absl::Seconds(1);
    auto child = Spawn([at] { EXPECT_TRUE(Sleep(at).ok()); });
    auto waiter = Spawn([&child, at] { return child.Wait(at); });
    EXPECT_TRUE(Sleep(at).ok());
    waiter.Cancel();
    const absl::Status status = waiter.Join();
    if (status.ok()) ++ok;
    if (absl::IsDeadlineExceeded(status)) ++late;
    if (absl::IsCancelled(status)) ++cancelled;
    child.Join();
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(ok + late + cancelled, 3000);
  EXPECT_GT(ok, 100);
  EXPECT_GT(late, 100);
  EXPECT_GT(cancelled, 100);
}

FIBER_SIM_TEST(FiberTest, IdsAreUnique) {
  std::set<FiberId> ids = {CurrentId()};
  EXPECT_NE(CurrentId(), 0u);
  std::vector<JoinHandle<FiberId>> children;
  for (int i = 0; i < 10; ++i) children.push_back(Spawn([] { return CurrentId(); }));
  for (auto& child : children) {
    const FiberId id = child.id();
    EXPECT_EQ(child.Join(), id);
    EXPECT_TRUE(ids.insert(id).second);
  }
  auto after = Spawn([] { return CurrentId(); });  // of a record that was used before
  EXPECT_TRUE(ids.insert(after.Join()).second);
}

FIBER_SIM_TEST(FiberTest, NamesBelongToTheirFibers) {
  EXPECT_EQ(CurrentName(), "main");
  auto named = Spawn(FiberOptions{.name = "reader 1"}, [] {
    EXPECT_EQ(CurrentName(), "reader 1");
    Yield();
    SetCurrentName("reader 2");
    Yield();
    return std::string(CurrentName());
  });
  auto unnamed = Spawn([] {
    Yield();
    const std::string before(CurrentName());
    SetCurrentName("late");
    return before + "," + std::string(CurrentName());
  });
  EXPECT_EQ(named.Join(), "reader 2");
  EXPECT_EQ(unnamed.Join(), ",late");
  EXPECT_EQ(Spawn([] { return std::string(CurrentName()); }).Join(), "");
  SetCurrentName("renamed");
  EXPECT_EQ(CurrentName(), "renamed");
}

TEST(FiberTest, APlainThreadHasNoIdAndNoName) {
  EXPECT_EQ(CurrentId(), 0u);
  EXPECT_EQ(CurrentName(), "");
  SetCurrentName("no effect");
  EXPECT_EQ(CurrentName(), "");
  EXPECT_TRUE(CheckCancelled().ok());
  Yield();
}

// Closures of every size, around where they stop to fit into the record.
template <size_t kBytes>
void SpawnSized() {
  std::array<uint8_t, kBytes> bytes;
  for (size_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<uint8_t>(i * 7);
  const auto sum = [bytes] {
    int total = 0;
    for (const uint8_t byte : bytes) total += byte;
    return total;
  };
  int detached_total = -1;
  auto joined = Spawn(sum);
  auto named = Spawn(FiberOptions{.name = "sized"}, sum);
  Go([sum, &detached_total] { detached_total = sum(); });
  EXPECT_EQ(joined.Join(), sum());
  EXPECT_EQ(named.Join(), sum());
  while (detached_total < 0) Yield();
  EXPECT_EQ(detached_total, sum());
}

TEST(ClosureTest, EverySizeArrivesWhole) {
  const sim::Result result = Simulate({.schedules = 100}, [] {
    SpawnSized<1>();
    SpawnSized<8>();
    SpawnSized<15>();
    SpawnSized<16>();
    SpawnSized<17>();
    SpawnSized<24>();
    SpawnSized<31>();
    SpawnSized<32>();
    SpawnSized<33>();
    SpawnSized<40>();
    SpawnSized<41>();
    SpawnSized<4096>();
  });
  EXPECT_TRUE(result.ok) << result.message;
}

struct alignas(64) Aligned {
  int value = 6;
  bool IsAligned() const { return reinterpret_cast<uintptr_t>(this) % 64 == 0; }
};
struct alignas(16) SixteenAligned {
  long values[2] = {1, 2};
  bool IsAligned() const { return reinterpret_cast<uintptr_t>(this) % 16 == 0; }
};

FIBER_SIM_TEST(ClosureTest, OverAlignedClosuresAndValuesAreAligned) {
  auto closure = Spawn([aligned = Aligned()] { return aligned.IsAligned(); });
  auto sixteen = Spawn([aligned = SixteenAligned()] { return aligned.IsAligned(); });
  auto value = Spawn([] { return Aligned(); });
  EXPECT_TRUE(closure.Join());
  EXPECT_TRUE(sixteen.Join());
  EXPECT_EQ(value.Join().value, 6);
  Go([aligned = Aligned()] { EXPECT_TRUE(aligned.IsAligned()); });
}

// Throws from its n-th copy on; a move is a copy.
struct ThrowsOnCopy {
  int copies_left;
  std::shared_ptr<int> alive = std::make_shared<int>();
  explicit ThrowsOnCopy(int copies) : copies_left(copies) {}
  ThrowsOnCopy(const ThrowsOnCopy& other) : copies_left(other.copies_left - 1), alive(other.alive) {
    if (copies_left < 0) throw std::runtime_error("cannot be copied");
  }
  void operator()() const {}
};

TEST(ClosureTest, AClosureThatCannotBeCopiedSpawnsNothingAndLeaksNothing) {
  const size_t before = internal::CountRecordsInUse();
  const sim::Result result = Simulate({.schedules = 20}, [] {
    int thrown = 0, started = 0;
    for (int copies = 0; copies < 8; ++copies) {
      const ThrowsOnCopy closure(copies);
      const auto attempt = [&](auto spawn) {
        try {
          spawn();
          ++started;
        } catch (const std::runtime_error& error) {
          EXPECT_STREQ(error.what(), "cannot be copied");
          ++thrown;
        }
        while (closure.alive.use_count() > 1) Yield();
      };
      attempt([&] { Go(closure); });
      attempt([&] { Go(FiberOptions{.name = "named"}, closure); });
      attempt([&] { Spawn(closure).Join(); });
      attempt([&] { Spawn(FiberOptions{.name = "named"}, closure).Join(); });
    }
    EXPECT_GT(thrown, 4);
    EXPECT_GT(started, 4);
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(internal::CountRecordsInUse(), before);
}

int CountTree(int depth) {
  if (depth == 0) return 1;
  auto left = Spawn([depth] { return CountTree(depth - 1); });
  auto right = Spawn([depth] { return CountTree(depth - 1); });
  return left.Join() + right.Join();
}

TEST(GoTest, SpawnsNest) {
  const sim::Result result = Simulate({.schedules = 100}, [] { EXPECT_EQ(CountTree(6), 64); });
  EXPECT_TRUE(result.ok) << result.message;
}

// Each child starts the next and ends: the stack goes from one to the next.
FIBER_SIM_TEST(GoTest, AChainOfDetachedFibersRunsToItsEnd) {
  struct Chain {
    static void Step(int left, bool* ended) {
      if (left == 0) {
        *ended = true;
      } else {
        Go([left, ended] { Step(left - 1, ended); });
      }
    }
  };
  bool ended = false;
  Chain::Step(50, &ended);
  while (!ended) Yield();
}

FIBER_SIM_TEST(GoTest, StacksOfEveryClassAreBigEnough) {
  const auto touch = [](size_t bytes) {
    std::vector<JoinHandle<int>> children;
    for (int i = 0; i < 2; ++i) {
      children.push_back(Spawn(FiberOptions{.stack_bytes = bytes}, [bytes] {
        volatile char* frame = static_cast<char*>(__builtin_alloca(bytes * 3 / 4));
        for (size_t at = 0; at < bytes * 3 / 4; at += 1024) frame[at] = static_cast<char>(at);
        Yield();
        return static_cast<int>(frame[1024]);
      }));
    }
    for (auto& child : children) EXPECT_EQ(child.Join(), static_cast<int>(static_cast<char>(1024)));
  };
  if (sim::CurrentSeed() > 50) return;  // no more to be had from other orders
  for (const size_t bytes : {size_t{64} << 10, size_t{256} << 10, size_t{1} << 20}) touch(bytes);
}

// What the C++ runtime keeps per thread follows the fiber.

FIBER_SIM_TEST(ExceptionStateTest, ACatchBlockMayYield) {
  std::vector<JoinHandle<void>> children;
  for (int i = 0; i < 3; ++i) {
    children.push_back(Spawn([i] {
      for (int round = 0; round < 2; ++round) {
        try {
          throw i;
        } catch (int caught) {
          Yield();
          EXPECT_EQ(caught, i);
          EXPECT_NE(std::current_exception(), nullptr);
          EXPECT_EQ(std::uncaught_exceptions(), 0);
        }
        EXPECT_EQ(std::current_exception(), nullptr);
        Yield();
      }
    }));
  }
  for (auto& child : children) child.Join();
}

FIBER_SIM_TEST(ExceptionStateTest, ACatchBlockMayYieldAndRethrow) {
  std::vector<JoinHandle<int>> children;
  for (int i = 0; i < 3; ++i) {
    children.push_back(Spawn([i]() -> int {
      try {
        try {
          throw i;
        } catch (...) {
          Yield();
          EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
          throw;
        }
      } catch (int caught) {
        return caught;
      }
    }));
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(children[static_cast<size_t>(i)].Join(), i);
}

FIBER_SIM_TEST(ExceptionStateTest, NestedCatchBlocksMayYield) {
  const auto nest = [](int i) {
    try {
      throw std::runtime_error("outer" + std::to_string(i));
    } catch (const std::runtime_error& outer) {
      Yield();
      try {
        throw std::logic_error("inner" + std::to_string(i));
      } catch (const std::logic_error& inner) {
        Yield();
        EXPECT_EQ(inner.what(), "inner" + std::to_string(i));
      }
      Yield();
      EXPECT_EQ(outer.what(), "outer" + std::to_string(i));
      try {
        throw;
      } catch (const std::runtime_error& again) {
        EXPECT_EQ(again.what(), "outer" + std::to_string(i));
      }
    }
  };
  auto child = Spawn([nest] { nest(1); });
  nest(2);
  child.Join();
}

FIBER_SIM_TEST(ExceptionStateTest, ADestructorMayParkWhileAnExceptionPasses) {
  struct Parks {
    int expected;
    ~Parks() {
      EXPECT_EQ(std::uncaught_exceptions(), expected);
      Yield();
      ParkBriefly();
      EXPECT_EQ(std::uncaught_exceptions(), expected);
    }
  };
  auto child = Spawn([] {
    try {
      Parks parks{1};
      throw 1;
    } catch (int) {
      EXPECT_EQ(std::uncaught_exceptions(), 0);
    }
    Parks parks{0};
  });
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(std::uncaught_exceptions(), 0);
    Yield();
  }
  try {
    Parks parks{1};
    throw 2;
  } catch (int caught) {
    EXPECT_EQ(caught, 2);
  }
  child.Join();
}

FIBER_SIM_TEST(ExceptionStateTest, AFiberMayEndWhileOthersAreInCatchBlocks) {
  try {
    throw 1;
  } catch (int) {
    auto child = Spawn([] {
      EXPECT_EQ(std::current_exception(), nullptr);
      try {
        throw 2;
      } catch (int) {
      }
    });
    child.Join();
    EXPECT_NE(std::current_exception(), nullptr);
    try {
      throw;
    } catch (int caught) {
      EXPECT_EQ(caught, 1);
    }
  }
}

FIBER_SIM_TEST(ErrnoTest, ErrnoIsKeptAcrossYieldAndPark) {
  std::vector<JoinHandle<void>> children;
  for (int i = 1; i <= 3; ++i) {
    children.push_back(Spawn([i] {
      errno = i;
      Yield();
      EXPECT_EQ(errno, i);
      (void)Sleep(absl::Seconds(1));
      EXPECT_EQ(errno, i);
      Yield();
      EXPECT_EQ(errno, i);
    }));
  }
  for (auto& child : children) {
    errno = 77;
    child.Join();
  }
}

// Misuse ends the process by name.

void EscapeDetached() {
  Simulate({.schedules = 1}, [] {
    Go(FiberOptions{.name = "leaky"}, [] { throw std::runtime_error("the reason"); });
  });
}
void EscapeUnnamed() {
  Simulate({.schedules = 1}, [] { Go([] { throw 5; }); });
}
void EscapeDetachedHandle(bool is_detached_first) {
  Simulate({.schedules = 1}, [is_detached_first] {
    auto child = Spawn(FiberOptions{.name = "let go"}, [is_detached_first] {
      if (is_detached_first) (void)Sleep(absl::Seconds(1));
      throw std::runtime_error("too late");
    });
    if (!is_detached_first) (void)Sleep(absl::Seconds(1));
    child.Detach();
  });
}

TEST(GoDeathTest, AnExceptionThatEscapesADetachedFiberEndsTheProcessByName) {
  EXPECT_DEATH(EscapeDetached(),
               "fiber [0-9]+ 'leaky' \\(spawned at .*go_test.cc:[0-9]+\\) ended with an exception "
               "nobody joins: the reason");
  EXPECT_DEATH(EscapeUnnamed(),
               "fiber [0-9]+ \\(spawned at .*go_test.cc:[0-9]+\\) ended with an exception nobody "
               "joins, of unknown type");
}

TEST(GoDeathTest, ADetachedHandleMakesItNobodys) {
  EXPECT_DEATH(EscapeDetachedHandle(true),
               "fiber [0-9]+ 'let go' \\(spawned at .*go_test.cc:"
               "[0-9]+\\) ended with an exception nobody joins: too late");
  EXPECT_DEATH(EscapeDetachedHandle(false),
               "go_test.cc:[0-9]+\\) ended with an exception nobody "
               "joins: too late");
}

void JoinSelf(bool by_wait) {
  Simulate({.schedules = 1}, [by_wait] {
    JoinHandle<void> self;
    bool is_set = false;
    self = Spawn(FiberOptions{.name = "ouroboros"}, [&] {
      while (!is_set) Yield();
      by_wait ? (void)self.Wait() : self.Join();
    });
    is_set = true;
    (void)Sleep(absl::Seconds(1));
  });
}
void JoinTwice() {
  Simulate({.schedules = 1}, [] {
    auto child = Spawn([] {});
    child.Join();
    child.Join();
  });
}
void WaitTwiceAtOnce() {
  Simulate({.schedules = 1}, [] {
    auto child = Spawn(FiberOptions{.name = "coveted"}, [] { return Sleep(absl::Seconds(1)); });
    auto waiter = Spawn([&child] { return child.Wait(); });
    (void)child.Wait();
    (void)waiter.Join();
  });
}
void CancelEmpty() {
  JoinHandle<int> handle;
  handle.Cancel();
}

TEST(GoDeathTest, JoiningOneselfIsABug) {
  EXPECT_DEATH(JoinSelf(false), "fiber [0-9]+ 'ouroboros' .* joins itself \\(Join\\)");
  EXPECT_DEATH(JoinSelf(true), "fiber [0-9]+ 'ouroboros' .* joins itself \\(Wait\\)");
}

TEST(GoDeathTest, UsingAnEmptyHandleIsABug) {
  EXPECT_DEATH(JoinTwice(), "JoinHandle::Join on an empty handle");
  EXPECT_DEATH(CancelEmpty(), "JoinHandle::Cancel on an empty handle");
}

TEST(GoDeathTest, TwoWaitersAtOnceAreABug) {
  EXPECT_DEATH(WaitTwiceAtOnce(), "fiber [0-9]+ .*is joined twice at once");
}

TEST(GoDeathTest, ASpawnFromAPlainThreadNeedsARuntime) {
  EXPECT_DEATH(Go([] {}),
               "spawn at .*go_test.cc:[0-9]+ from a plain thread, but no runtime is "
               "running");
}

void AskForTooLargeAStack() {
  Simulate({.schedules = 1}, [] { Go(FiberOptions{.stack_bytes = size_t{1} << 30}, [] {}); });
}

TEST(GoDeathTest, AStackLargerThanTheLargestIsRefusedByName) {
  EXPECT_DEATH(AskForTooLargeAStack(),
               "a stack of 1073741824 bytes is asked for, but the largest has 8388608");
}

}  // namespace
}  // namespace fiber
