// SPDX-License-Identifier: Apache-2.0
//
// Runtimes that run out of stacks: fibers wait for one unstarted, and start when one is free, on whichever worker, of
// whichever runtime. A process of its own: the limit is the process's.
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace {

using fiber::internal::StackDepot;

constexpr int kStacks = 16;

class FewStacksTest : public testing::TestWithParam<int> {
 protected:
  ~FewStacksTest() override {
    EXPECT_EQ(fiber::internal::CountRecordsInUse(), 0u) << "leaked fibers";
    EXPECT_EQ(StackDepot::Get().Stats().waiting, 0u);
  }
  sched::RuntimeOptions Options() const {
    return {.workers = GetParam(), .max_stack_memory = kStacks * 4096};
  }

  // What a fiber does that needs its stack for a while.
  static void Linger(int i) {
    fiber::Yield();
    EXPECT_TRUE(fiber::Sleep(absl::Microseconds(i * 7 % 200)).ok());
    fiber::Yield();
  }
};

TEST_P(FewStacksTest, AllFibersStartInTheEndAndNoMoreAtOnceThanThereAreStacks) {
  const int kFibers = tests::Scaled(5000);
  std::atomic<int> at_once{0}, most_at_once{0}, ended{0};
  sched::Run(Options(), [&] {
    fiber::WaitGroup all;
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&, i] {
        const int now = at_once.fetch_add(1) + 1;
        int most = most_at_once.load();
        while (now > most && !most_at_once.compare_exchange_weak(most, now)) {
        }
        Linger(i);
        at_once.fetch_sub(1);
        ended.fetch_add(1);
        all.Done();
      });
    }
    EXPECT_TRUE(all.Wait().ok());
  });
  EXPECT_EQ(ended.load(), kFibers);
  EXPECT_LE(most_at_once.load(), kStacks - 1) << "besides the spawner";
  EXPECT_GT(StackDepot::Get().Stats().waits, 0u);
}

TEST_P(FewStacksTest, RuntimesAndStackClassesShareThem) {
  const int kFibers = tests::Scaled(2000);
  std::atomic<int> ended{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      sched::Runtime runtime(Options());
      for (int i = 0; i < kFibers; ++i) {
        runtime.Go({.stack_bytes = size_t{64 + 512u * static_cast<unsigned>((i + t) % 2)} << 10}, [&, i] {
          Linger(i);
          ended.fetch_add(1);
        });
      }
      while (runtime.stats().fibers_live > 0) std::this_thread::yield();
      EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ended.load(), 3 * kFibers);
}

TEST_P(FewStacksTest, ShutdownStartsAndEndsThoseInLine) {
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> started{0}, cancelled{0};
    sched::Runtime runtime(Options());
    constexpr int kFibers = 200;
    for (int i = 0; i < kFibers; ++i) {
      runtime.Go([&] {
        started.fetch_add(1);
        if (absl::IsCancelled(fiber::Sleep(absl::InfiniteDuration()))) cancelled.fetch_add(1);
      });
    }
    while (started.load() < kStacks / 2) std::this_thread::yield();
    EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
    EXPECT_EQ(cancelled.load(), kFibers);
  }
}

INSTANTIATE_TEST_SUITE_P(Workers, FewStacksTest, testing::Values(1, 2, 4));

}  // namespace
