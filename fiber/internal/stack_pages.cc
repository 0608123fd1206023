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
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

// Newer than the oldest headers we build with.
constexpr long kSysProcessMadvise = 440;
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

size_t TrimStackBelow(WaitBlock& block, const char* below, size_t threshold_pages) {
  const uintptr_t below_page = reinterpret_cast<uintptr_t>(below) & ~(kPageBytes - 1);
  const auto low = reinterpret_cast<uintptr_t>(block.stack_low);
  if (below_page < low + 2 * kPageBytes) return 0;
  if (below >= block.stack_high) return 0;  // it waits on another stack: a coroutine's of its own
  const size_t pages = (below_page - kPageBytes - low) / kPageBytes;
  if (pages <= threshold_pages) return 0;
  size_t resident = 0;
  unsigned char vec[256];
  for (size_t done = 0; done < pages; done += sizeof vec) {
    const size_t count = std::min(pages - done, sizeof vec);
    // EAGAIN or an old kernel without it: no reason to trim.
    if (mincore(block.stack_low + done * kPageBytes, count * kPageBytes, vec) != 0) return 0;
    for (size_t i = 0; i < count; ++i) resident += vec[i] & 1;
  }
  if (resident <= threshold_pages) return 0;
  const iovec range = {block.stack_low, pages * kPageBytes};
  bool is_discarded = false;
  DiscardPages(&range, 1, &is_discarded);
  return is_discarded ? resident * kPageBytes : 0;
}

}  // namespace fiber::internal
