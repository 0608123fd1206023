// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SIM_INTERNAL_RANDOM_H_
#define WEFT_FIBER_SIM_INTERNAL_RANDOM_H_

#include <cstdint>

namespace fiber::sim::internal {

// Random is where all of a schedule's choices come from: xoshiro256**, seeded by splitmix64 so that
// neighbouring seeds have nothing in common. A generator of our own, since a seed must replay on
// every platform; those of <random> do, but their distributions do not.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t mixed = seed;
      mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
      mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
      word = mixed ^ (mixed >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = RotateLeft(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = RotateLeft(state_[3], 45);
    return result;
  }

  // One of 0 … count - 1, alike but for a bias of count in 2^64. REQUIRES: count > 0
  uint64_t Below(uint64_t count) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * count) >> 64);
  }

  // True with `probability`.
  bool Chance(double probability) {
    return static_cast<double>(Next() >> 11) * 0x1.0p-53 < probability;
  }

 private:
  static uint64_t RotateLeft(uint64_t word, int bits) { return word << bits | word >> (64 - bits); }

  uint64_t state_[4];
};

}  // namespace fiber::sim::internal

#endif  // WEFT_FIBER_SIM_INTERNAL_RANDOM_H_
