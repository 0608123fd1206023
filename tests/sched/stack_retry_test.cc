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

TEST(StackRetryTest, AFiberThatFoundNoStackAtAllStartsWhenMemoryComesFreeElsewhere) {
  sched::Runtime runtime({.workers = 2});
  runtime.Spawn([] {}).Join();  // the workers have what they need
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  const rlimit tight{AddressSpaceInUse() + (4u << 20), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  std::atomic<bool> has_run{false};
  runtime.Go({.stack_bytes = 8 << 20}, [&] { has_run = true; });
  while (StackDepot::Get().Stats().waiting == 0) std::this_thread::yield();
  EXPECT_FALSE(has_run);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);  // nobody is told, and nobody returns such a stack
  while (!has_run) std::this_thread::yield();
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
}

}  // namespace
