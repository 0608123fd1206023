// SPDX-License-Identifier: Apache-2.0
#include "fiber/held_locks/held_locks.h"

#include <unwind.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "fiber/held_locks/held_list.h"
#include "fiber/internal/frame_line.h"
#include "fiber/internal/leave_hook.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "fiber/wait_reason.h"

namespace fiber::held_locks {
namespace {

using internal::Leaving;
using internal::Record;
using internal::ThreadState;
using internal::WaitBlock;

constexpr size_t kMostHeld = 32;
constexpr size_t kMostAcquired = 12;
constexpr size_t kMostLeft = 32;

// A lock that a fiber holds.
struct Held {
  // Null: free. order: held — release by the owner when the rest is written, acquire by whoever reads it. Cleared by anyone.
  std::atomic<const void*> address{nullptr};
  // Written by the owner while it is free.
  std::atomic<Kind> kind{Kind::kMutex};
  std::atomic<uint64_t> fiber_id{0};
  size_t depth = 0;  // the owner's alone, as is what follows
  void* acquired[kMostAcquired];
};

// HeldList is what the fiber that runs on a thread holds: whoever leaves takes its locks off. In a list of all, so that a fiber
// that unlocks for another finds them; never freed, but used by another thread after the end of one. No locks: it is used
// within those of others, and in children of fork().
struct HeldList {
  Held held[kMostHeld];
  std::atomic<bool> is_used{true};
  HeldList* next = nullptr;  // const once it is in the list of all
};

std::atomic<HeldList*> all_lists{nullptr};  // order: lists — release by who adds, acquire by who walks

// order: handler — release by who sets it, acquire by who calls it: what was there before it was set is visible to it.
std::atomic<Handler> installed_handler{nullptr};

// Places that were reported, by their hash: 0 is free. When it is full, no more are.
std::atomic<uint64_t> reported[256];

constinit std::atomic<bool> is_on{false};

// Of the calling thread.
constinit thread_local HeldList* mine = nullptr;
constinit thread_local bool is_busy = false;  // in here: what is locked meanwhile is ours

// For other threads again at this one's end.
struct ListReturner {
  ~ListReturner() {
    if (mine != nullptr) std::exchange(mine, nullptr)->is_used.store(false, std::memory_order_release);  // order: lists
  }
};
thread_local ListReturner list_returner;

HeldList* TakeUnusedList() {
  for (HeldList* list = all_lists.load(std::memory_order_acquire); list != nullptr; list = list->next) {  // order: lists
    bool is_used = false;
    if (list->is_used.compare_exchange_strong(is_used, true, std::memory_order_acquire, std::memory_order_relaxed)) {  // order: lists
      return list;
    }
  }
  return nullptr;
}

HeldList& MyList() {
  if (mine != nullptr) return *mine;
  is_busy = true;
  (void)&list_returner;  // constructed from here on
  mine = TakeUnusedList();
  if (mine == nullptr) {
    mine = new HeldList;
    mine->next = all_lists.load(std::memory_order_relaxed);
    while (!all_lists.compare_exchange_weak(mine->next, mine, std::memory_order_release,  // order: lists
                                            std::memory_order_relaxed)) {
    }
  }
  is_busy = false;
  return *mine;
}

const Record* CurrentFiber() {
  const ThreadState* const thread = internal::ThisThreadOrNull();
  if (thread == nullptr) return nullptr;
  return thread->current;
}

// Return addresses from `frame` outwards, along frame pointers as long as these stay on the fiber's stack.
size_t WalkFrames(const Record& fiber, void* const* frame, void** addresses) {
  const WaitBlock* const block = fiber.block.load(std::memory_order_relaxed);
  size_t count = 0;
  addresses[count++] = frame[1];
  while (count < kMostAcquired) {
    auto* const next = static_cast<void* const*>(frame[0]);
    const char* const place = reinterpret_cast<const char*>(next);
    if (next <= frame || place < block->stack_low || place + 2 * sizeof(void*) > block->stack_high ||
        reinterpret_cast<uintptr_t>(next) % sizeof(void*) != 0 || next[1] == nullptr) {
      break;
    }
    addresses[count++] = next[1];
    frame = next;
  }
  return count;
}

_Unwind_Reason_Code AddFrame(_Unwind_Context* context, void* argument) {
  auto& addresses = *static_cast<std::vector<void*>*>(argument);
  if (const uintptr_t address = _Unwind_GetIP(context); address != 0) addresses.push_back(reinterpret_cast<void*>(address));
  return addresses.size() < kMostLeft ? _URC_NO_REASON : _URC_END_OF_STACK;
}

// True the first time for what was acquired there.
bool IsNew(const Held& held) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, by words
  for (size_t i = 0; i < held.depth; ++i) {
    hash = (hash ^ reinterpret_cast<uintptr_t>(held.acquired[i])) * 0x100000001b3;
  }
  hash = hash == 0 ? 1 : hash;
  for (auto& slot : reported) {
    uint64_t other = slot.load(std::memory_order_relaxed);
    if (other == 0 && slot.compare_exchange_strong(other, hash, std::memory_order_relaxed, std::memory_order_relaxed)) {
      return true;
    }
    if (other == hash) return false;
  }
  return false;
}

void Write(const HeldLock& held) {
  const std::string text = held.ToString();
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    internal::LogLine("%.*s", static_cast<int>(line.size()), line.data());
  }
}

void Report(const Record& fiber, Leaving leaving, const Held& held, const void* address) {
  HeldLock lock{.kind = held.kind.load(std::memory_order_relaxed),
                .address = address,
                .fiber_id = fiber.id.load(std::memory_order_relaxed),
                .fiber = internal::Describe(fiber),
                .leaving = "yields",
                .acquired = {held.acquired, held.acquired + held.depth}};
  if (leaving == Leaving::kPark) {
    const WaitReason reason = fiber.block.load(std::memory_order_relaxed)->reason;
    lock.leaving = absl::StrCat("parks (", std::string(WaitReasonName(reason)), ")");
  }
  _Unwind_Backtrace(AddFrame, &lock.left);
  const Handler handler = installed_handler.load(std::memory_order_acquire);  // order: handler
  (handler == nullptr ? &Write : handler)(lock);
}

// The fiber may come back on another thread: its locks are taken off here, so that none is taken for another fiber's.
void OnLeave(const Record& fiber, Leaving leaving) {
  if (mine == nullptr || is_busy) return;
  for (Held& held : mine->held) {
    const void* address = held.address.load(std::memory_order_relaxed);
    if (address == nullptr || !held.address.compare_exchange_strong(address, nullptr, std::memory_order_relaxed,
                                                                    std::memory_order_relaxed)) {
      continue;
    }
    // A fiber that has ended may have left its own.
    if (held.fiber_id.load(std::memory_order_relaxed) != fiber.id.load(std::memory_order_relaxed)) continue;
    is_busy = true;
    if (IsNew(held)) Report(fiber, leaving, held, address);
    is_busy = false;
  }
}

[[maybe_unused]] const bool is_installed = [] {
  internal::leave_hook.store(&OnLeave, std::memory_order_relaxed);
  is_on.store(true, std::memory_order_relaxed);
  return true;
}();

bool TakeOff(Held& held, const void* address) {
  return held.address.load(std::memory_order_relaxed) == address &&
         held.address.compare_exchange_strong(address, nullptr, std::memory_order_acquire,  // order: held
                                              std::memory_order_relaxed);
}

absl::string_view NameOf(Kind kind) {
  switch (kind) {
    case Kind::kMutex: return "a mutex";
    case Kind::kReadLock: return "a shared mutex, shared";
    case Kind::kWriteLock: return "a shared mutex";
    case Kind::kSpinLock: return "a spin lock";
    case Kind::kStaticGuard: return "the guard of a static variable that it initialises";
    case Kind::kOnce: return "the flag of a call_once that it runs";
  }
  return "a lock";
}

}  // namespace

WEFT_EARLY bool IsToBeNoted() {
  return __atomic_load_n(reinterpret_cast<const bool*>(&is_on), __ATOMIC_RELAXED) && !is_busy && CurrentFiber() != nullptr;
}

void NoteAcquired(Kind kind, const void* address, void* const* frame) {
  const Record& fiber = *CurrentFiber();
  for (Held& held : MyList().held) {
    if (held.address.load(std::memory_order_relaxed) != nullptr) continue;
    held.kind.store(kind, std::memory_order_relaxed);
    held.fiber_id.store(fiber.id.load(std::memory_order_relaxed), std::memory_order_relaxed);
    held.depth = WalkFrames(fiber, frame, held.acquired);
    held.address.store(address, std::memory_order_release);  // order: held
    return;
  }
}

void NoteReleased(const void* address) {
  if (mine != nullptr) {
    for (size_t i = kMostHeld; i > 0; --i) {
      if (TakeOff(mine->held[i - 1], address)) return;
    }
  }
  // Another fiber's, or reported before. A shared one may be others' besides: then only the own one.
  const uint64_t fiber_id = CurrentFiber()->id.load(std::memory_order_relaxed);
  for (HeldList* list = all_lists.load(std::memory_order_acquire); list != nullptr; list = list->next) {  // order: lists
    for (Held& held : list->held) {
      if (held.address.load(std::memory_order_acquire) != address) continue;  // order: held
      if (held.kind.load(std::memory_order_relaxed) == Kind::kReadLock &&
          held.fiber_id.load(std::memory_order_relaxed) != fiber_id) {
        continue;
      }
      if (TakeOff(held, address)) return;
    }
  }
}

std::string HeldLock::ToString() const {
  std::string text = absl::StrCat(fiber, " ", leaving, " and holds ", NameOf(kind), " (0x",
                                  absl::Hex(reinterpret_cast<uintptr_t>(address)), "), acquired at");
  for (void* frame : acquired) absl::StrAppend(&text, "\n", internal::FrameLine(frame, true));
  absl::StrAppend(&text, "\nand ", leaving.substr(0, leaving.find(' ')), " at");
  for (void* frame : left) absl::StrAppend(&text, "\n", internal::FrameLine(frame, true));
  return text;
}

Handler SetHandler(Handler handler) {
  return installed_handler.exchange(handler, std::memory_order_acq_rel);  // order: handler
}

void ForgetReported() {
  for (auto& slot : reported) slot.store(0, std::memory_order_relaxed);
}

}  // namespace fiber::held_locks
