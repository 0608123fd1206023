// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_PATTERN_H_
#define WEFT_TOOLS_LOADGEN_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace loadgen {

// Pattern is an endless stream of bytes for each connection. It repeats after a prime number of
// bytes, so that no two messages in a row are alike whatever their size. Any part of it lies there
// ready: sending and checking a message generates nothing.
//
// Thread safety: constant once made.
class Pattern {
 public:
  static constexpr size_t kMaxPart = size_t{64} << 10;

  Pattern();

  // `size` bytes of `connection`'s stream from `position` on. REQUIRES: size <= kMaxPart.
  std::string_view Part(int connection, uint64_t position, size_t size) const {
    const uint64_t start = static_cast<uint64_t>(connection) * kApart + position;
    return {bytes_.data() + start % kPeriod, size};
  }

 private:
  static constexpr size_t kPeriod = 65521;  // prime
  static constexpr size_t kApart = 7919;    // the streams of neighbouring connections

  std::vector<char> bytes_;
};

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_PATTERN_H_
