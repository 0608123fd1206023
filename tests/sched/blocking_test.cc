// SPDX-License-Identifier: Apache-2.0
#include "fiber/blocking.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/fiber_local.h"
#include "fiber/go.h"
#include "fiber/internal/park.h"
#include "fiber/internal/thread_state.h"
#include "fiber/mutex.h"
#include "fiber/select.h"
#include "fiber/semaphore.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace {

void Nap(absl::Duration length) {
  const timespec nap = absl::ToTimespec(length);
  nanosleep(&nap, nullptr);
}

FIBER_TEST_ON(BlockingTest, ReturnsWhatItsFunctionReturns, 1, 2) {
  EXPECT_EQ(fiber::Blocking([] { return 42; }), 42);
  EXPECT_EQ(*fiber::Blocking([] { return std::make_unique<int>(7); }), 7);
  int local = 0;
  fiber::Blocking([&] { local = 1; });
  EXPECT_EQ(local, 1);
  EXPECT_EQ(&fiber::Blocking([&]() -> int& { return local; }), &local);
}

FIBER_TEST_ON(BlockingTest, ThrowsWhatItsFunctionThrows, 1, 2) {
  try {
    fiber::Blocking([] { throw std::runtime_error("no such row"); });
    ADD_FAILURE();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "no such row");
  }
  EXPECT_NE(fiber::CurrentId(), 0u);  // a fiber again
}

FIBER_TEST_ON(BlockingTest, OthersRunMeanwhile, 1, 2, 3) {
  fiber::Event begun;
  std::atomic<bool> may_end{false};
  auto other = fiber::Spawn([&] {
    EXPECT_TRUE(begun.Wait().ok());
    may_end.store(true);
  });
  fiber::Blocking([&] {
    begun.Set();
    while (!may_end.load()) Nap(absl::Microseconds(100));
  });
  other.Join();
}

FIBER_TEST_ON(BlockingTest, PrimitivesBlockTheThreadInside, 1, 2) {
  fiber::Channel<int> questions, answers;
  auto other = fiber::Spawn([&] {
    for (int question : questions) EXPECT_TRUE(answers.Send(question + 1).ok());
  });
  fiber::Blocking([&] {
    EXPECT_EQ(fiber::CurrentId(), 0u);
    const pthread_t thread = pthread_self();
    for (int i = 0; i < 10; ++i) {
      EXPECT_TRUE(questions.Send(i).ok());
      EXPECT_EQ(answers.Receive().value(), i + 1);
    }
    EXPECT_TRUE(pthread_equal(thread, pthread_self()));
    questions.Close();
  });
  other.Join();
}

FIBER_TEST_ON(BlockingTest, FibersStartedInsideAreOfTheSameRuntime, 1, 2) {
  sched::Runtime other({.workers = 1});  // so that there is more than one to choose from
  fiber::Blocking([] {
    EXPECT_EQ(fiber::Spawn([] { return fiber::Spawn([] { return 3; }).Join(); }).Join(), 3);
  });
}

FIBER_TEST_ON(BlockingTest, IsNeitherCancelledNorTimedOut, 1, 2) {
  bool has_ended = false;
  std::atomic<bool> is_cancelled{false};
  fiber::Event begun;
  auto blocked = fiber::Spawn([&] {
    fiber::Blocking([&] {
      begun.Set();
      while (!is_cancelled) Nap(absl::Milliseconds(1));
      EXPECT_TRUE(fiber::CheckCancelled().ok());
      has_ended = true;
    });
    EXPECT_EQ(fiber::CheckCancelled().code(), absl::StatusCode::kCancelled);
  });
  EXPECT_TRUE(begun.Wait().ok());
  blocked.Cancel();
  is_cancelled = true;
  blocked.Join();
  EXPECT_TRUE(has_ended);
}

FIBER_TEST_ON(BlockingTest, ErrnoIsThatOfTheFunction, 1, 2) {
  errno = ENOENT;
  fiber::Blocking([] {
    EXPECT_EQ(errno, ENOENT);
    Nap(absl::Microseconds(100));
    errno = EDOM;
  });
  EXPECT_EQ(errno, EDOM);
}

FIBER_TEST_ON(BlockingTest, ManyAtOnceEachHaveAThread, 1, 2) {
  constexpr int kCalls = 32;
  std::atomic<int> inside{0};
  std::vector<fiber::JoinHandle<void>> calls;
  for (int i = 0; i < kCalls; ++i) {
    calls.push_back(fiber::Spawn([&] {
      fiber::Blocking([&] {
        inside.fetch_add(1);
        while (inside.load() < kCalls) Nap(absl::Microseconds(100));
      });
    }));
  }
  for (auto& call : calls) call.Join();
}

FIBER_TEST_ON(BlockingTest, CallsNest, 1, 2) {
  EXPECT_EQ(fiber::Blocking([] { return fiber::Blocking([] { return 5; }); }), 5);
}

// Seats change hands all the time, while fibers go on.
// Out of line: the fiber may move between two calls.
__attribute__((noinline)) void SetErrno(int value) { errno = value; }
__attribute__((noinline)) int GetErrno() { return errno; }

// Calls that yield first may come back on another thread.
FIBER_TEST_ON(BlockingTest, ErrnoIsTheFibersWhereverItsCallsAreMade, 1, 2, 4) {
  const int rounds = tests::Scaled(2000);
  std::vector<fiber::JoinHandle<void>> fibers;
  for (int i = 1; i <= 20; ++i) {
    fibers.push_back(fiber::Spawn([i] {
      for (int round = 0; round < rounds; ++round) {
        SetErrno(i);
        fiber::Blocking([] {});
        ASSERT_EQ(GetErrno(), i);
      }
    }));
  }
  for (auto& fiber : fibers) fiber.Join();
}

FIBER_TEST_ON(BlockingTest, ShortCallsOfManyFibersLoseNothing, 1, 2, 4) {
  const int rounds = tests::Scaled(300);
  std::atomic<int64_t> sum{0};
  fiber::Semaphore tokens(3);
  std::vector<fiber::JoinHandle<void>> fibers;
  for (int i = 0; i < 20; ++i) {
    fibers.push_back(fiber::Spawn([&, i] {
      for (int round = 0; round < rounds; ++round) {
        EXPECT_TRUE(tokens.Acquire().ok());
        fiber::Blocking([&] {
          if ((round + i) % 16 == 0) Nap(absl::Microseconds(50));
          sum.fetch_add(1);
        });
        tokens.Release();
        if (round % 32 == 0) {
          EXPECT_TRUE(fiber::Sleep(absl::Microseconds(20)).ok());
        }
      }
    }));
  }
  for (auto& fiber : fibers) fiber.Join();
  EXPECT_EQ(sum.load(), int64_t{20} * rounds);
}

TEST(BlockingOutsideTest, IsJustTheCallOnAPlainThreadAndInASimulation) {
  EXPECT_EQ(fiber::Blocking([] { return 1; }), 1);
  fiber::sim::Simulate({.schedules = 3}, [] {
    EXPECT_EQ(fiber::Blocking([] { return fiber::CurrentId() != 0; }), true);
  });
}

// Back from its call it has no seat: as many compute at once as there are workers, if they say where they may be interrupted.
TEST(BlockingOutsideTest, WhoComesBackToNoSeatMakesWayAtMaybeYield) {
  sched::Run({.workers = 1, .stall_after = absl::Seconds(100)}, [] {
    std::atomic<bool> is_seated{false};
    std::atomic<bool> has_begun{false};
    std::atomic<bool> may_end{false};
    auto seated = fiber::Spawn([&] {
      is_seated = true;
      while (!has_begun.load()) {
      }
      for (const absl::Duration until = fiber::Now() + absl::Milliseconds(50); fiber::Now() < until;) {
      }
      may_end = true;
    });
    fiber::Blocking([&] {
      while (!is_seated.load()) Nap(absl::Microseconds(100));
    });
    has_begun = true;
    fiber::MaybeYield();
    EXPECT_TRUE(may_end.load()) << "it went on beside the one that has the seat";
    seated.Join();
  });
}

TEST(BlockingOutsideTest, SpareThreadsEndWhenNobodyNeedsThem) {
  sched::Runtime runtime({.workers = 2});
  std::atomic<int> inside{0};
  std::vector<fiber::JoinHandle<void>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(runtime.Spawn([&] {
      fiber::Blocking([&] {
        inside.fetch_add(1);
        while (inside.load() < 8) Nap(absl::Microseconds(100));
      });
    }));
  }
  for (auto& call : calls) call.Join();
  EXPECT_GE(runtime.stats().threads, 8);
  while (runtime.stats().threads > 2) Nap(absl::Milliseconds(5));
  // And come again.
  runtime.Spawn([] { fiber::Blocking([] {}); }).Join();
}

// With one thread and no more, one call after the other is no reason to keep out the others.
TEST(BlockingOutsideTest, ALoopOfCallsLeavesTheOthersATurnWhereNoThreadCanBeHad) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    bool has_run = false;
    auto other = fiber::Spawn([&] { has_run = true; });
    while (!has_run) fiber::Blocking([] {});
    other.Join();
  });
}

// A call hands over what its thread has queued, though nobody comes for it here.
TEST(BlockingOutsideTest, WhatWasStartedRunsWhenACallsFiberYieldsWhereNoThreadCanBeHad) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    for (int i = 0; i < 200; ++i) {
      bool has_run = false;
      auto other = fiber::Spawn([&] { has_run = true; });
      fiber::Blocking([] {});
      fiber::Yield();
      EXPECT_TRUE(has_run) << i;
      other.Join();
    }
    // And at the latest when a turn of calls is over.
    for (int i = 0; i < 50; ++i) {
      bool has_run = false;
      auto other = fiber::Spawn([&] { has_run = true; });
      int calls = 0;
      for (; !has_run && calls < 1000; ++calls) fiber::Blocking([] {});
      EXPECT_LE(calls, 16) << i;
      other.Join();
    }
  });
}

TEST(BlockingOutsideTest, FiberLocalsOfACallAreGoneAfterIt) {
  sched::Run({.workers = 1}, [] {
    static fiber::FiberLocal<int> local;
    *local = 7;
    EXPECT_EQ(fiber::Blocking([] { return ++*local; }), 1);
    EXPECT_EQ(fiber::Blocking([] { return ++*local; }), 1);
    EXPECT_EQ(*local, 7);
  });
}

std::atomic<int> ending{0};
std::atomic<bool> may_end{false};

struct LongInEnding {
  ~LongInEnding() {
    if (!is_used) return;
    ending.fetch_add(1);
    while (!may_end.load()) Nap(absl::Milliseconds(1));
  }
  bool is_used = false;
};
thread_local LongInEnding long_in_ending;

// What a library keeps in thread_local variables is destroyed when a spare thread ends, and may take long: nobody waits for it.
TEST(BlockingOutsideTest, AThreadThatIsLongInEndingHoldsUpNobody) {
  sched::Runtime runtime({.workers = 1});
  std::atomic<int> inside{0};
  std::vector<fiber::JoinHandle<void>> calls;
  for (int i = 0; i < 3; ++i) {
    calls.push_back(runtime.Spawn([&] {
      fiber::Blocking([&] {
        long_in_ending.is_used = true;
        inside.fetch_add(1);
        while (inside.load() < 3) Nap(absl::Microseconds(100));
      });
    }));
  }
  for (auto& call : calls) call.Join();
  while (ending.load() == 0) Nap(absl::Milliseconds(5));  // kRestNs later
  std::atomic<bool> is_inside{false};
  std::atomic<bool> has_other_run{false};
  auto blocked = runtime.Spawn([&] {
    fiber::Blocking([&] {
      is_inside = true;
      while (!has_other_run.load()) Nap(absl::Microseconds(100));
    });
  });
  runtime.Spawn([&] { has_other_run = true; }).Join();
  blocked.Join();
  may_end = true;
}

FIBER_TEST_ON(NoMigrateTest, TheFiberStaysOnItsThreadAcrossParks, 1, 2, 3) {
  fiber::Channel<int> to, from;
  auto echo = fiber::Spawn([&] {
    for (int value : to) EXPECT_TRUE(from.Send(value).ok());
  });
  {
    fiber::NoMigrate stay;
    const pthread_t thread = pthread_self();
    for (int i = 0; i < 100; ++i) {
      EXPECT_TRUE(to.Send(i).ok());
      EXPECT_EQ(from.Receive().value(), i);
      fiber::Yield();
      EXPECT_TRUE(fiber::Sleep(absl::Microseconds(50)).ok());
      EXPECT_TRUE(pthread_equal(thread, pthread_self()));
    }
  }
  to.Close();
  echo.Join();
}

FIBER_TEST_ON(NoMigrateTest, CancellationDeadlinesAndSelectWorkInside, 1, 2) {
  fiber::NoMigrate stay;
  fiber::Channel<int> never;
  EXPECT_EQ(never.Receive(absl::Microseconds(200)).status().code(), absl::StatusCode::kDeadlineExceeded);
  fiber::Event event;
  auto setter = fiber::Spawn([&] { event.Set(); });
  EXPECT_EQ(fiber::Select(fiber::OnReceive(never, [](int) {}), fiber::OnEvent(event, [] {})).value(), 1u);
  setter.Join();
  auto bound = fiber::Spawn([&] {
    fiber::NoMigrate stays;
    return fiber::Event().Wait();
  });
  fiber::Yield();
  bound.Cancel();
  EXPECT_EQ(bound.Join().code(), absl::StatusCode::kCancelled);
}

// There is no other thread to expire timers then.
void SimulateWithinBlocking() {
  sched::Run({.workers = 1}, [] {
    fiber::Blocking([] { fiber::sim::Simulate({.schedules = 1}, [] {}); });
  });
}

TEST(BlockingDeathTest, ASimulationWithinIsRefusedByName) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(SimulateWithinBlocking(), "Simulate\\(\\) is called on a worker, at .*blocking_test.cc");
}

TEST(NoMigrateOutsideTest, DeadlinesAreKeptWhereNoThreadCanBeHad) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::NoMigrate stay;
    for (int i = 0; i < 20; ++i) {
      const fiber::Deadline due = absl::Milliseconds(1);
      EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());
      EXPECT_TRUE(due.is_past());
      fiber::Channel<int> never;
      EXPECT_EQ(never.Receive(absl::Microseconds(200)).status().code(), absl::StatusCode::kDeadlineExceeded);
      EXPECT_EQ(fiber::Event().Wait(absl::Microseconds(200)).code(), absl::StatusCode::kDeadlineExceeded);
    }
  });
}

// The thread's claim for the deadline against whoever sets the event at the same time: one wake-up for each wait.
FIBER_TEST_ON(NoMigrateTest, DeadlinesMeetWakers, 1, 2) {
  for (int i = 0; i < tests::Scaled(2000); ++i) {
    fiber::Event event;
    auto setter = fiber::Spawn([&event, i] {
      EXPECT_TRUE(fiber::Sleep(absl::Microseconds(40 + i % 40)).ok());
      event.Set();
    });
    {
      fiber::NoMigrate stay;
      const absl::Status status = event.Wait(absl::Microseconds(60));
      EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
      EXPECT_TRUE(event.Wait().ok());
    }
    setter.Join();
  }
}

// Who holds it, for a dump, may lose its CPU meanwhile.
FIBER_TEST_ON(NoMigrateTest, AFiberThatIsHeldPastItsDeadlineGoesOnWhenItIsReleased, 1, 2) {
  std::atomic<fiber::internal::Record*> record{nullptr};
  std::atomic<bool> is_past{false};
  auto bound = fiber::Spawn([&] {
    fiber::NoMigrate stay;
    record = fiber::internal::ThisThread().current;
    EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(10)).ok());
    is_past = true;
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
  });
  while (record == nullptr) fiber::Yield();
  bool is_held;
  while (!(is_held = fiber::internal::TryHold(*record)) && !is_past) fiber::Yield();
  if (is_held) {
    const bool was_past = is_past;  // on a slow machine, in one of the sleeps after it
    EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(30)).ok());
    EXPECT_EQ(is_past, was_past);
    fiber::internal::Release(*record);
  }
  bound.Join();
}

FIBER_TEST_ON(NoMigrateTest, OthersGoOnWhileABoundFiberIsParked, 1, 2) {
  std::vector<fiber::JoinHandle<void>> bound;
  fiber::Event start;
  std::atomic<int> waiting{0};
  for (int i = 0; i < 5; ++i) {
    bound.push_back(fiber::Spawn([&] {
      fiber::NoMigrate stay;
      fiber::NoMigrate nested;
      waiting.fetch_add(1);
      EXPECT_TRUE(start.Wait().ok());
      EXPECT_EQ(fiber::Blocking([] { return fiber::CurrentId(); }), 0u);
      EXPECT_EQ(fiber::Spawn([] { return 1; }).Join(), 1);
    }));
  }
  while (waiting.load() < 5) fiber::Yield();
  start.Set();
  for (auto& fiber : bound) fiber.Join();
}

}  // namespace
