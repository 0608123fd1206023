// SPDX-License-Identifier: Apache-2.0
//
// BlockingDetached() in processes that fork, or end.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/blocking_detached.h"
#include "fiber/event.h"
#include "fiber/internal/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/child.h"

namespace fiber {
namespace {

using ::testing::HasSubstr;
using internal::ThreadPool;

// From here on there is an idle thread, so that the next call is begun at once.
void WarmUp() { ASSERT_TRUE(BlockingDetached([] {}).ok()); }

TEST(BlockingDetachedForkTest, AForkedChildHasAPoolOfItsOwn) {
  Event released;
  Event begun;
  std::thread busy([&] {
    EXPECT_TRUE(BlockingDetached([&] {
                  begun.Set();
                  EXPECT_TRUE(released.Wait().ok());
                }).ok());
  });
  EXPECT_TRUE(begun.Wait().ok());
  tests::InChild([] {
    if (ThreadPool::Get().threads() != 0) return 1;
    if (BlockingDetached([] { return 42; }).value() != 42) return 2;
    return sched::Run({.workers = 1}, [] {
      return BlockingDetached([] { return 43; }).value() == 43 ? tests::kFine : 3;
    });
  });
  released.Set();
  busy.join();
}

TEST(BlockingDetachedForkTest, AChildThatACallMakesEndsWhenItReturnsFromIt) {
  const int status = BlockingDetached([] {
                       const pid_t child = fork();
                       if (child == 0) {
                         alarm(20);  // whose signal it no longer blocks
                         return 0;
                       }
                       int end = -1;
                       EXPECT_EQ(waitpid(child, &end, 0), child);
                       return end;
                     }).value();
  EXPECT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// Whose mask the thread has that made the pool's.
TEST(BlockingDetachedForkTest, SignalsReachAChildThatACallOfAFiberMakes) {
  while (ThreadPool::Get().threads() > 0) ThreadPool::Get().EndIdle();
  const int status = sched::Run({.workers = 1}, [] {
    return BlockingDetached([] {
             const pid_t child = fork();
             if (child == 0) {
               kill(getpid(), SIGTERM);
               _exit(0);
             }
             int end = -1;
             EXPECT_EQ(waitpid(child, &end, 0), child);
             return end;
           }).value();
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
}

TEST(BlockingDetachedForkTest, ExitDoesNotWaitForCallsUnderWay) {
  tests::InChild([] {
    WarmUp();
    static Event& never = *new Event;
    EXPECT_TRUE(absl::IsDeadlineExceeded(
        BlockingDetached([] { never.Wait().IgnoreError(); }, absl::Milliseconds(1))));
    std::exit(tests::kFine);
    return 1;
  });
}

TEST(BlockingDetachedForkTest, AnExceptionNobodyWaitsForLeavesALineInTheLog) {
  std::string said;
  tests::InChild(
      [] {
        sched::Run({.workers = 1}, [] {
          WarmUp();
          Event released;
          EXPECT_TRUE(absl::IsDeadlineExceeded(BlockingDetached(
              [&]() -> void {
                released.Wait().IgnoreError();
                throw std::runtime_error("too late");
              },
              absl::Milliseconds(1))));
          released.Set();
          WarmUp();
          while (ThreadPool::Get().threads() > 0) ThreadPool::Get().EndIdle();
        });
        return tests::kFine;
      },
      &said);
  EXPECT_THAT(said, HasSubstr("that nobody waits for any more ended with an exception: too late"));
}

}  // namespace
}  // namespace fiber
