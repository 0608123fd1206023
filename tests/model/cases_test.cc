// SPDX-License-Identifier: Apache-2.0
//
// Explores each case of the file that is linked, and says how many orders that were.
#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include "gtest/gtest.h"
#include "tests/model/case_list.h"
#include "tests/model/explorer.h"

namespace model {
namespace {

class CasesTest : public testing::TestWithParam<NamedCase> {};

TEST_P(CasesTest, HoldsInEveryOrder) {
  const NamedCase& named = GetParam();
  const Options options = {.most_preemptions = named.most_preemptions};
  size_t threads = 0;
  const Result result = Explore(options, [&] {
    Case the_case = named.make();
    threads = the_case.threads.size();
    return the_case;
  });
  ASSERT_EQ(result.failure, "");
  EXPECT_TRUE(result.is_complete) << "not all orders were tried";
  EXPECT_GT(result.schedules, 1u) << "there is nothing to interleave";
  std::printf("%zu threads, %" PRIu64 " orders, %" PRIu64 " of them redundant", threads,
              result.schedules, result.redundant);
  if (named.most_preemptions != kAllOrders) {
    std::printf(": all with at most %d preemptions\n", named.most_preemptions);
    return;
  }
  std::printf(": all there are\n");
  // How many differ does not depend on which of the threads is tried first; it does if the case, or
  // the explorer, hides that two accesses meet, and then orders are lost.
  const Result reversed = Explore(options, [&named] {
    Case reversed = named.make();
    std::reverse(reversed.threads.begin(), reversed.threads.end());
    return reversed;
  });
  EXPECT_EQ(reversed.failure, "");
  EXPECT_EQ(reversed.schedules - reversed.redundant, result.schedules - result.redundant)
      << "something that threads share is not announced";
}

INSTANTIATE_TEST_SUITE_P(, CasesTest, testing::ValuesIn(Cases().begin(), Cases().end()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace model
