// SPDX-License-Identifier: Apache-2.0
//
// Runs the cases that are linked, whichever way they were compiled.
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/contract/cases.h"

namespace contract {
namespace {

class ContractTest : public testing::TestWithParam<Case> {};

TEST_P(ContractTest, Holds) {
  const Outcome outcome = contract::Run(GetParam());
  EXPECT_EQ(outcome.failures, "");
  std::fputs(outcome.notes.c_str(), stdout);
}

std::vector<Case> Vector(std::span<const Case> cases) { return {cases.begin(), cases.end()}; }
constexpr auto kName = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(Exceptions, ContractTest, testing::ValuesIn(Vector(ExceptionCases())), kName);
INSTANTIATE_TEST_SUITE_P(Threads, ContractTest, testing::ValuesIn(Vector(ThreadCases())), kName);
INSTANTIATE_TEST_SUITE_P(Backtraces, ContractTest, testing::ValuesIn(Vector(BacktraceCases())), kName);

}  // namespace
}  // namespace contract
