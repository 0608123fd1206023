// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/pattern.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

namespace loadgen {
namespace {

TEST(PatternTest, PartsOfAnySizeMakeTheSameStream) {
  const Pattern pattern;
  std::string bytes;
  std::string parts;
  constexpr size_t kBytes = 300'000;  // it repeats several times
  for (size_t at = 0; at < kBytes; ++at) bytes += pattern.Part(3, at, 1);
  for (size_t size = 1; parts.size() < kBytes; size = size * 3 % Pattern::kMaxPart + 1) {
    parts += pattern.Part(3, parts.size(), std::min(size, kBytes - parts.size()));
  }
  EXPECT_EQ(bytes, parts);
}

TEST(PatternTest, MessagesAndConnectionsDiffer) {
  const Pattern pattern;
  for (size_t size : {16u, 64u, 4096u}) {
    std::set<std::string_view> messages;
    for (int connection = 0; connection < 100; ++connection) {
      for (uint64_t message = 0; message < 20; ++message) {
        messages.insert(pattern.Part(connection, message * size, size));
      }
    }
    EXPECT_GT(messages.size(), 1990u) << size;
  }
}

}  // namespace
}  // namespace loadgen
