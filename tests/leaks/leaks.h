// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_LEAKS_LEAKS_H_
#define WEFT_TESTS_LEAKS_LEAKS_H_

#include <cstddef>

namespace tests {

// For a test of what abandons fibers: up to so many, with a stack each, are no leak of the test that runs.
void AllowAbandonedFibers(size_t count);

}  // namespace tests

#endif  // WEFT_TESTS_LEAKS_LEAKS_H_
