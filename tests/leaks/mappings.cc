// SPDX-License-Identifier: Apache-2.0
//
// mmap() and munmap() of the program, in place of the C library's: the same, and they keep a list.
//
// The list has no lock: memory may be mapped where none may be waited for, as in the child of a fork.
#include "tests/leaks/mappings.h"

#include "fiber/internal/sanitizer.h"

#if defined(WEFT_ASAN) || defined(WEFT_TSAN)

namespace tests {
std::string Mapping::Site() const { return ""; }
std::vector<Mapping> Mappings() { return {}; }
}  // namespace tests

#else

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "absl/debugging/symbolize.h"

namespace tests {
namespace {

// One mapping. Everything is written by the thread that maps or unmaps it, which nobody else does at that time.
struct Entry {
  std::atomic<uintptr_t> begin{0};  // 0: free. 1: being filled in. order: mapping (release / acquire)
  std::atomic<size_t> bytes{0};
  std::atomic<void*> caller{nullptr};
};
constexpr uintptr_t kBusy = 1;
Entry entries[4096];

// Without an entry left, those beyond are not listed.
void Add(void* begin, size_t bytes, void* caller) {
  for (Entry& entry : entries) {
    uintptr_t free = 0;
    if (entry.begin.load(std::memory_order_relaxed) != 0 ||
        !entry.begin.compare_exchange_strong(free, kBusy, std::memory_order_relaxed)) {
      continue;
    }
    entry.bytes.store(bytes, std::memory_order_relaxed);
    entry.caller.store(caller, std::memory_order_relaxed);
    entry.begin.store(reinterpret_cast<uintptr_t>(begin), std::memory_order_release);  // order: mapping
    return;
  }
}

// Before the kernel does it: then the addresses may be another's.
void Remove(void* begin, size_t bytes) {
  const auto low = reinterpret_cast<uintptr_t>(begin);
  for (Entry& entry : entries) {
    const uintptr_t at = entry.begin.load(std::memory_order_acquire);  // order: mapping
    if (at > kBusy && low <= at && at + entry.bytes.load(std::memory_order_relaxed) <= low + bytes + 4095) {
      entry.begin.store(0, std::memory_order_release);  // order: mapping
    }
  }
}

}  // namespace

std::string Mapping::Site() const {
  char symbol[256];
  return absl::Symbolize(static_cast<char*>(caller) - 1, symbol, sizeof symbol) ? symbol : "somebody without a name";
}

std::vector<Mapping> Mappings() {
  std::vector<Mapping> mappings;
  for (const Entry& entry : entries) {
    const uintptr_t begin = entry.begin.load(std::memory_order_acquire);  // order: mapping
    if (begin <= kBusy) continue;
    mappings.push_back({reinterpret_cast<const char*>(begin), entry.bytes.load(std::memory_order_relaxed),
                        entry.caller.load(std::memory_order_relaxed)});
  }
  return mappings;
}

}  // namespace tests

extern "C" void* mmap(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
  const long result = syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
  void* const begin = reinterpret_cast<void*>(result);
  if (begin != MAP_FAILED) {
    if ((flags & MAP_FIXED) != 0) tests::Remove(begin, bytes);
    tests::Add(begin, bytes, __builtin_return_address(0));
  }
  return begin;
}

extern "C" int munmap(void* address, size_t bytes) noexcept {
  tests::Remove(address, bytes);
  return static_cast<int>(syscall(SYS_munmap, address, bytes));
}

#endif
