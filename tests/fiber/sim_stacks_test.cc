// SPDX-License-Identifier: Apache-2.0
// Simulations that run out of stacks. A process of its own: the limit is the process's.
#include <algorithm>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fiber::sim {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kStacks = 16;
constexpr int kFibers = 100;

class SimStacksTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    fiber::internal::StackDepot::Get().SetOptions({.max_stack_memory = kStacks * 4096});
  }
};

TEST_F(SimStacksTest, FibersThatFindNoStackStartWhenOneIsFree) {
  int most_at_once = 0;
  const Result result = Simulate({.schedules = 50}, [&most_at_once] {
    const absl::Duration began = Now();
    int running = 0, ended = 0;
    for (int i = 0; i < kFibers; ++i) {
      Go([&] {
        most_at_once = std::max(most_at_once, ++running);
        EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
        --running;
        ++ended;
      });
    }
    while (ended < kFibers) EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
    EXPECT_GE(Now() - began, absl::Seconds(kFibers / kStacks));
  });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(most_at_once, kStacks - 1);  // and the body
}

TEST_F(SimStacksTest, AYieldMayBeTheOneThatFindsNoStack) {
  const Result result = Simulate({.schedules = 50}, [] {
    int ended = 0;
    for (int i = 0; i < kFibers; ++i) {
      Go([&ended] {
        for (int step = 0; step < 3; ++step) Yield();
        ++ended;
      });
      Yield();
    }
    while (ended < kFibers) Yield();
  });
  EXPECT_TRUE(result.ok) << result.message;
}

TEST_F(SimStacksTest, ADeadlockForWantOfStacksIsReportedAsThat) {
  int cancelled = 0;
  const Result result = Simulate({.schedules = 1}, [&cancelled] {
    for (int i = 0; i < kFibers; ++i) {
      Go([&cancelled] { cancelled += absl::IsCancelled(Sleep(Deadline::Never())); });
    }
  });
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.message, HasSubstr("100 fibers are left"));
  EXPECT_THAT(result.message, HasSubstr("not started: no stack is free"));
  EXPECT_THAT(result.message, Not(HasSubstr("never be freed")));
  EXPECT_EQ(cancelled, kFibers);
}

}  // namespace
}  // namespace fiber::sim
