// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_MODEL_CASE_LIST_H_
#define WEFT_TESTS_MODEL_CASE_LIST_H_

#include <span>

#include "tests/model/explorer.h"

namespace model {

struct NamedCase {
  const char* name;
  Case (*make)();
  int most_preemptions = kAllOrders;
};

// Of the file of cases that is linked.
std::span<const NamedCase> Cases();

}  // namespace model

#endif  // WEFT_TESTS_MODEL_CASE_LIST_H_
