// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/pattern.h"

#include <random>

namespace loadgen {

Pattern::Pattern() : bytes_(kPeriod + kMaxPart) {
  std::mt19937 random(1);  // the same each run
  for (size_t i = 0; i < bytes_.size(); ++i) {
    bytes_[i] = i < kPeriod ? static_cast<char>(random()) : bytes_[i - kPeriod];
  }
}

}  // namespace loadgen
