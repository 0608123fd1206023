// SPDX-License-Identifier: Apache-2.0
//
// What C++ promises to a function, promised to a fiber that moves between threads meanwhile.
//
// The cases are compiled together with the library under many flags (contract.bzl), so they know nothing of GoogleTest;
// contract_test.cc, which runs them, is compiled once.
#ifndef WEFT_TESTS_CONTRACT_CASES_H_
#define WEFT_TESTS_CONTRACT_CASES_H_

#include <span>
#include <string>

namespace contract {

struct Case {
  const char* name;
  void (*body)();             // run by some fibers at once
  void (*after)() = nullptr;  // once they have ended
};

std::span<const Case> ExceptionCases();
std::span<const Case> ThreadCases();
std::span<const Case> BacktraceCases();

// Runs it. What did not hold, one line each; else what is worth to be known.
struct Outcome {
  std::string failures;
  std::string notes;
};
Outcome Run(const Case& named);

}  // namespace contract

#endif  // WEFT_TESTS_CONTRACT_CASES_H_
