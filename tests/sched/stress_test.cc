// SPDX-License-Identifier: Apache-2.0
//
// Random mixes of everything that parks, on several workers. The seed is printed with a failure; WEFT_STRESS_SEED sets it.
#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/mutex.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace {

constexpr int kScale = tests::kHasFewFibers ? 1 : tests::kIsSlow ? 4 : 16;

uint64_t Seed() {
  if (const char* seed = getenv("WEFT_STRESS_SEED"); seed != nullptr) return strtoull(seed, nullptr, 10);
  return std::random_device()();
}

class StressTest : public testing::TestWithParam<int> {
 protected:
  StressTest() { RecordProperty("seed", std::to_string(seed_)); }
  ~StressTest() override {
    EXPECT_EQ(fiber::internal::CountRecordsInUse(), 0u) << "leaked fibers";
    if (HasFailure()) ADD_FAILURE() << "replay with WEFT_STRESS_SEED=" << seed_;
  }
  sched::RuntimeOptions Options() const { return {.workers = GetParam()}; }
  const uint64_t seed_ = Seed();
};

// noinline: errno on both sides of a park must be asked for anew (README, limits).
__attribute__((noinline)) void SetErrno(int value) { errno = value; }
__attribute__((noinline)) int GetErrno() { return errno; }

struct World {
  fiber::Mutex mutex;
  int64_t counter = 0;  // guarded by mutex
  fiber::Semaphore slots{3};
  std::atomic<int> in_slots{0};
  std::atomic<int64_t> locked{0};
};

void Wander(World& world, uint64_t seed, int depth) {
  std::minstd_rand random(static_cast<uint32_t>(seed * 2654435761u + 1));
  const int steps = 8;
  for (int i = 0; i < steps; ++i) {
    const int mark = static_cast<int>(random() % 100) + 1;
    SetErrno(mark);
    switch (random() % 8) {
      case 0:
        fiber::Yield();
        break;
      case 1:
        (void)fiber::Sleep(absl::Microseconds(random() % 300));
        break;
      case 2: {
        fiber::MutexLock lock(world.mutex);
        const int64_t before = world.counter;
        if (random() % 4 == 0) fiber::Yield();
        world.counter = before + 1;
        world.locked.fetch_add(1, std::memory_order_relaxed);
        break;
      }
      case 3:
        if (world.slots.Acquire(1, absl::Microseconds(random() % 2000)).ok()) {
          EXPECT_LE(world.in_slots.fetch_add(1) + 1, 3);
          fiber::Yield();
          world.in_slots.fetch_sub(1);
          world.slots.Release();
        }
        break;
      case 4:
        try {
          throw std::runtime_error("x");
        } catch (const std::runtime_error&) {
          const std::exception_ptr before = std::current_exception();
          fiber::Yield();
          (void)fiber::Sleep(absl::Microseconds(random() % 50));
          EXPECT_EQ(std::current_exception(), before);
          EXPECT_EQ(std::uncaught_exceptions(), 0);
        }
        break;
      case 5:
        if (depth > 0) {
          const uint64_t child = random();
          auto handle = fiber::Spawn([&world, child, depth] { Wander(world, child, depth - 1); });
          if (random() % 3 == 0) handle.Cancel();
          handle.Join();
        }
        break;
      case 6:
        if (depth > 0) {
          const uint64_t child = random();
          auto dropped = fiber::Spawn([&world, child, depth] { Wander(world, child, depth - 1); });
          if (random() % 2 == 0) fiber::Yield();
        }
        break;
      case 7: {
        fiber::Event event;
        auto setter = fiber::Spawn([&event] { event.Set(); });
        (void)event.Wait(absl::Microseconds(random() % 100));
        setter.Join();
        break;
      }
    }
    if (GetErrno() != mark && GetErrno() != 0) {
      // A fresh errno may come from our own system calls in between only by a bug: parking keeps it.
      EXPECT_EQ(GetErrno(), mark);
    }
  }
}

TEST_P(StressTest, EverythingAtOnceLosesNothing) {
  for (int round = 0; round < kScale; ++round) {
    World world;
    sched::Run(Options(), [&] {
      std::vector<fiber::JoinHandle<void>> fibers;
      for (uint64_t i = 0; i < 100; ++i) {
        fibers.push_back(fiber::Spawn(
            [&world, seed = seed_ + i + 1000 * static_cast<uint64_t>(round)] { Wander(world, seed, 2); }));
      }
      for (auto& fiber : fibers) fiber.Join();
    });
    EXPECT_EQ(world.counter, world.locked.load());
    EXPECT_EQ(world.in_slots.load(), 0);
  }
}

TEST_P(StressTest, MoreReadyFibersThanARingHolds) {
  const int kFibers = tests::kHasFewFibers ? 2500 : 16'000;
  std::atomic<int> ended{0};
  sched::Run(Options(), [&] {
    fiber::Event go;
    fiber::WaitGroup waiting, all;
    waiting.Add(kFibers);
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&] {
        waiting.Done();
        EXPECT_TRUE(go.Wait().ok());
        fiber::Yield();
        ended.fetch_add(1, std::memory_order_relaxed);
        all.Done();
      });
    }
    EXPECT_TRUE(waiting.Wait().ok());
    go.Set();  // pushes all of them, and gives way to none
    EXPECT_TRUE(all.Wait().ok());
  });
  EXPECT_EQ(ended.load(), kFibers);
}

TEST_P(StressTest, UnstartedFibersOverflowAndAllRun) {
  const int kFibers = 10'000 * kScale;
  std::atomic<int> ran{0};
  sched::Run(Options(), [&] {
    fiber::WaitGroup all;
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&] {
        ran.fetch_add(1, std::memory_order_relaxed);
        all.Done();
      });
    }
    EXPECT_TRUE(all.Wait().ok());
  });
  EXPECT_EQ(ran.load(), kFibers);
}

TEST_P(StressTest, ManySleepersWakeNeverEarly) {
  const int kFibers = 400 * kScale;
  std::atomic<int> early{0};
  sched::Run(Options(), [&] {
    fiber::WaitGroup all;
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&, i] {
        const absl::Duration asked = absl::Microseconds(1 + i * 7919 % 50'000);
        const absl::Duration start = fiber::Now();
        if (!fiber::Sleep(asked).ok() || fiber::Now() - start < asked) early.fetch_add(1);
        all.Done();
      });
    }
    EXPECT_TRUE(all.Wait().ok());
  });
  EXPECT_EQ(early.load(), 0);
}

TEST_P(StressTest, TimeoutsRacingWithGrantsLoseNothing) {
  sched::Run(Options(), [&] {
    fiber::Semaphore permits(0);
    std::atomic<int> granted{0};
    const int kRounds = 500 * kScale;
    auto giver = fiber::Spawn([&] {
      for (int i = 0; i < kRounds; ++i) {
        permits.Release();
        if (i % 3 == 0) (void)fiber::Sleep(absl::Microseconds(i % 40));
      }
    });
    std::vector<fiber::JoinHandle<void>> takers;
    for (int t = 0; t < 4; ++t) {
      takers.push_back(fiber::Spawn([&, t] {
        while (granted.load() < kRounds) {
          if (permits.Acquire(1, absl::Microseconds(5 * t + 1)).ok()) granted.fetch_add(1);
        }
      }));
    }
    giver.Join();
    for (auto& taker : takers) taker.Join();
    EXPECT_EQ(granted.load(), kRounds);
  });
}

TEST_P(StressTest, APingPongPairAndYieldersLeaveTheOthersRunning) {
  sched::Run(Options(), [&] {
    std::atomic<bool> stop{false};
    fiber::Semaphore ping(1), pong(0);
    auto left = fiber::Spawn([&] {
      while (!stop.load()) {
        if (!ping.Acquire().ok()) return;
        pong.Release();
      }
      pong.Release();
    });
    auto right = fiber::Spawn([&] {
      while (!stop.load()) {
        if (!pong.Acquire().ok()) return;
        ping.Release();
      }
      ping.Release();
    });
    std::vector<fiber::JoinHandle<void>> yielders;
    for (int i = 0; i < 20; ++i) {
      yielders.push_back(fiber::Spawn([&] {
        while (!stop.load()) fiber::Yield();
      }));
    }
    // Spawned, slept for and unparked from outside among them: each must come to its turn.
    for (int i = 0; i < 20; ++i) {
      fiber::Spawn([] {}).Join();
      EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
      fiber::Event event;
      std::thread thread([&event] { event.Set(); });
      EXPECT_TRUE(event.Wait().ok());
      thread.join();
    }
    stop = true;
    left.Join();
    right.Join();
    for (auto& yielder : yielders) yielder.Join();
  });
}

TEST_P(StressTest, CancelsFromOutsideRaceWithEverything) {
  for (int round = 0; round < kScale; ++round) {
    World world;
    sched::Runtime runtime(Options());
    std::vector<fiber::JoinHandle<void>> fibers;
    for (uint64_t i = 0; i < 50; ++i) {
      fibers.push_back(runtime.Spawn([&world, seed = seed_ + i + 1000 * static_cast<uint64_t>(round)] {
        Wander(world, seed, 2);
      }));
    }
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 2; ++t) {
      threads.emplace_back([&, t] {
        std::minstd_rand random(static_cast<uint32_t>(seed_ + t + 1));
        for (int i = 0; i < 50; ++i) {
          fibers[random() % fibers.size()].Cancel();
          if (random() % 4 == 0) std::this_thread::yield();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (auto& fiber : fibers) fiber.Join();
    EXPECT_EQ(world.counter, world.locked.load());
  }
}

TEST_P(StressTest, AMillionFibersAreSpawnedBeforeTheirSpawnerGivesWay) {
  const int kFibers = tests::kHasFewFibers ? 10'000 : tests::kIsSlow ? 50'000 : 1'000'000;
  std::atomic<int> ran{0};
  int ran_before = 0;
  sched::RuntimeOptions options = Options();
  options.max_threads = GetParam();  // no spare worker runs them beside it
  sched::Run(options, [&] {
    fiber::WaitGroup all;
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&] {
        ran.fetch_add(1, std::memory_order_relaxed);
        all.Done();
      });
    }
    ran_before = ran.load();
    EXPECT_TRUE(all.Wait().ok());
  });
  EXPECT_EQ(ran.load(), kFibers);
  if (GetParam() == 1) {
    EXPECT_EQ(ran_before, 0);
  }
}

TEST_P(StressTest, AMillionSleepsEndAndNoneEarly) {
  const int kFibers = tests::kHasFewFibers ? 1000 : 10'000;
  const int kEach = tests::kHasFewFibers ? 5 : tests::kIsSlow ? 10 : 100;
  std::atomic<int64_t> slept{0};
  std::atomic<int64_t> early{0};
  sched::Run(Options(), [&] {
    fiber::WaitGroup all;
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&, i] {
        std::minstd_rand random(static_cast<uint32_t>(seed_ + static_cast<uint64_t>(i)));
        for (int n = 0; n < kEach; ++n) {
          const absl::Duration asked = absl::Nanoseconds(random() % 2'000'000);
          const absl::Duration start = fiber::Now();
          if (!fiber::Sleep(asked).ok() || fiber::Now() - start < asked) early.fetch_add(1);
          slept.fetch_add(1, std::memory_order_relaxed);
        }
        all.Done();
      });
    }
    EXPECT_TRUE(all.Wait().ok());
  });
  EXPECT_EQ(slept.load(), int64_t{kFibers} * kEach);
  EXPECT_EQ(early.load(), 0);
}

// A busy machine makes most of them late, but a rounding up to milliseconds would make all of them late.
TEST_P(StressTest, SleepsOf100MicrosecondsMayTakeLessThanAMillisecond) {
  sched::Run(Options(), [] {
    absl::Duration shortest = absl::InfiniteDuration();
    for (int i = 0; i < 5000 && shortest > absl::Microseconds(700); ++i) {
      const absl::Duration start = fiber::Now();
      EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
      shortest = std::min(shortest, fiber::Now() - start);
    }
    EXPECT_LT(shortest, absl::Microseconds(700));
  });
}

// Go's TestStackGrowth: deep in many fibers at once, and parked there, moving from worker to worker.
struct Deep {
  static constexpr int kFrameBytes = 1024;

  // Returns how many frames there were. `frames` of them take 200 KiB of the default 256.
  __attribute__((noinline)) static int Dig(int frames, uint64_t mark) {
    volatile uint64_t frame[kFrameBytes / sizeof(uint64_t)];
    frame[0] = mark;
    frame[kFrameBytes / sizeof(uint64_t) - 1] = ~mark;
    if (frames == 0) {
      fiber::Yield();
      (void)fiber::Sleep(absl::Microseconds(mark % 200));
      return 1;
    }
    const int below = Dig(frames - 1, mark + 1);
    const bool is_intact = frame[0] == mark && frame[kFrameBytes / sizeof(uint64_t) - 1] == ~mark;
    return is_intact ? below + 1 : -1'000'000;
  }
};

TEST_P(StressTest, FibersRecurseDeeplyAllAtOnce) {
  constexpr int kFrames = 200 * 1024 / (Deep::kFrameBytes + 64);
  sched::Run(Options(), [&] {
    for (int round = 0; round < 5; ++round) {
      std::vector<fiber::JoinHandle<int>> fibers;
      for (uint64_t i = 0; i < 50; ++i) {
        fibers.push_back(fiber::Spawn([i] { return Deep::Dig(kFrames, i); }));
      }
      for (auto& fiber : fibers) EXPECT_EQ(fiber.Join(), kFrames + 1);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Workers, StressTest, testing::Values(1, 2, 4, 8));

}  // namespace
