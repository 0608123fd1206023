// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/frame_line.h"

#include <dlfcn.h>

#include <cstdint>
#include <string>

#include "absl/debugging/symbolize.h"
#include "absl/strings/str_cat.h"

namespace fiber::internal {
namespace {

// For addr2line, where a stripped program has no symbol.
std::string PlaceInFile(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "(unknown)";
  return absl::StrCat(info.dli_fname, "+0x",
                      absl::Hex(reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_fbase)));
}

}  // namespace

std::string FrameLine(void* address, bool is_return) {
  // A return address may be the first one of the next function.
  const void* const inside = is_return ? static_cast<char*>(address) - 1 : address;
  char symbol[512];
  return absl::StrCat("  0x", absl::Hex(reinterpret_cast<uintptr_t>(address), absl::kZeroPad12), "  ",
                      absl::Symbolize(inside, symbol, sizeof symbol) ? symbol : PlaceInFile(inside));
}

}  // namespace fiber::internal
