// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_FOR_EACH_H_
#define WEFT_TOOLS_LOADGEN_FOR_EACH_H_

#include "absl/functional/function_ref.h"

namespace loadgen {

// Calls what(number) for each number from `first` up to `end`, by at most so many fibers at once.
// Parks the fiber.
void ForEach(int first, int end, int fibers, absl::FunctionRef<void(int)> what);

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_FOR_EACH_H_
