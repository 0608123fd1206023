// SPDX-License-Identifier: Apache-2.0
#include "sched/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/mutex.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace {

class RuntimeTest : public testing::TestWithParam<int> {
 protected:
  sched::RuntimeOptions Options() const { return {.workers = GetParam()}; }
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
  for (int i = 0; i < 70; ++i) {
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

TEST_P(RuntimeTest, SurvivorsAreNamedWithWhatTheyWaitFor) {
  sched::Runtime runtime(Options());
  fiber::Mutex mutex;
  mutex.lock();
  std::atomic<int> under_way{0};
  runtime.Go({.name = "locker"}, [&] {
    under_way.fetch_add(1);
    mutex.lock();  // cancelling does not end that
    mutex.unlock();
  });
  runtime.Go({.name = "parent"}, [&] {
    auto child = fiber::Spawn({.name = "child"}, [&] {
      under_way.fetch_add(1);
      mutex.lock();
      mutex.unlock();
    });
    child.Join();
  });
  while (under_way.load() < 2) std::this_thread::yield();
  absl::Status status;
  do {  // until all three have parked
    status = runtime.Shutdown(absl::Milliseconds(1));
  } while (absl::StrContains(status.message(), "running"));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  const std::string text(status.message());
  EXPECT_THAT(text, testing::HasSubstr("3 fibers are left"));
  for (const char* line : {"fiber [0-9]+ 'locker' \\(spawned at .*runtime_test.cc:[0-9]+\\) waits for mutex",
                           "fiber [0-9]+ 'child' \\(spawned at .*runtime_test.cc:[0-9]+\\) waits for mutex",
                           "fiber [0-9]+ 'parent' \\(spawned at .*runtime_test.cc:[0-9]+\\) waits for join"}) {
    EXPECT_THAT(text, testing::ContainsRegex(line));
  }
  mutex.unlock();
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
}

// Not inlined: the fiber may come back on another thread, whose errno has another address.
__attribute__((noinline)) void SetErrno(int value) {
  asm volatile("" ::: "memory");
  errno = value;
}
__attribute__((noinline)) int GetErrno() {
  asm volatile("" ::: "memory");
  return errno;
}

// Whoever yields makes the stack of the next fiber, by system calls that fail here and there.
TEST_P(RuntimeTest, ErrnoSurvivesAYieldThatMakesStacks) {
  sched::Run(Options(), [] {
    fiber::Event release;
    std::vector<fiber::JoinHandle<absl::Status>> fibers;
    for (int i = 0; i < 20; ++i) {
      const size_t stack_bytes = size_t{i % 2 == 0 ? 1u : 8u} << 20;
      fibers.push_back(fiber::Spawn({.stack_bytes = stack_bytes}, [&] { return release.Wait(); }));
      SetErrno(1234);
      fiber::Yield();
      ASSERT_EQ(GetErrno(), 1234) << "after " << i;
    }
    release.Set();
    for (auto& fiber : fibers) EXPECT_TRUE(fiber.Join().ok());
  });
}

// noinline, volatile: compilers take the rounding to be what it is by default.
__attribute__((noinline)) double Third() {
  volatile double one = 1;
  volatile double three = 3;
  return one / three;
}

// Lost at a switch, a calculation would go on with another's.
TEST_P(RuntimeTest, TheWayOfRoundingGoesWithAFiber) {
  sched::Run(Options(), [] {
    std::vector<fiber::JoinHandle<double>> fibers;
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_UPWARD, FE_DOWNWARD}) {
      fibers.push_back(fiber::Spawn([mode] {
        const int before = fegetround();
        EXPECT_EQ(fesetround(mode), 0);
        const double third = Third();
        for (int i = 0; i < 100; ++i) {
          fiber::Yield();
          EXPECT_EQ(fegetround(), mode);
          EXPECT_EQ(Third(), third);
        }
        EXPECT_EQ(fesetround(before), 0);
        return third;
      }));
    }
    std::vector<double> thirds;
    for (auto& fiber : fibers) thirds.push_back(fiber.Join());
    EXPECT_GT(thirds[0], thirds[1]);
    EXPECT_EQ(thirds[0], thirds[2]);
    EXPECT_EQ(thirds[1], thirds[3]);
  });
}

// Saved or restored at the address of the thread that it was parked on, it would be another fiber's.
TEST(RuntimeTest, ErrnoGoesWithAFiberToAnotherThread) {
  sched::Run({.workers = 4}, [] {
    std::atomic<int> migrations{0};
    std::vector<fiber::JoinHandle<void>> fibers;
    for (int i = 1; i <= 8; ++i) {
      fibers.push_back(fiber::Spawn([&migrations, i] {
        const fiber::Deadline patience = absl::Seconds(30);
        while (migrations.load(std::memory_order_relaxed) < 100 && !patience.is_past()) {
          const long before = syscall(SYS_gettid);
          SetErrno(1000 + i);
          if (i % 2 == 0) {
            fiber::Yield();
          } else {
            (void)fiber::Sleep(absl::Microseconds(50));
          }
          ASSERT_EQ(GetErrno(), 1000 + i);
          if (syscall(SYS_gettid) != before) migrations.fetch_add(1, std::memory_order_relaxed);
        }
      }));
    }
    for (auto& fiber : fibers) fiber.Join();
    EXPECT_GE(migrations.load(), 100) << "of which the rest was to tell";
  });
}

// A signal for the process that a worker takes would run its handler on a small stack, and interrupt a fiber's system calls.
TEST_P(RuntimeTest, WorkersTakeNoSignalsButFaultsAndProfilers) {
  sched::Run(Options(), [] {
    sigset_t blocked;
    ASSERT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &blocked), 0);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGALRM, SIGUSR1, SIGPIPE}) {
      EXPECT_EQ(sigismember(&blocked, signal), 1) << signal;
    }
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPROF}) {
      EXPECT_EQ(sigismember(&blocked, signal), 0) << signal;
    }
  });
}

TEST_P(RuntimeTest, ASurvivorThatRunsIsNamed) {
  sched::Runtime runtime(Options());
  std::atomic<bool> may_end{false};
  std::atomic<bool> is_running{false};
  runtime.Go({.name = "stubborn"}, [&] {
    is_running = true;
    while (!may_end) fiber::Yield();
  });
  while (!is_running) std::this_thread::yield();
  const absl::Status status = runtime.Shutdown(absl::Milliseconds(1));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("'stubborn' (spawned at"));
  may_end = true;
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
}

TEST_P(RuntimeTest, FibersStillStartAndSpawnWhileARuntimeDrains) {
  std::atomic<int> ran{0};
  sched::Runtime runtime(Options());
  fiber::Event stop;
  runtime.Go([&] {
    while (!stop.is_set()) fiber::Yield();
    for (int i = 0; i < 100; ++i) {
      fiber::Go([&] {
        EXPECT_TRUE(absl::IsCancelled(fiber::CheckCancelled()));
        fiber::Go([&] { ran.fetch_add(1); });
      });
    }
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(runtime.Shutdown(absl::Milliseconds(1))));
  runtime.Go([&] { ran.fetch_add(1); });  // from outside as well, as long as something is left
  stop.Set();
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(10)).ok());
  EXPECT_EQ(ran.load(), 101);
}

TEST_P(RuntimeTest, AFiberMayHaveARuntimeOfItsOwn) {
  const int sum = sched::Run(Options(), [this] {
    sched::Runtime inner(Options());
    int sum = 0;
    for (int i = 0; i < 50; ++i) {
      sum += inner.Spawn([i] {
        fiber::Yield();
        return fiber::Spawn([i] { return i; }).Join();
      }).Join();
    }
    return sum + sched::Run(Options(), [] { return fiber::Spawn([] { return 1; }).Join(); });
  });
  EXPECT_EQ(sum, 49 * 50 / 2 + 1);
}

TEST_P(RuntimeTest, RunsBesideRunsOnSeveralThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(sched::Run(Options(), [&] { return fiber::Spawn([&] { return 100 * t + i; }).Join(); }),
                  100 * t + i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Whoever unparks the last fiber from outside may still be in the runtime when that fiber, and all else, has ended:
//
//   thread                         worker                        owner
//   pushes the last fiber
//                                  runs it to its end
//                                                                joins, shuts down, destroys the runtime
//   looks for an idle worker: must find the runtime there
TEST_P(RuntimeTest, ARuntimeOutlivesThoseWhoUnparkItsLastFiber) {
  for (int i = 0; i < tests::Scaled(300); ++i) {
    fiber::Event go;
    std::thread thread;
    {
      sched::Runtime runtime(Options());
      auto last = runtime.Spawn([&] { EXPECT_TRUE(go.Wait().ok()); });
      thread = std::thread([&] { go.Set(); });
      last.Join();
    }
    thread.join();
  }
}

// Entries of timers that were not used lie in a runtime's queues when it ends, and the stacks and wait blocks they were
// made for serve other runtimes' fibers next.
TEST_P(RuntimeTest, RuntimesThatEndWithUnusedTimersTakeNobodyElsesAlong) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([this] {
      for (int i = 0; i < 30; ++i) {
        sched::Run(Options(), [] {
          std::vector<fiber::JoinHandle<void>> fibers;
          for (int f = 0; f < 20; ++f) {
            fibers.push_back(fiber::Spawn([f] {
              fiber::Event event;
              auto setter = fiber::Spawn([&event] { event.Set(); });
              EXPECT_TRUE(event.Wait(absl::Milliseconds(f % 2 == 0 ? 20'000 : 60'000)).ok());
              EXPECT_TRUE(fiber::Sleep(absl::Microseconds(500)).ok());
            }));
          }
          for (auto& fiber : fibers) fiber.Join();
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(RuntimeTest, ShutdownInTheMiddleOfEverythingEndsItAll) {
  for (int i = 0; i < 30; ++i) {
    std::atomic<int> live{0};
    std::atomic<bool> is_stopping{false};
    fiber::Semaphore permits(0);
    {
      sched::Runtime runtime(Options());
      for (int f = 0; f < 40; ++f) {
        live.fetch_add(1);
        runtime.Go([&, f] {
          while (fiber::CheckCancelled().ok()) {
            switch (f % 5) {
              case 0: (void)fiber::Sleep(absl::Microseconds(f)); break;
              case 1: fiber::Yield(); break;
              case 2: fiber::Spawn([] { fiber::Yield(); }).Join(); break;
              case 3: (void)permits.Acquire(1, absl::Microseconds(50 * f)); break;
              case 4: (void)fiber::Sleep(absl::InfiniteDuration()); break;
            }
          }
          live.fetch_sub(1);
        });
      }
      std::thread outside([&] {
        while (!is_stopping.load()) permits.Release();
      });
      if (i % 2 == 1) std::this_thread::yield();
      EXPECT_TRUE(runtime.Shutdown(absl::Seconds(30)).ok());
      is_stopping = true;
      outside.join();
    }
    EXPECT_EQ(live.load(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Workers, RuntimeTest, testing::Values(1, 2, 8));

TEST(RuntimeTest, ASpawnFromAPlainThreadUsesTheOneRuntime) {
  sched::Runtime runtime({.workers = 1, .max_threads = 1});
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
               "a runtime ends, but not its fibers: .*1 fiber is left:\n"
               ".*fiber [0-9]+ 'stubborn' \\(spawned at .*runtime_test.cc:[0-9]+\\)");
}

TEST(RuntimeDeathTest, ASpawnOnARuntimeThatHasStoppedIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        sched::Runtime runtime({.workers = 1, .max_threads = 1});
        runtime.Spawn([] {}).Join();
        (void)runtime.Shutdown(absl::Seconds(10));
        runtime.Go([] {});
      },
      "a fiber is spawned on a runtime that has stopped \\(at .*runtime_test.cc:[0-9]+\\)");
}

// Counted but not yet queued when the runtime is found to be drained: it is either run, or ends the process.
TEST(RuntimeDeathTest, SpawningUntilARuntimeStopsEndsTheProcessAndLosesNone) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        sched::Runtime runtime({.workers = 2});
        std::thread spawner([&] {
          for (;;) runtime.Spawn([] {}).Join();  // would hang if one were lost
        });
        (void)runtime.Shutdown(absl::Seconds(60));
        spawner.join();
      },
      "a fiber is spawned on a runtime that has stopped");
}

TEST(RuntimeDeathTest, AFiberCannotShutItsOwnRuntimeDown) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        sched::Runtime runtime({.workers = 1, .max_threads = 1});
        runtime.Spawn([&] { (void)runtime.Shutdown(absl::Seconds(1)); }).Join();
      },
      "a runtime is shut down by one of its own fibers");
}

#if !defined(WEFT_ASAN) && !defined(WEFT_TSAN)  // they need all the address space
// Leaves room for so many more thread stacks of 64 MiB.
void LeaveRoomForThreads(size_t count) {
  sched::Run({.workers = 1, .max_threads = 1}, [] { fiber::Spawn([] {}).Join(); });  // stacks of fibers are there
  constexpr size_t kStack = size_t{64} << 20;
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kStack), 0);
  ASSERT_EQ(pthread_setattr_default_np(&attributes), 0);
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit limit{pages * 4096 + count * kStack + kStack / 2, RLIM_INFINITY};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
}

TEST(RuntimeDeathTest, WorksWithTheThreadsThatCanBeHadAndSaysSo) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        LeaveRoomForThreads(2);
        sched::Runtime runtime({.workers = 8});
        if (runtime.stats().workers != 2) exit(1);
        std::vector<fiber::JoinHandle<int>> fibers;
        for (int i = 0; i < 1000; ++i) {
          fibers.push_back(runtime.Spawn([i] {
            (void)fiber::Sleep(absl::Microseconds(i));
            return fiber::Spawn([i] { return i; }).Join();
          }));
        }
        int sum = 0;
        for (auto& fiber : fibers) sum += fiber.Join();
        exit(runtime.Shutdown(absl::Seconds(10)).ok() && sum == 999 * 1000 / 2 ? 0 : 2);
      },
      testing::ExitedWithCode(0), "only 2 of 8 worker threads can be had: the limit on threads is reached");
}

TEST(RuntimeDeathTest, WithoutOneThreadTheLimitIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        LeaveRoomForThreads(0);
        try {
          sched::Run({.workers = 2}, [] {});
        } catch (const std::system_error& error) {
          fputs(error.what(), stderr);
          exit(0);
        }
        exit(1);
      },
      testing::ExitedWithCode(0), "not one worker thread can be had: the limit on threads is reached");
}
#endif

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
  EXPECT_DEATH(sched::Run({.workers = 1, .max_threads = 1},
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
