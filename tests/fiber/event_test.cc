// SPDX-License-Identifier: Apache-2.0
#include "fiber/event.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "tests/fiber/crew.h"

namespace fiber {
namespace {

FIBER_SIM_TEST(EventTest, EverybodyWhoWaitsIsReleasedBySet) {
  Event event;
  int value = 0;
  std::vector<JoinHandle<void>> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.push_back(Spawn([&] {
      EXPECT_TRUE(event.Wait().ok());
      EXPECT_EQ(value, 7);
    }));
  }
  Yield();
  EXPECT_FALSE(event.is_set());
  value = 7;
  event.Set();
  EXPECT_TRUE(event.is_set());
  for (auto& each : waiters) each.Join();
}

FIBER_SIM_TEST(EventTest, OnceSetItStaysSetAndNobodyWaits) {
  Event event;
  event.Set();
  event.Set();
  const absl::Duration before = Now();
  EXPECT_TRUE(event.Wait().ok());
  EXPECT_TRUE(event.Wait(absl::Hours(1)).ok());
  EXPECT_TRUE(event.is_set());
  EXPECT_EQ(Now(), before);
}

FIBER_SIM_TEST(EventTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Event event;
  event.Set();
  EXPECT_TRUE(absl::IsDeadlineExceeded(event.Wait(absl::ZeroDuration())));
  auto child = Spawn([&] { return event.Wait(absl::ZeroDuration()); });
  child.Cancel();
  const absl::Status status = child.Join();
  EXPECT_TRUE(absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) << status;

  auto late = Spawn([&] {
    (void)Sleep(absl::Hours(1));  // until it is cancelled
    return event.Wait(absl::ZeroDuration());
  });
  late.Cancel();
  EXPECT_TRUE(absl::IsCancelled(late.Join()));
}

FIBER_SIM_TEST(EventTest, ADeadlineEndsAWaitOnTimeAndTheOthersGoOn) {
  Event event;
  auto patient = Spawn([&] { return event.Wait(); });
  const absl::Duration before = Now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(event.Wait(absl::Milliseconds(3))));
  EXPECT_EQ(Now() - before, absl::Milliseconds(3));
  EXPECT_FALSE(patient.is_done());
  event.Set();
  EXPECT_TRUE(patient.Join().ok());
}

TEST(EventTest, ADeadlineRacingSetEndsTheWaitExactlyOnce) {
  int schedules = 0, released = 0, expired = 0;
  sim::SimulateInTest({.schedules = 2000}, [&] {
    Event event;
    auto setter = Spawn([&] {
      (void)Sleep(absl::Milliseconds(1));
      event.Set();
    });
    auto other = Spawn([&] { return event.Wait(); });
    const absl::Status status = event.Wait(absl::Milliseconds(1));
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    EXPECT_TRUE(event.is_set() || !status.ok());
    ++schedules;
    ++(status.ok() ? released : expired);
    EXPECT_TRUE(event.Wait().ok());  // in the same wait block
    EXPECT_TRUE(other.Join().ok());
  });
  if (schedules > 1) {
    EXPECT_GT(released, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(EventTest, ACancellationRacingSetEndsTheWaitExactlyOnce) {
  int schedules = 0, released = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = 2000}, [&] {
    Event event;
    auto waiter = Spawn([&] { return event.Wait(); });
    auto setter = Spawn([&] { event.Set(); });
    Yield();
    waiter.Cancel();
    const absl::Status status = waiter.Join();
    EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
    ++schedules;
    ++(status.ok() ? released : cancelled);
  });
  if (schedules > 1) {
    EXPECT_GT(released, 0);
    EXPECT_GT(cancelled, 0);
  }
}

FIBER_SIM_TEST(EventTest, MayBeDestroyedAsSoonAsAWaitReturns) {
  auto event = std::make_unique<Event>();
  auto setter = Spawn([&event = *event] { event.Set(); });
  EXPECT_TRUE(event->Wait().ok());
  event.reset();
}

FIBER_SIM_TEST(EventTest, MayBeDestroyedAsSoonAsItIsSeenSet) {
  auto event = std::make_unique<Event>();
  auto setter = Spawn([&event = *event] { event.Set(); });
  while (!event->is_set()) Yield();
  event.reset();
}

// Set() as late as possible against a waiter that has parked, one that is about to and one that
// only looks.
TEST(EventTest, MayBeDestroyedUnderASetOnAnotherThread) {
  std::atomic<Event*> shared{nullptr};
  std::atomic<bool> is_over{false};
  std::thread setter([&] {
    while (!is_over.load(std::memory_order_acquire)) {
      Event* event = shared.exchange(nullptr, std::memory_order_acq_rel);
      if (event != nullptr) {
        event->Set();
      } else {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 20'000; ++i) {
    auto event = std::make_unique<Event>();
    shared.store(event.get(), std::memory_order_release);
    switch (i % 3) {
      case 0:
        while (!event->is_set()) std::this_thread::yield();
        break;
      case 1:
        EXPECT_TRUE(event->Wait().ok());
        break;
      case 2:
        while (!event->Wait(absl::Microseconds(10 + i % 50)).ok()) {
        }
        break;
    }
  }
  is_over.store(true, std::memory_order_release);
  setter.join();
}

TEST(EventTest, FibersAndThreadsWaitForOneAnother) {
  for (const Crew& crew : kCrews) {
    SCOPED_TRACE(testing::Message() << crew.workers << " workers");
    constexpr int kRounds = 200;
    const int size = crew.fibers + crew.threads;
    // Everybody sets an event of his own in each round, and waits for his neighbour's.
    std::vector<std::vector<Event>> events;
    for (int i = 0; i < size; ++i) events.emplace_back(kRounds);
    std::vector<int> values(static_cast<size_t>(size) * kRounds);
    RunCrew(crew, [&](int me) {
      const int neighbour = (me + 1) % size;
      for (int round = 0; round < kRounds; ++round) {
        values[static_cast<size_t>(me * kRounds + round)] = round + 1;
        events[static_cast<size_t>(me)][static_cast<size_t>(round)].Set();
        Event& next = events[static_cast<size_t>(neighbour)][static_cast<size_t>(round)];
        while (round % 5 == 0 && !next.Wait(absl::Microseconds(20)).ok()) {
        }
        EXPECT_TRUE(next.Wait().ok());
        EXPECT_EQ(values[static_cast<size_t>(neighbour * kRounds + round)], round + 1);
      }
    });
  }
}

TEST(EventDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               auto event = std::make_unique<Event>();
                               for (int i = 0; i < 2; ++i) {
                                 Go([&event = *event] { (void)event.Wait(); });
                               }
                               (void)Sleep(absl::Seconds(1));
                               event.reset();
                             }),
               "fiber::Event 0x[0-9a-f]+ was destroyed while 2 waited for it");
}

}  // namespace
}  // namespace fiber
