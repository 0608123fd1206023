// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/stack_arena.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>

#include "absl/strings/str_cat.h"
#include "fiber/internal/sanitizer.h"

#ifdef WEFT_ASAN
#include <sanitizer/lsan_interface.h>
#endif

namespace fiber::internal {
namespace {

// The list of all arenas. order: arena — release on adding one and on counting a carved slot,
// acquire in FindGuard(): an arena's fields and a block's are there before they can be found.
Atomic<StackArena*> all_arenas{nullptr};

// The arena itself lies before its blocks.
constexpr size_t kHeaderBytes = kPageBytes;
static_assert(sizeof(StackArena) <= kHeaderBytes);

#if defined(WEFT_ASAN) || defined(WEFT_TSAN)
constexpr uint32_t kMaxSlotsDivisor = 64;  // shadow memory is of the arena's size
#else
constexpr uint32_t kMaxSlotsDivisor = 1;
#endif

#ifdef WEFT_ASAN
// LeakSanitizer looks for pointers in the stacks, and in the blocks for names. It reads all that can be read in an arena: guards
// must be mappings of their own, since it trips over markers, and slots not yet carved unreadable, or it would read them all. By
// arena, since it looks at all mappings of the process for each region.
size_t SlotsBytes(const StackArena& arena) { return arena.slot_count * LayoutOf(arena.cls).slot_bytes(); }
void RegisterWithLeakSanitizer(const StackArena& arena) {
  __lsan_register_root_region(arena.slots, SlotsBytes(arena));
  __lsan_register_root_region(arena.blocks, arena.slot_count * StackArena::kBlockStride);
}

bool HasFibers(const StackArena& arena) {
  for (uint32_t i = 0; i < arena.carved.load(std::memory_order_acquire); ++i) {  // order: arena
    if (arena.block(i)->fiber.load(std::memory_order_relaxed) != nullptr) return true;
  }
  return false;
}

// After all destructors, and before LeakSanitizer's look: stacks that no fiber has need not be read, which took a process of ten
// thousand fibers a minute.
[[gnu::destructor]] void LeaveOutFreeStacks() {
  for (const StackArena* arena = all_arenas.load(std::memory_order_acquire);  // order: arena
       arena != nullptr; arena = arena->next) {
    if (!HasFibers(*arena)) __lsan_unregister_root_region(arena->slots, SlotsBytes(*arena));
  }
}
#endif

size_t RoundUp(size_t bytes) { return (bytes + kPageBytes - 1) & ~(kPageBytes - 1); }
size_t BlocksBytes(uint32_t slots) {
  return RoundUp(kHeaderBytes + slots * StackArena::kBlockStride);
}

// One number from a file of the kernel's; `otherwise` if it has none.
size_t ReadNumber(const char* path, size_t otherwise) {
  size_t number = otherwise;
  if (FILE* file = fopen(path, "re")) {
    if (fscanf(file, "%zu", &number) != 1) number = otherwise;
    fclose(file);
  }
  return number;
}

size_t Limit(__rlimit_resource which) {
  rlimit limit;
  if (getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
  return limit.rlim_cur;
}

// True if the kernel populates new mappings (mlockall with MCL_FUTURE): then only little may be
// reserved.
bool IsFutureMemoryPopulated() {
  void* page =
      mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;  // what follows fails by itself
  unsigned char is_resident = 0;
  const bool is_populated = mincore(page, kPageBytes, &is_resident) == 0 && (is_resident & 1) != 0;
  munmap(page, kPageBytes);  // cannot fail: it is ours, and whole
  return is_populated;
}

// Linux counts writable private memory against RLIMIT_DATA, and in overcommit mode 2 against
// CommitLimit, as soon as it is mapped.
bool IsMappedMemoryCounted() {
  return ReadNumber("/proc/sys/vm/overcommit_memory", 0) == 2 || Limit(RLIMIT_DATA) != SIZE_MAX;
}

// How much address space stacks may still take. Under RLIMIT_AS an eighth stays for the rest of the
// program.
size_t AddressSpaceLeft() {
  const size_t limit = Limit(RLIMIT_AS);
  if (limit == SIZE_MAX) return SIZE_MAX;
  const size_t used = ReadNumber("/proc/self/statm", 0) * kPageBytes;
  const size_t kept = limit / 8;
  return used + kept < limit ? limit - used - kept : 0;
}

// False: vm.max_map_count is reached. The middle one of three pages has to become a mapping of its own. Where they lie between
// others like them, the kernel may refuse to unmap them at that limit: three pages of address space.
bool CanSplitMappings() {
  constexpr size_t kBytes = 3 * kPageBytes;
  void* pages = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return errno != ENOMEM;
  char* const middle = static_cast<char*>(pages) + kPageBytes;
  const bool can_split = mprotect(middle, kPageBytes, PROT_READ) == 0;
  munmap(pages, kBytes);
  return can_split;
}

absl::Status NoStack(const std::string& limit, int error) {
  return absl::ResourceExhaustedError(
      absl::StrCat("no stack for another fiber: ", limit, " (", strerror(error), ")"));
}

absl::Status AddressSpaceUsedUp() {
  return NoStack(absl::StrCat("address space is limited to ", Limit(RLIMIT_AS) >> 20,
                              " MiB by RLIMIT_AS: raise it (ulimit -v) or use smaller stacks"),
                 ENOMEM);
}

// Why the kernel said no, although there is address space left.
absl::Status Explain(int error) {
  if (error == EAGAIN) {
    return NoStack(
        "locked memory is limited by RLIMIT_MEMLOCK, and mlockall(MCL_FUTURE) counts stacks: raise "
        "it (ulimit -l) or lock less",
        error);
  }
  if (!CanSplitMappings()) {
    return NoStack(absl::StrCat("the process has all the mappings that vm.max_map_count allows (",
                                ReadNumber("/proc/sys/vm/max_map_count", 65530),
                                "): raise it (sysctl) or use fewer mappings"),
                   error);
  }
  if (ReadNumber("/proc/sys/vm/overcommit_memory", 0) == 2) {
    return NoStack(
        "vm.overcommit_memory is 2 and CommitLimit is reached: raise vm.overcommit_ratio or use "
        "smaller stacks",
        error);
  }
  if (const size_t data = Limit(RLIMIT_DATA); data != SIZE_MAX) {
    return NoStack(absl::StrCat("data is limited to ", data >> 20,
                                " MiB by RLIMIT_DATA: raise it (ulimit -d) or use smaller stacks"),
                   error);
  }
  if (Limit(RLIMIT_AS) != SIZE_MAX) return AddressSpaceUsedUp();  // what is used could not be read
  return NoStack(
      "memory or address space is exhausted: look at the memory limit, or use smaller stacks", error);
}

// Reserves an arena of exactly `slots`. null: errno says why.
StackArena* TryReserve(StackClass cls, uint32_t slots, bool commit_by_chunk) {
  const int protection = commit_by_chunk ? PROT_NONE : PROT_READ | PROT_WRITE;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const size_t stack_bytes = slots * LayoutOf(cls).slot_bytes();
  void* const stacks = mmap(nullptr, stack_bytes, protection, kFlags | MAP_STACK, -1, 0);
  if (stacks == MAP_FAILED) return nullptr;
  const size_t block_bytes = BlocksBytes(slots);
  void* const blocks = mmap(nullptr, block_bytes, protection, kFlags, -1, 0);
  if (blocks == MAP_FAILED ||
      (commit_by_chunk && mprotect(blocks, kHeaderBytes, PROT_READ | PROT_WRITE) != 0)) {
    const int error = errno;
    if (blocks != MAP_FAILED) munmap(blocks, block_bytes);
    munmap(stacks, stack_bytes);
    errno = error;
    return nullptr;
  }
  // All of these may be refused, by kernels built without them: they save memory or make things
  // readable, and nothing depends on them. Stacks commit by single pages, and core files leave them
  // out.
  madvise(stacks, stack_bytes, MADV_NOHUGEPAGE);
  madvise(stacks, stack_bytes, MADV_DONTDUMP);
#ifdef PR_SET_VMA_ANON_NAME
  prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, stacks, stack_bytes, "weft stacks");
  prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, blocks, block_bytes, "weft wait blocks");
#endif
  auto* arena = new (blocks) StackArena;
  arena->slots = static_cast<char*>(stacks);
  arena->blocks = static_cast<char*>(blocks) + kHeaderBytes;
  arena->slot_count = slots;
  arena->cls = cls;
  arena->is_commit_by_chunk = commit_by_chunk;
  return arena;
}

}  // namespace

StackArena* ReserveArena(StackClass cls, uint32_t slots, bool commit_by_chunk, absl::Status* why) {
  const StackLayout& layout = LayoutOf(cls);
  slots = std::min(slots, layout.max_slots / kMaxSlotsDivisor);
  if (IsFutureMemoryPopulated()) slots = layout.batch;
  const size_t left = AddressSpaceLeft();
  const size_t batch_bytes = layout.batch * layout.slot_bytes() + BlocksBytes(layout.batch);
  if (left < batch_bytes) {
    *why = AddressSpaceUsedUp();
    return nullptr;
  }
  // Half of what is left, so that other classes and later arenas find something too.
  while (slots > layout.batch && slots * layout.slot_bytes() > left / 2) slots /= 2;
  slots = std::max(slots / layout.batch, 1u) * layout.batch;
  commit_by_chunk = commit_by_chunk || IsMappedMemoryCounted();
  for (;;) {
    if (StackArena* arena = TryReserve(cls, slots, commit_by_chunk)) return arena;
    if (slots == layout.batch) break;
    slots = std::max(slots / 2 / layout.batch, 1u) * layout.batch;
  }
  *why = Explain(errno);
  return nullptr;
}

absl::Status CommitSlots(StackArena& arena, uint32_t first, uint32_t count) {
  if (!arena.is_commit_by_chunk) return absl::OkStatus();
  const size_t slot_bytes = LayoutOf(arena.cls).slot_bytes();
  const auto blocks = reinterpret_cast<uintptr_t>(arena.block(first)) & ~(kPageBytes - 1);
  const auto blocks_end = RoundUp(reinterpret_cast<uintptr_t>(arena.block(first + count)));
  if (mprotect(arena.slot(first), count * slot_bytes, PROT_READ | PROT_WRITE) != 0 ||
      mprotect(reinterpret_cast<void*>(blocks), blocks_end - blocks, PROT_READ | PROT_WRITE) != 0) {
    return Explain(errno);
  }
  return absl::OkStatus();
}

void PublishArena(StackArena& arena) {
#ifdef WEFT_ASAN
  RegisterWithLeakSanitizer(arena);
#endif
  arena.next = all_arenas.load(std::memory_order_relaxed);
  while (!all_arenas.compare_exchange_weak(arena.next, &arena,
                                           std::memory_order_release,  // order: arena
                                           std::memory_order_relaxed)) {
  }
}

bool FindGuard(const void* address, WaitBlock** block) {
  const auto target = reinterpret_cast<uintptr_t>(address);
  for (const StackArena* arena = all_arenas.load(std::memory_order_acquire);  // order: arena
       arena != nullptr; arena = arena->next) {
    const StackLayout& layout = LayoutOf(arena->cls);
    const auto start = reinterpret_cast<uintptr_t>(arena->slots);
    if (target < start) continue;
    const size_t slot = (target - start) / layout.slot_bytes();
    if (slot >= arena->carved.load(std::memory_order_acquire)) continue;  // order: arena
    if ((target - start) % layout.slot_bytes() >= layout.guard_bytes) return false;
    WaitBlock* found = arena->block(static_cast<uint32_t>(slot));
    if (!found->is_stack_guarded) return false;
    *block = found;
    return true;
  }
  return false;
}

bool IsArena(const void* address) {
  const StackArena* arena = all_arenas.load(std::memory_order_acquire);  // order: arena
  while (arena != nullptr && address != arena->slots && address != arena) arena = arena->next;
  return arena != nullptr;
}

}  // namespace fiber::internal
