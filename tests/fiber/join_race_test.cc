// SPDX-License-Identifier: Apache-2.0
// Handles against the ends of their fibers, on several workers: what one thread cannot interleave.
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/record.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "sched/runtime.h"

namespace fiber {
namespace {

#if defined(WEFT_TSAN)
constexpr int kRounds = 2'000;
#else
constexpr int kRounds = 20'000;
#endif

class JoinRaceTest : public testing::TestWithParam<int> {
 protected:
  ~JoinRaceTest() override {
    EXPECT_EQ(internal::CountRecordsInUse(), records_before_) << "leaked fibers";
  }
  sched::RuntimeOptions Options() const { return {.workers = GetParam()}; }

 private:
  const size_t records_before_ = internal::CountRecordsInUse();
};
INSTANTIATE_TEST_SUITE_P(Workers, JoinRaceTest, testing::Values(1, 2, 4));

// So that the two sides meet at ever other points.
void Delay(int round) {
  for (int i = 0; i < round % 97 * 4; ++i) internal::CpuRelax();
}
// In steps of about a nanosecond.
void FineDelay(int steps) {
  for (int i = 0; i < steps; ++i) asm volatile("" ::: "memory");
}

// A value that counts its end, and parks first.
struct Parks {
  std::atomic<int>* ended;
  explicit Parks(std::atomic<int>* ended) : ended(ended) {}
  Parks(Parks&& other) noexcept : ended(std::exchange(other.ended, nullptr)) {}
  Parks& operator=(Parks&&) = delete;
  ~Parks() {
    if (ended == nullptr) return;
    (void)Sleep(absl::Nanoseconds(1));
    ended->fetch_add(1, std::memory_order_relaxed);
  }
};

// The fiber ends                       the handle
// is it detached? discards             Detach
// gives its block up
// publishes Done, or discards          discards, if Done was published
TEST_P(JoinRaceTest, DetachRacingTheEndDiscardsTheOutcomeOnce) {
  std::atomic<int> ended{0};
  sched::Runtime runtime(Options());
  for (int i = 0; i < kRounds; ++i) {
    std::atomic<bool> is_ending{false};
    auto child = runtime.Spawn([&ended, &is_ending, i] {
      is_ending.store(true, std::memory_order_release);
      FineDelay(i % 401);
      return Parks(&ended);
    });
    // This thread is another than the worker's, so that it comes while the fiber ends.
    internal::Backoff backoff;
    while (!is_ending.load(std::memory_order_acquire)) backoff.Pause();
    FineDelay(i % 13 * 8);
    child.Detach();
  }
  internal::Backoff backoff;
  while (ended.load(std::memory_order_relaxed) < kRounds) backoff.Pause();
}

TEST_P(JoinRaceTest, JoinRacingTheEndGetsTheValue) {
  sched::Run(Options(), [] {
    for (int i = 0; i < kRounds; ++i) {
      auto child = Spawn([i] {
        Delay(i * 7);
        return i;
      });
      if (i % 2 == 0) Yield();
      Delay(i);
      ASSERT_EQ(child.Join(), i);
    }
  });
}

TEST_P(JoinRaceTest, ADropRacingTheEndJoins) {
  sched::Run(Options(), [] {
    for (int i = 0; i < kRounds; ++i) {
      bool ended = false;  // not atomic: joined
      {
        auto child = Spawn([&ended, i] {
          Delay(i * 7);
          if (i % 3 == 0) (void)Sleep(Deadline::Never());
          ended = true;
        });
        if (i % 2 == 0) Yield();
        Delay(i);
      }
      ASSERT_TRUE(ended);
    }
  });
}

TEST_P(JoinRaceTest, ATimeoutRacingTheEndLosesNothing) {
  std::atomic<int> late{0};
  sched::Run(Options(), [&late] {
    std::vector<JoinHandle<void>> pairs;
    for (int pair = 0; pair < 8; ++pair) {
      pairs.push_back(Spawn([&late] {
        for (int i = 0; i < kRounds / 50; ++i) {
          const Deadline at = absl::Microseconds(20 + i % 40);
          auto child = Spawn([at, i] {
            (void)Sleep(at);
            return i;
          });
          const absl::Status status = child.Wait(at);
          ASSERT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
          late.fetch_add(!status.ok(), std::memory_order_relaxed);
          ASSERT_EQ(child.Join(), i);
        }
      }));
    }
    for (auto& pair : pairs) pair.Join();
  });
  RecordProperty("timeouts", late.load(std::memory_order_relaxed));
}

// Three at once: the end, the deadline of the waiter, and the cancellation of the waiter.
TEST_P(JoinRaceTest, ACancelRacingATimeoutAndTheEndLosesNothing) {
  sched::Run(Options(), [] {
    for (int i = 0; i < kRounds / 20; ++i) {
      const Deadline at = absl::Microseconds(30);
      auto child = Spawn([at] { (void)Sleep(at); });
      auto waiter = Spawn([&child, at] { return child.Wait(at); });
      (void)Sleep(at);
      Delay(i);
      waiter.Cancel();
      const absl::Status status = waiter.Join();
      ASSERT_TRUE(status.ok() || absl::IsDeadlineExceeded(status) || absl::IsCancelled(status));
      child.Join();
    }
  });
}

TEST_P(JoinRaceTest, AnExceptionArrivesAtTheJoiner) {
  sched::Run(Options(), [] {
    for (int i = 0; i < kRounds / 20; ++i) {
      auto child = Spawn([i] {
        if (i % 2 == 0) Yield();
        throw std::runtime_error(std::to_string(i));
      });
      Delay(i);
      try {
        child.Join();
        FAIL() << "no exception";
      } catch (const std::runtime_error& error) {
        ASSERT_EQ(error.what(), std::to_string(i));
      }
    }
  });
}

// A plain thread joins through a futex.
TEST_P(JoinRaceTest, APlainThreadJoins) {
  sched::Runtime runtime(Options());
  for (int i = 0; i < kRounds / 20; ++i) {
    auto child = runtime.Spawn([i] {
      Delay(i * 7);
      return i;
    });
    auto sleeper = runtime.Spawn([] { return Sleep(Deadline::Never()); });
    const absl::Status status = child.Wait(absl::Microseconds(i % 50));
    ASSERT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    ASSERT_EQ(child.Join(), i);
    sleeper.Cancel(absl::CancelledError("enough"));
    ASSERT_EQ(sleeper.Join(), absl::CancelledError("enough"));
  }
}

}  // namespace
}  // namespace fiber
