// SPDX-License-Identifier: Apache-2.0
//
// Preloaded by tools/quick_cc: what g++ maps for its objects, 2 MiB at a time, becomes large pages, where madvise is what it takes
// (/sys/kernel/mm/transparent_hugepage/enabled). It has no option for that.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" void* mmap(void* address, size_t bytes, int protection, int flags, int descriptor, off_t offset) noexcept {
  const long result = syscall(SYS_mmap, address, bytes, protection, flags, descriptor, offset);
  auto* const memory = reinterpret_cast<void*>(result);
  constexpr size_t kLargeBytes = size_t{2} << 20;
  if (memory != MAP_FAILED && (flags & MAP_ANONYMOUS) != 0 && bytes >= kLargeBytes) {
    (void)madvise(memory, bytes, MADV_HUGEPAGE);  // refused: small ones, as before
  }
  return memory;
}
