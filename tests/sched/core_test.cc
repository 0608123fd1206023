// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/core.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/internal/install.h"
#include "sched/run.h"

namespace sched::internal {
namespace {

using fiber::internal::DeadlineTimer;
using fiber::internal::WaitBlock;

// A futex source that counts its interrupts, and keeps the latest deadline until which anybody has slept.
class CountingSource final : public EventSource {
 public:
  void Poll(int64_t deadline_ns) override {
    const bool is_sleep = deadline_ns != kNeverNs && deadline_ns > fiber::internal::MonotonicNs();
    if (is_sleep && deadline_ns > latest_ns.load(std::memory_order_relaxed)) {
      latest_ns.store(deadline_ns, std::memory_order_relaxed);
    }
    source_.Poll(deadline_ns);
  }
  void Interrupt() override {
    interrupts.fetch_add(1, std::memory_order_seq_cst);
    source_.Interrupt();
  }
  static inline std::atomic<int> interrupts{0};
  static inline std::atomic<int64_t> latest_ns{0};
  static void InstallHere() {
    interrupts.store(0, std::memory_order_relaxed);
    latest_ns.store(0, std::memory_order_relaxed);
    ASSERT_NE(InstalledEventSource(fiber::internal::ThisThread().scheduler,
                                   []() -> std::unique_ptr<EventSource> {
                                     return std::make_unique<CountingSource>();
                                   }),
              nullptr);
  }

 private:
  FutexSource source_;
};

TEST(CoreTest, AFreshEventSourceIsInterruptedForWhoeverWasMeantByAnInterruptOfTheOldOne) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    // The only worker runs this very fiber, and nobody else touches the runtime: nobody is woken for another reason.
    CountingSource::InstallHere();
    EXPECT_EQ(CountingSource::interrupts.load(std::memory_order_seq_cst), 1);
  });
}

// More threads may sleep than there are workers (Crew::AddSeats). One that stayed on the old source would be woken by nobody,
// and the runtime would never end.
TEST(CoreTest, AFreshEventSourceIsForAllWhoSleepBeyondTheWorkersToo) {
  sched::Run({.workers = 1}, [] {
    Core& core = static_cast<Core&>(*fiber::internal::ThisThread().scheduler);
    core.crew().AddSeats(3);
    core.crew().FillSeats();
    while (core.idle().idle() < 3) std::this_thread::yield();
    CountingSource::InstallHere();
    core.crew().AddSeats(-3);
    for (int i = 0; i < 3; ++i) core.InterruptSleeper();
  });
}

TEST(CoreTest, ATimeoutArmedWhileAnOldEntryIsLookedAtIsNotTakenForFiled) {
  std::promise<void> ended;
  std::thread runtime([&] {
    sched::Run({.workers = 1, .max_threads = 1}, [&] {
      WaitBlock& block = *fiber::internal::ThisThread().current->block.load(std::memory_order_acquire);
      // A scheduler that looks at an old entry has read the wish, "never", and is yet to say so.
      block.timer.filed_ns.store(DeadlineTimer::kBusyNs, std::memory_order_seq_cst);
      std::thread scheduler([&block] {
        while (block.timer.deadline_ns.load(std::memory_order_seq_cst) == kNeverNs) {
          std::this_thread::yield();
        }
        block.timer.filed_ns.store(kNeverNs, std::memory_order_seq_cst);
      });
      EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(10)).ok());
      scheduler.join();
    });
    ended.set_value();
  });
  if (ended.get_future().wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
    fputs("the sleeper never woke: its timeout is filed nowhere\n", stderr);
    std::quick_exit(1);
  }
  runtime.join();
}

TEST(CoreTest, AnIdleWorkerSleepsUntilTheDeadlineAndNoLongerThanASixtyFourth) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    CountingSource::InstallHere();
    for (const absl::Duration asked : {absl::Microseconds(100), absl::Milliseconds(1), absl::Milliseconds(20)}) {
      int64_t deadline_ns;
      int64_t polled_ns;
      do {  // until the worker has slept, however busy the machine is
        const fiber::Deadline deadline = asked;
        deadline_ns = deadline.nanos();
        EXPECT_TRUE(fiber::Sleep(deadline).ok());
        polled_ns = CountingSource::latest_ns.load(std::memory_order_relaxed);
        EXPECT_LE(polled_ns, deadline_ns + absl::ToInt64Nanoseconds(asked) / 64 + 1024);
      } while (polled_ns < deadline_ns);
    }
  });
}

TEST(CoreTest, ALoneSleeperWakesNobodyElse) {
  sched::Run({.workers = 4}, [] {
    CountingSource::InstallHere();
    const absl::Duration start = fiber::Now();
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(fiber::Sleep(absl::Microseconds(300)).ok());
    // Some, to move sleepers to the new source; and on a busy machine the monitor takes a late sleeper for a forgotten one.
    EXPECT_LE(CountingSource::interrupts.load(), 10 + (fiber::Now() - start) / absl::Milliseconds(20));
  });
}

// Only the keeper sleeps by the clock. Each time it is busy with what it woke, the next one must take over:
//
//   worker 1: keeps 10 ms            worker 2: sleeps without end     worker 3: sleeps without end
//   wakes, tells one, runs a fiber
//     that does not let go           keeps 12 ms
//                                    wakes, tells one, runs a fiber
//                                      that does not let go           keeps 14 ms
TEST(CoreTest, TimersAreOnTimeWhileTheirKeepersRunFibers) {
  for (int workers : {2, 3, 8}) {
    sched::Run({.workers = workers}, [workers] {
      std::atomic<bool> is_last_awake{false};
      std::atomic<int> given_up{0};
      std::vector<fiber::JoinHandle<void>> hogs;
      const absl::Duration start = fiber::Now();
      const auto deadline = [start](int i) {
        return fiber::Deadline::AtNanos(absl::ToInt64Nanoseconds(start + absl::Milliseconds(10 + 2 * i)));
      };
      for (int i = 0; i < workers - 1; ++i) {
        hogs.push_back(fiber::Spawn([&, i] {
          EXPECT_TRUE(fiber::Sleep(deadline(i)).ok());
          while (!is_last_awake.load(std::memory_order_relaxed)) {
            std::this_thread::yield();  // the CPU, not the worker
            if (fiber::Now() - start < absl::Seconds(30)) continue;
            given_up.fetch_add(1);
            return;
          }
        }));
      }
      auto last = fiber::Spawn([&] {
        EXPECT_TRUE(fiber::Sleep(deadline(workers - 1)).ok());
        is_last_awake.store(true, std::memory_order_relaxed);
      });
      last.Join();
      for (auto& hog : hogs) hog.Join();
      EXPECT_EQ(given_up.load(), 0) << workers << " workers";
    });
  }
}

}  // namespace
}  // namespace sched::internal
