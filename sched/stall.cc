// SPDX-License-Identifier: Apache-2.0
#include "sched/stall.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/internal/frame_line.h"

namespace sched {

std::string Stall::ToString() const {
  std::string text = absl::StrCat("fiber ", fiber_id);
  if (!name.empty()) absl::StrAppend(&text, " '", name, "'");
  absl::StrAppend(&text, " (spawned at ", site.file_name(), ":", site.line(), ") has kept its worker for ",
                  absl::FormatDuration(duration),
                  kind == Kind::kSpinning ? ": it computes" : ": it blocks the thread, in the kernel",
                  stack.empty() ? "; where is not known" : ", at");
  for (size_t i = 0; i < stack.size(); ++i) {
    absl::StrAppend(&text, "\n", fiber::internal::FrameLine(stack[i], i > 0));
  }
  return text;
}

}  // namespace sched
