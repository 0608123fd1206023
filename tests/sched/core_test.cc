// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/core.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>

#include "absl/time/time.h"
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

// A futex source that counts its interrupts.
class CountingSource final : public EventSource {
 public:
  void Poll(int64_t deadline_ns) override { source_.Poll(deadline_ns); }
  void Interrupt() override {
    interrupts.fetch_add(1, std::memory_order_seq_cst);
    source_.Interrupt();
  }
  static inline std::atomic<int> interrupts{0};

 private:
  FutexSource source_;
};

TEST(CoreTest, AFreshEventSourceIsInterruptedForWhoeverWasMeantByAnInterruptOfTheOldOne) {
  sched::Run({.workers = 1}, [] {
    // The only worker runs this very fiber, and nobody else touches the runtime: nobody is woken for another reason.
    ASSERT_NE(InstalledEventSource(fiber::internal::ThisThread().scheduler,
                                   []() -> std::unique_ptr<EventSource> {
                                     return std::make_unique<CountingSource>();
                                   }),
              nullptr);
    EXPECT_EQ(CountingSource::interrupts.load(std::memory_order_seq_cst), 1);
  });
}

TEST(CoreTest, ATimeoutArmedWhileAnOldEntryIsLookedAtIsNotTakenForFiled) {
  std::promise<void> ended;
  std::thread runtime([&] {
    sched::Run({.workers = 1}, [&] {
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

}  // namespace
}  // namespace sched::internal
