// SPDX-License-Identifier: Apache-2.0
//
// Runtimes come and go, and the process ends, while fibers and threads are in the middle of something.
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace {

class LifecycleTest : public testing::TestWithParam<int> {
 protected:
  sched::RuntimeOptions Options() const { return {.workers = GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(Workers, LifecycleTest, testing::Values(1, 2));

// Something of everything a runtime keeps: fibers that park, sleep, yield, are joined and left behind.
void LiveAShortLife(const sched::RuntimeOptions& options) {
  sched::Runtime runtime(options);
  fiber::Event event;
  auto parked = runtime.Spawn([&] { return event.Wait(); });
  runtime.Go([] { (void)fiber::Sleep(absl::InfiniteDuration()); });
  runtime.Go([] { (void)fiber::Sleep(absl::Microseconds(10)); });
  EXPECT_EQ(runtime.Spawn([] {
    fiber::Yield();
    return fiber::Spawn([] { return 7; }).Join();
  }).Join(), 7);
  event.Set();
  EXPECT_TRUE(parked.Join().ok());
}

// Without it: what a runtime does not give back (threads, stacks, timers, a place in a list) adds up in a program that
// starts one for each test or request.
TEST_P(LifecycleTest, AThousandRuntimesFourAtATimeLeaveNothing) {
  constexpr int kAtOnce = 4;
  const int each = tests::Scaled(1'000) / kAtOnce;
  const auto live = [&](int times) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kAtOnce; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < times; ++i) LiveAShortLife(Options());
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  live(each / 10 + 1);
  const fiber::internal::StackPoolStats before = fiber::internal::StackDepot::Get().Stats();
  live(each - each / 10 - 1);
  // What is kept serves those that come later. A worker takes up to 32 at a time, whoever else is at it.
  const fiber::internal::StackPoolStats after = fiber::internal::StackDepot::Get().Stats();
  EXPECT_EQ(after.arenas, before.arenas);
  for (int cls = 0; cls < fiber::internal::kStackClasses; ++cls) {
    EXPECT_LE(after.carved[cls], before.carved[cls] + kAtOnce * 64u);
    EXPECT_EQ(after.free[cls], after.carved[cls]);
  }
}

// Without it: a runtime that stops may lose a fiber that is spawned or unparked from outside meanwhile, whose joiner hangs.
TEST_P(LifecycleTest, ForeignThreadsSpawnAndUnparkWhileItStops) {
  constexpr int kThreads = 3;
  for (int repeat = 0; repeat < tests::Scaled(20); ++repeat) {
    std::atomic<int> ran{0};
    std::atomic<int> busy{kThreads};
    std::atomic<bool> is_stopping{false};
    sched::Runtime runtime(Options());
    // As long as it is there, so is the runtime.
    runtime.Go([&] {
      while (busy.load() > 0) fiber::Yield();
    });
    const int each = tests::Scaled(100);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        while (!is_stopping.load()) std::this_thread::yield();
        for (int i = 0; i < each; ++i) {
          fiber::Event event;
          auto waits = fiber::Spawn([&] {
            (void)event.Wait();  // cancelled or not
            ran.fetch_add(1);
          });
          auto sleeps = runtime.Spawn([&] {
            (void)fiber::Sleep(absl::InfiniteDuration());
            ran.fetch_add(1);
          });
          event.Set();
          sleeps.Cancel();
          waits.Join();
          sleeps.Join();
        }
        busy.fetch_sub(1);
      });
    }
    is_stopping.store(true);
    EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(ran.load(), 2 * kThreads * each);
  }
}

// Calls on_move() when it is moved into a fiber: after the runtime to spawn on was looked up, before the fiber is queued.
class CallsWhenMoved {
 public:
  explicit CallsWhenMoved(std::function<void()> on_move) : on_move_(std::move(on_move)) {}
  CallsWhenMoved(CallsWhenMoved&& other) : on_move_(std::move(other.on_move_)) { on_move_(); }
  void operator()() const {}

 private:
  std::function<void()> on_move_;
};

// Tells when its thread has ended.
struct TellsAtThreadExit {
  std::atomic<bool>* has_ended = nullptr;
  ~TellsAtThreadExit() {
    if (has_ended != nullptr) has_ended->store(true);
  }
};
thread_local TellsAtThreadExit tells_at_thread_exit;

using LifecycleDeathTest = testing::Test;

// Without it: fiber::Go from a plain thread that found the only runtime just before that ended would touch freed memory.
//
//   thread                             owner
//   looks up the one runtime
//                                      shuts down: nothing is left; the workers end
//                                      destroys the runtime: must wait for the thread
//   queues the fiber: names the bug
TEST(LifecycleDeathTest, ASpawnThatFoundARuntimeJustBeforeItEndsIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        std::atomic<bool> has_found{false};
        std::atomic<bool> has_worker_ended{false};
        std::atomic<bool> is_destroyed{false};
        auto runtime = std::make_unique<sched::Runtime>(sched::RuntimeOptions{.workers = 1});
        runtime->Spawn([&] { tells_at_thread_exit.has_ended = &has_worker_ended; }).Join();
        std::thread spawner([&] {
          fiber::Go(CallsWhenMoved([&] {
            // Its record is there: so the runtime is looked up.
            if (fiber::internal::CountRecordsInUse() == 0 || has_found.exchange(true)) return;
            while (!has_worker_ended.load()) std::this_thread::yield();
            // What comes next must not come; if it comes, it comes soon.
            for (int i = 0; i < 10'000 && !is_destroyed.load(); ++i) std::this_thread::yield();
            if (is_destroyed.load()) _exit(1);
          }));
        });
        while (!has_found.load()) std::this_thread::yield();
        runtime = nullptr;
        is_destroyed.store(true);
        spawner.join();
      },
      "a fiber is spawned on a runtime that has stopped \\(at .*lifecycle_test.cc:[0-9]+\\)");
}

// Locks and unlocks when the process ends.
struct LocksAtTheEnd {
  fiber::Mutex mutex;
  ~LocksAtTheEnd() {
    mutex.lock();
    mutex.unlock();
  }
};

// Without it: exit() in a fiber, which is where most code of a program is, may hang or crash: it ends the thread's own
// objects, and then static ones, while the fiber still stands on its worker and others go on.
TEST(LifecycleDeathTest, AFiberMayCallExit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (int workers : {1, 2}) {
    EXPECT_EXIT(sched::Run({.workers = workers},
                           [] {
                             static LocksAtTheEnd at_the_end;
                             static std::atomic<int> holders{0};
                             auto* forever = new fiber::Event;
                             for (int i = 0; i < 10; ++i) {
                               fiber::Go([forever] { (void)forever->Wait(); });
                               fiber::Go([] {
                                 for (;;) fiber::Yield();
                               });
                             }
                             // Who exits waits for this one, on whose worker it may stand.
                             fiber::Go([] {
                               at_the_end.mutex.lock();
                               holders.fetch_add(1);
                               for (int i = 0; i < 100; ++i) fiber::Yield();
                               at_the_end.mutex.unlock();
                             });
                             while (holders.load() == 0) fiber::Yield();
                             exit(7);
                           }),
                testing::ExitedWithCode(7), "");
  }
}

// Without it: a worker that gave its stacks back at exit(), or was forgotten with a list of them, is looked for by those
// who find none.
TEST(LifecycleDeathTest, OthersLookForStacksWhileAFiberExits) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        static std::atomic<int> ended{0};
        atexit([] {
          const int before = ended.load();
          while (ended.load() < before + 1'000) std::this_thread::yield();
        });
        sched::Run({.workers = 2, .max_stack_memory = 8 * 4096}, [] {
          for (int i = 0; i < 4; ++i) {
            fiber::Go([] {
              for (;;) {
                fiber::WaitGroup group;
                group.Add(10);
                for (int child = 0; child < 10; ++child) {
                  fiber::Go([&group] {
                    fiber::Yield();
                    ended.fetch_add(1);
                    group.Done();
                  });
                }
                (void)group.Wait();
              }
            });
          }
          while (ended.load() < 100) fiber::Yield();
          exit(7);
        });
      },
      testing::ExitedWithCode(7), "");
}

// Without it: a fiber's child that exits frees the stacks that it kept, and whoever finds none after that looks there.
// Sanitizers' allocators do not fork well.
TEST(LifecycleDeathTest, OthersLookForStacksAfterAFibersChildHasExited) {
  if (tests::kIsSlow) return;
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        sched::Run({.workers = 1}, [] {
          if (const pid_t child = fork(); child != 0) {
            int status = 0;
            waitpid(child, &status, 0);
            _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
          }
          mallopt(M_PERTURB, 0x5a);  // what is freed is not as it was
          atexit([] {
            sched::Run({.workers = 1, .max_stack_memory = 8 * 4096}, [] {
              fiber::WaitGroup group;
              for (int i = 0; i < 20; ++i) {
                group.Add();
                fiber::Go([&group] {
                  for (int turn = 0; turn < 10; ++turn) fiber::Yield();
                  group.Done();
                });
              }
              (void)group.Wait();
            });
          });
          exit(7);
        });
      },
      testing::ExitedWithCode(7), "");
}

// Without it: the end of a static runtime would wait for the fiber that is ending the process.
TEST(LifecycleDeathTest, AStaticRuntimeThatEndsInAFiberOfItsOwnIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        static sched::Runtime runtime({.workers = 1, .max_threads = 1});
        runtime.Spawn([] { exit(0); }).Join();
      },
      "a runtime is shut down by one of its own fibers");
}

}  // namespace
