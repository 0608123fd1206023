// SPDX-License-Identifier: Apache-2.0
// What the build promises every other test.
#include <elf.h>
#include <link.h>

#include <source_location>

#include "gtest/gtest.h"

namespace {

TEST(ToolchainTest, SourceLocationNamesTheCaller) {
  const auto here = [](std::source_location site = std::source_location::current()) {
    return site.line();
  };
  EXPECT_EQ(here(), static_cast<unsigned>(__LINE__));
}

// Lazy binding would run the dynamic linker on a fiber's stack.
TEST(ToolchainTest, SymbolsAreBoundAtStart) {
  bool bound_at_start = false;
  for (const ElfW(Dyn)* entry = _DYNAMIC; entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_BIND_NOW) bound_at_start = true;
    if (entry->d_tag == DT_FLAGS && (entry->d_un.d_val & DF_BIND_NOW)) bound_at_start = true;
    if (entry->d_tag == DT_FLAGS_1 && (entry->d_un.d_val & DF_1_NOW)) bound_at_start = true;
  }
  EXPECT_TRUE(bound_at_start);
}

}  // namespace
