// SPDX-License-Identifier: Apache-2.0
#include "sched/stall.h"

#include <dlfcn.h>

#include <string>

#include "absl/debugging/symbolize.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace sched {
namespace {

// The file and the place in it, for addr2line, where a stripped program has no symbol.
std::string ModuleOf(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "(unknown)";
  return absl::StrCat(info.dli_fname, "+0x",
                      absl::Hex(reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_fbase)));
}

// A return address may be the first one of the next function: the call is just before it.
std::string FrameLine(void* address, bool is_innermost) {
  const void* const inside = is_innermost ? address : static_cast<char*>(address) - 1;
  char symbol[512];
  return absl::StrCat("\n  0x", absl::Hex(reinterpret_cast<uintptr_t>(address), absl::kZeroPad12), "  ",
                      absl::Symbolize(inside, symbol, sizeof symbol) ? symbol : ModuleOf(inside));
}

}  // namespace

std::string Stall::ToString() const {
  std::string text = absl::StrCat("fiber ", fiber_id);
  if (!name.empty()) absl::StrAppend(&text, " '", name, "'");
  absl::StrAppend(&text, " (spawned at ", site.file_name(), ":", site.line(), ") has kept its worker for ",
                  absl::FormatDuration(duration),
                  kind == Kind::kSpinning ? ": it computes" : ": it blocks the thread, in the kernel",
                  stack.empty() ? "; where is not known" : ", at");
  for (size_t i = 0; i < stack.size(); ++i) absl::StrAppend(&text, FrameLine(stack[i], i == 0));
  return text;
}

}  // namespace sched
