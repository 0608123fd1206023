// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SOAK_RANDOM_H_
#define WEFT_TESTS_SOAK_RANDOM_H_

#include <cstdint>

#include "absl/time/time.h"

namespace soak {

// Random makes the choices of one fiber or thread: the same from the same seed on every machine.
//
// Thread safety: one fiber or thread.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // SplitMix64.
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t end) { return Next() % end; }
  int Between(int least, int most) {
    return least + static_cast<int>(Below(static_cast<uint64_t>(most - least) + 1));
  }
  bool OneIn(uint64_t n) { return Below(n) == 0; }
  // Of all orders of magnitude up to 4 ms.
  absl::Duration ShortTime() {
    return absl::Nanoseconds(static_cast<int64_t>(Below(uint64_t{1} << (8 + Below(15)))));
  }

 private:
  uint64_t state_;
};

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_RANDOM_H_
