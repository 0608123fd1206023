// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/stack_pages.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "fiber/internal/atomic.h"
#include "fiber/internal/stack_arena.h"
#include "fiber/internal/stack_cache.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

// Newer than the oldest headers we build with.
constexpr long kSysProcessMadvise = 440;
constexpr int kMadvPopulateWrite = 23;  // Linux 5.14
constexpr int kPidfdSelf = -10000;  // Linux 6.15

}  // namespace

// Kernels 6.13 and 6.14 would do it for a pidfd from pidfd_open. Not worth it: it is a descriptor
// to keep, and means the wrong process after fork.
size_t AdvisePages(const iovec* ranges, size_t count, int advice) {
  ssize_t bytes = syscall(kSysProcessMadvise, kPidfdSelf, ranges, count, advice, 0u);
  size_t done = 0;
  while (done < count && bytes >= static_cast<ssize_t>(ranges[done].iov_len)) {
    bytes -= static_cast<ssize_t>(ranges[done].iov_len);
    ++done;
  }
  return done;
}

void DiscardPages(const iovec* ranges, size_t count, bool* is_discarded) {
  size_t done = 0;
  while (done < count) {
    for (const size_t end = done + AdvisePages(ranges + done, count - done, MADV_DONTNEED);
         done < end; ++done) {
      is_discarded[done] = true;
    }
    if (done == count) return;
    // A kernel that knows no batches, or a range it refuses: alone, then on with the rest.
    is_discarded[done] = madvise(ranges[done].iov_base, ranges[done].iov_len, MADV_DONTNEED) == 0;
    if (!is_discarded[done]) {
      const int error = errno;
      static Atomic<bool> is_announced{false};
      if (!is_announced.exchange(true, std::memory_order_relaxed)) {
        LogLine(
            "idle stacks keep their pages: madvise(MADV_DONTNEED): %s (memory locked by mlockall?)",
            strerror(error));
      }
    }
    ++done;
  }
}

void PopulateTops(WaitBlock* list) {
  WaitBlock* blocks[kMaxStackBatch];
  iovec ranges[kMaxStackBatch];
  size_t count = 0;
  for (; list != nullptr && count < kMaxStackBatch; list = NextFree(*list)) {
    if (list->is_stack_resident) continue;
    const auto top = (reinterpret_cast<uintptr_t>(list->stack_high) - 1) & ~(kPageBytes - 1);
    blocks[count] = list;
    ranges[count++] = {reinterpret_cast<void*>(top), kPageBytes};
  }
  if (count == 0) return;
  const size_t done = AdvisePages(ranges, count, kMadvPopulateWrite);
  for (size_t i = 0; i < done; ++i) blocks[i]->is_stack_resident = true;
}

bool Residency::Ask(uintptr_t start, size_t pages) {
  // EAGAIN, ENOMEM where it goes beyond what is mapped, or a kernel without it.
  const bool is_told =
      mincore(reinterpret_cast<void*>(start), pages * kPageBytes, is_resident_) == 0;
  start_ = start;
  asked_ = is_told ? pages : 0;
  return is_told;
}

size_t Residency::Count(const char* low, size_t pages) {
  constexpr uintptr_t kWindowBytes = kWindowPages * kPageBytes;
  uintptr_t at = reinterpret_cast<uintptr_t>(low);
  const uintptr_t end = at + pages * kPageBytes;
  size_t resident = 0;
  while (at < end) {
    const uintptr_t until = std::min(end, at + kWindowBytes);
    if (at < start_ || until > start_ + asked_ * kPageBytes) {
      // Aligned, so that it does not matter in which order neighbours are visited.
      const uintptr_t window = at / kWindowBytes * kWindowBytes;
      const bool is_inside = until <= window + kWindowBytes;
      if (!(is_inside && Ask(window, kWindowPages)) && !Ask(at, (until - at) / kPageBytes))
        return 0;
    }
    for (; at < until; at += kPageBytes) resident += is_resident_[(at - start_) / kPageBytes] & 1;
  }
  return resident;
}

size_t TrimStackBelow(WaitBlock& block, const char* below, size_t threshold_pages,
                      Residency& residency) {
  const uintptr_t below_page = reinterpret_cast<uintptr_t>(below) & ~(kPageBytes - 1);
  const auto low = reinterpret_cast<uintptr_t>(block.stack_low);
  if (below_page < low + 2 * kPageBytes) return 0;
  if (below >= block.stack_high) return 0;  // it waits on another stack: a coroutine's of its own
  const size_t pages = (below_page - kPageBytes - low) / kPageBytes;
  if (pages <= threshold_pages) return 0;
  const size_t resident = residency.Count(block.stack_low, pages);
  if (resident <= threshold_pages) return 0;
  const iovec range = {block.stack_low, pages * kPageBytes};
  bool is_discarded = false;
  DiscardPages(&range, 1, &is_discarded);
  return is_discarded ? resident * kPageBytes : 0;
}

}  // namespace fiber::internal
