// SPDX-License-Identifier: Apache-2.0
#include "sched/runtime.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace {

class RuntimeTest : public testing::TestWithParam<int> {
 protected:
  sched::RuntimeOptions Options() const { return {.workers = GetParam()}; }
  ~RuntimeTest() override { EXPECT_EQ(fiber::internal::CountRecordsInUse(), 0u) << "leaked fibers"; }
};

TEST_P(RuntimeTest, RunReturnsWhatMainReturnsAndRethrowsWhatEscapes) {
  EXPECT_EQ(sched::Run(Options(), [] { return std::make_unique<int>(7); }).operator*(), 7);
  sched::Run(Options(), [] {});
  EXPECT_THROW(sched::Run(Options(), []() -> int { throw std::runtime_error("no"); }),
               std::runtime_error);
}

TEST_P(RuntimeTest, WhatIsLeftIsCancelledWhenMainEnds) {
  std::atomic<int> cancelled{0};
  sched::Run(Options(), [&] {
    fiber::WaitGroup started;
    for (int i = 0; i < 100; ++i) {
      started.Add();
      fiber::Go([&cancelled, started_one = &started] {
        started_one->Done();
        // The first parks already, or finds itself cancelled; what it does next fails as well.
        if (absl::IsCancelled(fiber::Sleep(absl::InfiniteDuration())) &&
            absl::IsCancelled(fiber::Sleep(absl::Hours(1)))) {
          cancelled.fetch_add(1, std::memory_order_relaxed);
        }
      });
    }
    EXPECT_TRUE(started.Wait().ok());
  });
  EXPECT_EQ(cancelled.load(), 100);
}

TEST_P(RuntimeTest, SpawnsAndUnparksFromPlainThreadsArrive) {
  sched::Runtime runtime(Options());
  constexpr int kThreads = 4;
  constexpr int kEach = 500;
  std::atomic<int> ran{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) {
        fiber::Event go;
        auto fiber = runtime.Spawn([&] {
          if (go.Wait().ok()) ran.fetch_add(1, std::memory_order_relaxed);
        });
        go.Set();
        fiber.Join();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ran.load(), kThreads * kEach);
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
}

TEST_P(RuntimeTest, StartsAndStopsManyTimes) {
  for (int i = 0; i < 50; ++i) {
    sched::Runtime runtime(Options());
    runtime.Go([] { fiber::Go([] {}); });
    if (i % 2 == 0) {
      EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
    }
  }
}

TEST_P(RuntimeTest, SeveralCoexistAndTheirFibersJoinEachOther) {
  sched::Runtime a(Options());
  sched::Runtime b(Options());
  auto sum = a.Spawn([&b] {
    int sum = 0;
    for (int i = 0; i < 200; ++i) sum += b.Spawn([i] { return i; }).Join();
    return sum;
  });
  EXPECT_EQ(sum.Join(), 199 * 200 / 2);
}

TEST_P(RuntimeTest, ShutdownNamesTheSurvivorsAndMayBeCalledAgain) {
  sched::Runtime runtime(Options());
  fiber::Event stop;
  std::atomic<bool> is_deaf{false};
  runtime.Go({.name = "deaf"}, [&] {
    is_deaf = true;
    while (!stop.is_set()) (void)stop.Wait(absl::Milliseconds(1));  // ignores that it is cancelled
  });
  while (!is_deaf) std::this_thread::yield();
  absl::Status status = runtime.Shutdown(absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "1 fiber is left")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "runtime_test.cc")) << status;
  stop.Set();
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
}

TEST_P(RuntimeTest, StatsCountFibers) {
  sched::Runtime runtime(Options());
  EXPECT_EQ(runtime.stats().workers, GetParam());
  fiber::Event go;
  std::vector<fiber::JoinHandle<absl::Status>> fibers;
  for (int i = 0; i < 10; ++i) fibers.push_back(runtime.Spawn([&] { return go.Wait(); }));
  EXPECT_EQ(runtime.stats().fibers_spawned, 10u);
  EXPECT_EQ(runtime.stats().fibers_live, 10u);
  go.Set();
  for (auto& fiber : fibers) EXPECT_TRUE(fiber.Join().ok());
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
  EXPECT_EQ(runtime.stats().fibers_live, 0u);
}

INSTANTIATE_TEST_SUITE_P(Workers, RuntimeTest, testing::Values(1, 2, 8));

TEST(RuntimeTest, ASpawnFromAPlainThreadUsesTheOneRuntime) {
  sched::Runtime runtime({.workers = 1});
  EXPECT_EQ(fiber::Spawn([] { return 3; }).Join(), 3);
}

using RuntimeDeathTest = testing::Test;

TEST(RuntimeDeathTest, ASpawnFromAPlainThreadNeedsOneRuntime) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(fiber::Go([] {}), "runtime_test.cc:.* but no runtime is running");
  EXPECT_DEATH(
      {
        sched::Runtime a({.workers = 1});
        sched::Runtime b({.workers = 1});
        fiber::Go([] {});
      },
      "but more than one runtime is running; use sched::Runtime::Go");
}

TEST(RuntimeDeathTest, AFiberThatNeverEndsIsNamedAtTheDrainDeadline) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sched::Run({.workers = 1, .drain = absl::Milliseconds(50)},
                          [] {
                            auto* forever = new fiber::Event;
                            fiber::Go({.name = "stubborn"}, [forever] {
                              for (;;) (void)forever->Wait(absl::Milliseconds(5));
                            });
                          }),
               "a runtime ends, but not its fibers: .*1 fiber is left:");
}

TEST(RuntimeDeathTest, BadWorkerCountsAreNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sched::Run({.workers = -1}, [] {}), "RuntimeOptions::workers = -1");
  EXPECT_DEATH(
      {
        setenv("WEFT_WORKERS", "many", 1);
        sched::Run([] {});
      },
      "WEFT_WORKERS.*many");
}

TEST(RuntimeDeathTest, AStackOverflowNamesTheFiber) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  struct Deep {
    static int Dig(int depth) {
      volatile char frame[2048];
      frame[0] = static_cast<char>(depth);
      return depth < 0 ? 0 : Dig(depth + 1) + frame[0];
    }
  };
  EXPECT_DEATH(sched::Run({.workers = 1},
                          [] {
                            fiber::Spawn({.name = "digger", .stack_bytes = 64 << 10}, [] {
                              return Deep::Dig(1);
                            }).Join();
                          }),
               "fiber [0-9]+ 'digger' \\(spawned at .*runtime_test.cc:[0-9]+\\) overflowed its .* KiB stack");
}

TEST(RuntimeTest, TheEnvironmentSetsTheWorkers) {
  setenv("WEFT_WORKERS", "3", 1);
  EXPECT_EQ(sched::Runtime().stats().workers, 3);
  unsetenv("WEFT_WORKERS");
}

}  // namespace
