// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_CONTRACT_MOVING_H_
#define WEFT_TESTS_CONTRACT_MOVING_H_

#include <string>

namespace contract {

// As many fibers run a case at once, so that each comes to threads that others have just left.
inline constexpr int kFibers = 3;

// Parks the calling fiber, and comes back on another thread. A fiber that runs a case may do so, and at the same time one
// child of it: each needs a worker, and one more is needed by all.
void Move();

void Check(bool holds, const char* what, const char* file, int line);
void Note(std::string text);

}  // namespace contract

// Says of the case that runs what does not hold.
#define HOLDS(condition) ::contract::Check((condition), #condition, __FILE__, __LINE__)

#endif  // WEFT_TESTS_CONTRACT_MOVING_H_
