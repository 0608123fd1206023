// SPDX-License-Identifier: Apache-2.0
#include "fiber/once.h"

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "sched/run.h"
#include "tests/fiber/crew.h"
#include "tests/scale.h"

namespace fiber {
namespace {

FIBER_SIM_TEST(OnceTest, ItIsDoneOnceAndTheOthersWaitUntilItIsDone) {
  Once once;
  int calls = 0;
  bool is_over = false;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&] {
      once.Do([&] {
        ++calls;
        (void)Sleep(absl::Seconds(1));
        is_over = true;
      });
      EXPECT_TRUE(is_over);
      EXPECT_TRUE(once.is_done());
    }));
  }
  for (auto& each : fibers) each.Join();
  once.Do([&] { ++calls; });
  EXPECT_EQ(calls, 1);
}

// Two of four tries fail, whoever makes them; each failure is seen by the one whose call it was.
FIBER_SIM_TEST(OnceTest, AfterAnExceptionTheNextOneTries) {
  Once once;
  int calls = 0, failures = 0;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&] {
      try {
        once.Do([&] {
          const int call = ++calls;
          Yield();
          if (call <= 2) throw std::runtime_error("not yet");
        });
        EXPECT_EQ(calls, 3);
      } catch (const std::runtime_error&) {
        ++failures;
      }
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(failures, 2);
  EXPECT_TRUE(once.is_done());
}

TEST(OnceTest, AnExceptionLeavesItNotDone) {
  Once once;
  EXPECT_THROW(once.Do([] { throw 1; }), int);
  EXPECT_FALSE(once.is_done());
  bool is_called = false;
  once.Do([&] { is_called = true; });
  EXPECT_TRUE(is_called);
}

FIBER_SIM_TEST(OnceTest, AfterAnExceptionTheOneThatHasWaitedLongestTries) {
  Once once;
  std::vector<int> order;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&, i] {
      try {
        once.Do([&] {
          order.push_back(i);
          (void)Sleep(absl::Seconds(1));
          throw i;
        });
      } catch (int thrown) {
        EXPECT_EQ(thrown, i);
      }
    }));
    (void)Sleep(absl::Microseconds(1));  // until it waits
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_FALSE(once.is_done());
}

FIBER_SIM_TEST(OnceTest, WhoWaitsIsNotInterruptedByCancellation) {
  Once once;
  auto first = Spawn([&] { once.Do([] { (void)Sleep(absl::Seconds(1)); }); });
  (void)Sleep(absl::Microseconds(1));
  auto second = Spawn([&] {
    once.Do([] { ADD_FAILURE() << "a second call"; });
    EXPECT_TRUE(once.is_done());
  });
  (void)Sleep(absl::Microseconds(1));
  second.Cancel();
  second.Join();
}

FIBER_SIM_TEST(OnceTest, OneMayDoAnother) {
  Once outer, inner;
  int calls = 0;
  outer.Do([&] { inner.Do([&] { ++calls; }); });
  EXPECT_EQ(calls, 1);
}

FIBER_EXPLORE_TEST(OnceTest, OneOfTwoDoesItOnAnySchedule) {
  Once once;
  int calls = 0;
  const auto use = [&] {
    for (int i = 0; i < 2; ++i) {
      once.Do([&] {
        Yield();
        ++calls;
      });
      EXPECT_EQ(calls, 1);
    }
  };
  auto other = Spawn(use);
  use();
  other.Join();
}

FIBER_EXPLORE_TEST(OnceTest, ATurnThatThrowsIsHandedOnOnAnySchedule) {
  Once once;
  int calls = 0, failures = 0;
  const auto use = [&] {
    try {
      once.Do([&] {
        const int call = ++calls;
        Yield();
        if (call == 1) throw call;
      });
      EXPECT_EQ(calls, 2);
    } catch (int) {
      ++failures;
    }
  };
  auto one = Spawn(use);
  auto two = Spawn(use);
  use();
  one.Join();
  two.Join();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(failures, 1);
}

TEST(OnceTest, MayBeDestroyedUnderTheOneThatDidIt) {
  std::atomic<Once*> slot{nullptr};
  const int rounds = tests::Scaled(20'000);
  std::thread other([&] {
    for (int i = 0; i < rounds; ++i) {
      Once* once;
      while ((once = slot.exchange(nullptr, std::memory_order_acq_rel)) == nullptr) {
        std::this_thread::yield();
      }
      once->Do([] {});
    }
  });
  for (int i = 0; i < rounds; ++i) {
    auto once = std::make_unique<Once>();
    slot.store(once.get(), std::memory_order_release);
    while (slot.load(std::memory_order_acquire) != nullptr) std::this_thread::yield();
    while (!once->is_done()) std::this_thread::yield();
  }
  other.join();
}

FIBER_TEST_ON(OnceTest, EachIsDoneOnceUnderLoad, 1, 2, 8) {
  const int rounds = tests::Scaled(1000);
  std::vector<Once> onces(rounds);
  std::vector<int> values(rounds, 0);
  std::atomic<int> failures{0};
  RunTogether(6, 2, [&](int me) {
    for (int round = 0; round < rounds; ++round) {
      try {
        onces[round].Do([&] {
          if ((round + me) % 5 == 0) Yield();
          if ((round + me) % 7 == 0) throw 1;
          ++values[round];
        });
        EXPECT_EQ(values[round], 1);
      } catch (int) {
        failures.fetch_add(1);
      }
    }
  });
  for (int round = 0; round < rounds; ++round) EXPECT_EQ(values[round], 1);
}

FIBER_SIM_TEST(OnceValueTest, TheValueIsComputedOnceForAllWhoAsk) {
  int calls = 0;
  OnceValue value([&, owned = std::make_unique<int>(1)] {
    ++calls;
    Yield();
    return std::make_unique<int>(41 + *owned);
  });
  std::vector<JoinHandle<int*>> fibers;
  for (int i = 0; i < 3; ++i) fibers.push_back(Spawn([&] { return value().get(); }));
  int* const mine = value().get();
  EXPECT_EQ(*mine, 42);
  for (auto& each : fibers) EXPECT_EQ(each.Join(), mine);
  EXPECT_EQ(calls, 1);
}

FIBER_SIM_TEST(OnceValueTest, AnExceptionIsKeptForAllWhoAsk) {
  int calls = 0;
  OnceValue value([&]() -> std::string {
    ++calls;
    Yield();
    throw std::runtime_error("no such file");
  });
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] { EXPECT_THROW((void)value(), std::runtime_error); }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_THROW((void)value(), std::runtime_error);
  EXPECT_EQ(calls, 1);
}

TEST(OnceValueTest, MayBeOfNothing) {
  int calls = 0;
  OnceValue done([&] { ++calls; });
  done();
  done();
  EXPECT_EQ(calls, 1);
}

TEST(OnceValueTest, TheFunctionIsDestroyedWhenItHasReturned) {
  auto captured = std::make_shared<int>(7);
  OnceValue value([captured] { return *captured; });
  EXPECT_EQ(captured.use_count(), 2);
  EXPECT_EQ(value(), 7);
  EXPECT_EQ(captured.use_count(), 1);
}

FIBER_TEST_ON(OnceValueTest, WhatWasComputedIsSeenByAllWhoAsk, 1, 2, 8) {
  for (int round = 0; round < tests::Scaled(100); ++round) {
    std::vector<int> table;
    OnceValue sum([&] {
      for (int i = 0; i < 10; ++i) table.push_back(i);
      Yield();
      return std::string("45");
    });
    RunTogether(4, 1, [&](int) {
      EXPECT_EQ(sum(), "45");
      EXPECT_EQ(table.size(), 10u);
    });
  }
}

void Recurse() {
  sim::Simulate({.schedules = 1}, [] {
    Once once;
    once.Do([&] { once.Do([] {}); });
  });
}

TEST(OnceDeathTest, DoingItFromWithinEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Recurse(), "fiber::Once 0x[0-9a-f]+: Do\\(\\) by the function that it runs");
  Once once;
  EXPECT_DEATH(once.Do([&] { once.Do([] {}); }), "Do\\(\\) by the function that it runs");
  EXPECT_DEATH(sched::Run([&] { once.Do([&] { Blocking([&] { once.Do([] {}); }); }); }),
               "Do\\(\\) by the function that it runs");
}

TEST(OnceDeathTest, DestroyingItUnderAWaiterEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      sim::Simulate({.schedules = 1},
                    [] {
                      auto once = std::make_unique<Once>();
                      for (int i = 0; i < 3; ++i) {
                        Go([&once = *once] { once.Do([] { (void)Sleep(absl::Hours(1)); }); });
                      }
                      (void)Sleep(absl::Seconds(1));
                      once.reset();
                    }),
      "fiber::Once 0x[0-9a-f]+ was destroyed while 2 waited for it");
}

}  // namespace
}  // namespace fiber
