// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_ARENA_H_
#define WEFT_FIBER_INTERNAL_STACK_ARENA_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/wait_block.h"

namespace fiber::internal {

inline constexpr size_t kPageBytes = 4096;

// StackLayout is how the stacks of one class lie in an arena. A slot is a guard, then the stack.
//
// | class   | guard  | stack       | pages a slot | carved at a time |
// |---------|--------|-------------|--------------|------------------|
// | 64 KiB  | 4 KiB  | 64 KiB      | 17           | 64               |
// | 256 KiB | 64 KiB | 256 + 4 KiB | 81           | 64               |
// | 1 MiB   | 64 KiB | 1024 + 4 KiB | 273         | 16               |
// | 8 MiB   | 64 KiB | 8192 + 4 KiB | 2065        | 4                |
//
// Slots are an odd number of pages: the tops of slots that are a power of two share the low bits of
// their page numbers and push each other out of the TLB (yield over 1,000 fibers: 13 ns; so: 8.2).
// Large frames are for large stacks, hence their larger guards.
//
// Nor do all stacks start at the same place in their page, where their hottest lines would all fall
// into the same few sets of the caches: slot i starts (i mod 8) * 128 bytes lower. Going round 16
// to 1,024 stacks, two lines each: 6 to 10 ns without, 1 to 2 with; four lines: 5 to 8, and 2 to 4.
// It takes up to 896 bytes of a page, so a stack of the 64 KiB class is that much smaller.
struct StackLayout {
  size_t stack_bytes;
  size_t guard_bytes;
  uint32_t batch;      // slots carved at a time, and the fewest of an arena
  uint32_t max_slots;  // of an arena: some 64 GiB of address space
  constexpr size_t slot_bytes() const { return guard_bytes + stack_bytes; }
};
inline constexpr StackLayout kStackLayouts[kStackClasses] = {
    {64u << 10, kPageBytes, 64, 1u << 20},
    {(256u << 10) + kPageBytes, 16 * kPageBytes, 64, 1u << 18},
    {(1u << 20) + kPageBytes, 16 * kPageBytes, 16, 1u << 16},
    {(8u << 20) + kPageBytes, 16 * kPageBytes, 4, 1u << 13},
};
inline constexpr uint32_t kStackColours = 8;
inline constexpr size_t kStackColourBytes = 128;
inline constexpr uint32_t kMaxStackBatch = 64;
constexpr const StackLayout& LayoutOf(StackClass cls) {
  return kStackLayouts[static_cast<int>(cls)];
}

// StackArena is a range of address space for stacks of one class, and the wait blocks that go with
// them: block i belongs to slot i for ever. Arenas are never given back.
//
// Blocks lie apart from the stacks: pages of stacks are discarded, blocks are not.
struct StackArena {
  // All const once the arena is found in the list, but for `carved`.
  StackArena* next = nullptr;
  char* slots = nullptr;
  char* blocks = nullptr;
  uint32_t slot_count = 0;
  StackClass cls = StackClass::k64KiB;
  bool is_commit_by_chunk = false;  // memory beyond what is carved is PROT_NONE
  Atomic<uint32_t> carved{0};       // slots with a block, from the first on. order: arena (publish)

  // Blocks are three cache lines apart.
#ifdef WEFT_TSAN
  static constexpr size_t kBlockStride = 256;
#else
  static constexpr size_t kBlockStride = 192;
#endif

  WaitBlock* block(uint32_t slot) const {
    return reinterpret_cast<WaitBlock*>(blocks + slot * kBlockStride);
  }
  char* slot(uint32_t index) const { return slots + index * LayoutOf(cls).slot_bytes(); }
  char* stack_low(uint32_t index) const { return slot(index) + LayoutOf(cls).guard_bytes; }
  char* stack_high(uint32_t index) const {
    return slot(index + 1) - index % kStackColours * kStackColourBytes;
  }
};
static_assert(sizeof(WaitBlock) <= StackArena::kBlockStride);

// Reserves address space for up to `slots` stacks of `cls` and their blocks, fewer if there is not
// enough. `commit_by_chunk`: in such a way that memory is asked for only as stacks are carved, for
// kernels that count what is mapped instead of what is used (overcommit mode 2); chosen by itself
// if they say so. null: *why names the limit. Not yet in the list of arenas. Any thread. Never
// blocks.
StackArena* ReserveArena(StackClass cls, uint32_t slots, bool commit_by_chunk, absl::Status* why);

// Makes the memory of `count` slots from `first` on, and of their blocks, usable. Any thread.
absl::Status CommitSlots(StackArena& arena, uint32_t first, uint32_t count);

// Puts an arena into the list of all arenas, which FindGuard() looks through. Any thread.
void PublishArena(StackArena& arena);

// True if `address` lies in the guard of a stack; *block says whose. Async-signal-safe: for the
// SIGSEGV handler.
bool FindGuard(const void* address, WaitBlock** block);
// True if a mapping that begins at `address` is an arena's, so is kept. For tests that look for leaks.
bool IsArena(const void* address);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_ARENA_H_
