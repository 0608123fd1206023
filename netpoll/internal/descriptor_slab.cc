// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/descriptor_slab.h"

#include <sys/mman.h>

#include <new>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "netpoll/internal/descriptor.h"

namespace netpoll::internal {
namespace {

using fiber::internal::SpinLock;
using fiber::internal::SpinLockHolder;

struct Chunk {
  static constexpr size_t kBytes = 256 << 10;

  Chunk* next = nullptr;
  size_t carved = 0;
  Descriptor* records() { return reinterpret_cast<Descriptor*>(this) + 1; }
};
static_assert(sizeof(Chunk) <= sizeof(Descriptor));
constexpr size_t kChunkRecords = Chunk::kBytes / sizeof(Descriptor) - 1;

struct Slab {
  SpinLock lock;
  Descriptor* free ABSL_GUARDED_BY(lock) = nullptr;
  Chunk* chunks ABSL_GUARDED_BY(lock) = nullptr;  // the newest first
  size_t in_use ABSL_GUARDED_BY(lock) = 0;

  // Never destroyed: sockets may outlive statics.
  static Slab& Get() {
    static Slab* const slab = [] {
      auto* made = new Slab;
      fiber::internal::HoldAcrossForks(made->lock);
      return made;
    }();
    return *slab;
  }

  [[nodiscard]] bool AddChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock) {
    void* memory = fiber::internal::System().mmap(
        nullptr, Chunk::kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    // Tags have room for 48 bits; more is given only to those who ask.
    if (reinterpret_cast<uint64_t>(memory) >> 48 != 0) {
      fiber::internal::Fatal("mmap returned %p: not an address of 48 bits", memory);
    }
    auto* chunk = new (memory) Chunk;
    chunk->next = chunks;
    chunks = chunk;
    return true;
  }
};

[[maybe_unused]] const Slab& descriptors_made_before_main = Slab::Get();

}  // namespace

Descriptor* DescriptorSlab::Take() {
  Slab& slab = Slab::Get();
  SpinLockHolder hold(slab.lock);
  Descriptor* descriptor = slab.free;
  if (descriptor != nullptr) {
    slab.free = descriptor->next_free;
  } else {
    if ((slab.chunks == nullptr || slab.chunks->carved == kChunkRecords) && !slab.AddChunk()) {
      return nullptr;
    }
    descriptor = new (slab.chunks->records() + slab.chunks->carved) Descriptor;
    ++slab.chunks->carved;
  }
  ++slab.in_use;
  return descriptor;
}

void DescriptorSlab::Give(Descriptor& descriptor) {
  Slab& slab = Slab::Get();
  SpinLockHolder hold(slab.lock);
  descriptor.next_free = slab.free;
  slab.free = &descriptor;
  --slab.in_use;
}

void DescriptorSlab::ForEach(absl::FunctionRef<void(Descriptor&)> visit) {
  Slab& slab = Slab::Get();
  Chunk* chunk;
  size_t carved;
  {
    SpinLockHolder hold(slab.lock);
    chunk = slab.chunks;
    carved = chunk == nullptr ? 0 : chunk->carved;
  }
  while (chunk != nullptr) {
    for (size_t i = 0; i < carved; ++i) visit(chunk->records()[i]);
    // Older chunks are full, and stay as they are.
    chunk = chunk->next;
    carved = kChunkRecords;
  }
}

size_t DescriptorSlab::CountInUse() {
  Slab& slab = Slab::Get();
  SpinLockHolder hold(slab.lock);
  return slab.in_use;
}

}  // namespace netpoll::internal
