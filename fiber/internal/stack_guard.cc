// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/stack_guard.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pages.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

constexpr int kMadvGuardInstall = 102;  // Linux 6.13: newer than the oldest headers we build with

size_t MaxMapCount() {
  size_t max_map_count = 65530;  // the kernel's default
  if (FILE* file = fopen("/proc/sys/vm/max_map_count", "re")) {
    if (fscanf(file, "%zu", &max_map_count) != 1) max_map_count = 65530;
    fclose(file);
  }
  return max_map_count;
}

// A guard in the middle of a mapping makes two more of it.
constexpr size_t kMappingsPerGuard = 2;

}  // namespace

StackGuards::StackGuards(GuardMode mode, size_t mprotect_budget)
    : mode_(mode),
      mprotect_budget_(mprotect_budget != 0 ? mprotect_budget : MaxMapCount() / 4 * 3) {}

void StackGuards::Install(const iovec* ranges, size_t count, bool* is_guarded) {
  size_t done = 0;
  const auto counted = [&](GuardMode way, size_t more) {
    counts_[static_cast<int>(way)].fetch_add(more, std::memory_order_relaxed);
    for (const size_t end = done + more; done < end; ++done) {
      is_guarded[done] = way != GuardMode::kCanary;
    }
  };
  if (mode_ <= GuardMode::kAuto) {
    counted(GuardMode::kAuto, AdvisePages(ranges, count, kMadvGuardInstall));
  }
  if (mode_ <= GuardMode::kMadvise) {
    while (done < count &&
           madvise(ranges[done].iov_base, ranges[done].iov_len, kMadvGuardInstall) == 0) {
      counted(GuardMode::kMadvise, 1);
    }
  }
  int mprotect_error = 0;
  if (mode_ <= GuardMode::kMprotect) {
    while (done < count &&
           (Count(GuardMode::kMprotect) + 1) * kMappingsPerGuard <= mprotect_budget_) {
      if (mprotect(ranges[done].iov_base, ranges[done].iov_len, PROT_NONE) != 0) {
        mprotect_error = errno;
        break;
      }
      counted(GuardMode::kMprotect, 1);
    }
  }
  if (done == count) return;
  counted(GuardMode::kCanary, count - done);
  if (!is_announced_) {
    is_announced_ = true;
    Announce(mprotect_error);
  }
}

void StackGuards::Announce(int mprotect_error) {
  std::string why;
  if (mode_ == GuardMode::kCanary) {
    why = "as its options say";
  } else if (mprotect_error != 0) {
    why = absl::StrCat("since mprotect says: ", strerror(mprotect_error));
  } else {
    why =
        absl::StrCat("since ", mprotect_budget_,
                     " mappings are used up for guards, all that vm.max_map_count leaves for them");
  }
  LogLine(
      "after %zu stacks with guard pages, further stacks have only a canary, looked at whenever "
      "their fiber "
      "parks, %s; raise vm.max_map_count, or use Linux 6.13 or later, where guards need no "
      "mappings",
      Count(GuardMode::kMprotect), why.c_str());
}

// For sanitizers: an overflow may have left poison, and shadow memory of untouched pages is not
// needed either.
__attribute__((no_sanitize("address"), no_sanitize("thread"))) void CheckCanarySlow(
    const WaitBlock& block) {
  if (block.stack_low == nullptr) return;  // a plain thread's
  const auto* word = reinterpret_cast<const uint64_t*>(block.stack_low - kCanaryBytes);
  uint64_t any = 0;
  for (size_t i = 0; i < kCanaryBytes / sizeof(uint64_t); ++i) any |= word[i];
  if (any == 0) [[likely]]
    return;
  const Record* fiber = block.fiber.load(std::memory_order_acquire);  // order: owner
  LogLine(
      "fatal: stack overflow: %s wrote below its stack, which has no guard; give it a larger one",
      fiber != nullptr ? Describe(*fiber).c_str() : "a fiber that has ended");
  abort();
}

}  // namespace fiber::internal
