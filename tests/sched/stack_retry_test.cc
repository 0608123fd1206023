// SPDX-License-Identifier: Apache-2.0
//
// A fiber that finds no stack when nobody has one to return. A process of its own: so is the limit, which the sanitizers'
// own memory would not fit into.
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace {

using fiber::internal::StackDepot;

rlim_t AddressSpaceInUse() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  statm >> pages;
  return pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE));
}

class StackRetryTest : public testing::TestWithParam<int> {};

// With the workers asleep, and with all of them busy.
TEST_P(StackRetryTest, AFiberThatFoundNoStackAtAllStartsWhenMemoryComesFreeElsewhere) {
  sched::Runtime runtime({.workers = 2});
  runtime.Spawn([] {}).Join();  // the workers have what they need
  std::atomic<bool> may_end{false};
  for (int i = 0; i < GetParam(); ++i) {
    runtime.Go([&] {
      while (!may_end) fiber::Yield();
    });
  }
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  const rlimit tight{AddressSpaceInUse() + (4u << 20), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  std::atomic<bool> has_run{false};
  runtime.Go({.stack_bytes = size_t{GetParam() == 0 ? 1u : 8u} << 20}, [&] { has_run = true; });
  while (StackDepot::Get().Stats().waiting == 0) std::this_thread::yield();
  EXPECT_FALSE(has_run);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);  // nobody is told, and nobody returns such a stack
  while (!has_run) std::this_thread::yield();
  may_end = true;
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
}

INSTANTIATE_TEST_SUITE_P(Yielders, StackRetryTest, testing::Values(0, 4));

}  // namespace
