// SPDX-License-Identifier: Apache-2.0
// FIBER_TEST: what runs, on how many workers, and what it takes for a failure.
#include "sched/gtest.h"

#include <stdlib.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gmock/gmock.h"
#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"
#include "tests/fiber/commands.h"

namespace sched {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Without: the body is no fiber, or not on a runtime that others can be spawned on.
FIBER_TEST(FiberTestTest, TheBodyIsAFiberOfARuntime) {
  EXPECT_NE(fiber::CurrentId(), 0u);
  EXPECT_EQ(fiber::CurrentName(), "test body");
  EXPECT_EQ(fiber::Spawn([] { return 7; }).Join(), 7);
}

// Without: a fiber that was told to end as the body's last act makes a right test fail now and
// then.
FIBER_TEST_ON(FiberTestTest, FibersThatAreAboutToEndAreNotLeft, 1, 2, 8) {
  fiber::WaitGroup started;
  static fiber::Event stop;  // outlives the body
  for (int i = 0; i < 50; ++i) {
    started.Add();
    fiber::Go([&started] {
      started.Done();
      EXPECT_TRUE(stop.Wait().ok());
      fiber::Yield();
    });
  }
  EXPECT_TRUE(started.Wait().ok());
  stop.Set();
}

// The rest runs the tests below, which fail, in a process of their own.
tests::Output RunDisabled(const std::string& name,
                          const std::string& environment = "WEFT_WORKERS=") {
  return tests::RunCommand(
      absl::StrCat(environment, " ", tests::ThisProgram(),
                   " --gtest_also_run_disabled_tests --gtest_filter=FailingTest.DISABLED_", name));
}

FIBER_TEST(FailingTest, DISABLED_LeavesFibers) {
  static fiber::Event never;
  fiber::Go([] { EXPECT_TRUE(absl::IsCancelled(never.Wait())); });
  fiber::Go({.name = "sleeper"}, [] { fiber::Sleep(absl::Hours(1)).IgnoreError(); });
}

// Without: fibers that are left are cancelled in silence, or cannot be found.
TEST(FiberTestTest, FibersThatAreLeftFailTheTestAndAreNamed) {
  const tests::Output output = RunDisabled("LeavesFibers");
  EXPECT_EQ(output.exit_status, 1) << output.text;
  EXPECT_THAT(output.text,
              HasSubstr("the body has returned, and fibers outlive it: 2 fibers are left:"));
  EXPECT_THAT(output.text,
              ::testing::ContainsRegex("\\(spawned at .*gtest_test.cc:[0-9]+\\) waits for event"));
  EXPECT_THAT(output.text,
              ::testing::ContainsRegex(
                  "'sleeper' \\(spawned at .*gtest_test.cc:[0-9]+\\) waits for sleep"));
  EXPECT_THAT(output.text, ::testing::ContainsRegex("gtest_test.cc:[0-9]+: Failure"));
}

FIBER_TEST_ON(FailingTest, DISABLED_ExpectsInAChild, 1, 2, 8) {
  fiber::Spawn([] { EXPECT_EQ(1, 2) << "in a child"; }).Join();
}

// Without: what other fibers expect does not count, or one cannot tell with how many workers.
TEST(FiberTestTest, ExpectationsInOtherFibersCountAndTheWorkersAreTold) {
  tests::Output output = RunDisabled("ExpectsInAChild");
  EXPECT_EQ(output.exit_status, 1) << output.text;
  EXPECT_THAT(output.text, HasSubstr("in a child"));
  EXPECT_THAT(output.text, HasSubstr("it failed with 1 worker; WEFT_WORKERS=1 in the environment"));
  EXPECT_THAT(output.text, Not(HasSubstr("with 2 workers")));
}

// Says with how many workers it runs, which a runtime tells by its threads.
FIBER_TEST_ON(FailingTest, DISABLED_CountsWorkers, 1, 2, 8) {
  printf("workers: %s", tests::RunCommand("ls /proc/$PPID/task | wc -l").text.c_str());
}

// Without: some of the numbers are not run, or WEFT_WORKERS is not respected.
TEST(FiberTestTest, EachNumberOfWorkersIsRunOrTheOneOfTheEnvironment) {
  const auto counts = [](const std::string& text) {
    std::vector<int> found;
    const std::string marker = "workers: ";
    for (size_t at = 0; (at = text.find(marker, at)) != std::string::npos; at += marker.size()) {
      found.push_back(atoi(text.c_str() + at + marker.size()));
    }
    return found;
  };
  const std::vector<int> all = counts(RunDisabled("CountsWorkers").text);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[1] - all[0], 1);
  EXPECT_EQ(all[2] - all[0], 7);
  const std::vector<int> three = counts(RunDisabled("CountsWorkers", "WEFT_WORKERS=3").text);
  ASSERT_EQ(three.size(), 1u);
  EXPECT_EQ(three[0] - all[0], 2);
}

// Without: an exception ends the process or is lost, or what is left behind it is not told.
TEST(FiberTestTest, AnExceptionOfTheBodyIsRethrownAndWhatItLeftIsNamed) {
  static fiber::Event never;
  ::testing::TestPartResultArray failures;
  {
    ::testing::ScopedFakeTestPartResultReporter reporter(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &failures);
    bool is_thrown = false;
    try {
      RunInTest({.grace = absl::Milliseconds(20)}, [] {
        fiber::Go([] { never.Wait().IgnoreError(); });
        throw std::runtime_error("out of cheese");
      });
    } catch (const std::runtime_error& error) {
      is_thrown = std::string(error.what()) == "out of cheese";
    }
    if (!is_thrown) abort();  // expectations are intercepted
  }
  ASSERT_EQ(failures.size(), 1);
  EXPECT_THAT(failures.GetTestPartResult(0).message(), HasSubstr("1 fiber is left:"));
}

// A fixture, and options.
class RunInTestTest : public ::testing::Test {
 protected:
  std::atomic<int> sum_ = 0;
};

// Without: tests with fixtures or options have no way in.
TEST_F(RunInTestTest, FixturesAndOptionsGoThere) {
  RunInTest({.runtime = {.workers = 2, .default_stack_bytes = 64 << 10}}, [this] {
    fiber::WaitGroup done;
    for (int i = 1; i <= 10; ++i) {
      done.Add();
      fiber::Go([this, &done, i] {
        sum_ += i;
        done.Done();
      });
    }
    ASSERT_TRUE(done.Wait().ok());
  });
  EXPECT_EQ(sum_, 55);
}

void NestTests() {
  RunInTest({}, [] { RunInTest({}, [] {}); });
}

TEST(FiberDeathTest, AFiberTestInAFiberIsRefusedByName) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(NestTests(), "a fiber test is run on a worker, at .*gtest_test.cc");
}

FIBER_TEST_ON(FailingTest, DISABLED_OnNoWorkersAtAll) { ADD_FAILURE() << "it has run"; }

// Without: a test that runs nothing passes.
TEST(FiberTestTest, ATestThatNamesNoNumberOfWorkersFails) {
  const tests::Output output = RunDisabled("OnNoWorkersAtAll");
  EXPECT_EQ(output.exit_status, 1) << output.text;
  EXPECT_THAT(output.text, HasSubstr("it names no number of workers"));
  EXPECT_THAT(output.text, Not(HasSubstr("it has run")));
}

}  // namespace
}  // namespace sched
