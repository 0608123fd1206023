// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_FIBER_LOCAL_H_
#define WEFT_FIBER_FIBER_LOCAL_H_

#include <cstdint>

#include "fiber/internal/local_slot.h"

namespace fiber {

// FiberLocal is a variable that each fiber (and plain thread) has one of: made on first use, destroyed as the fiber ends,
// before whoever joins it goes on; the newest first. What thread_local is for threads, and is not for fibers, since these
// move from thread to thread.
//
//   fiber::FiberLocal<std::mt19937_64> generator;      // at namespace scope
//   int Roll() { return 1 + (*generator)() % 6; }
//
// T is value-initialized. Its constructor and destructor may park, and use other fiber-locals.
//
// Costs: a walk along those that the fiber has used, from the newest on; one allocation each.
//
// Thread safety: any fiber, any thread; the values are nobody else's.
// Lifetime: a value stays until its fiber ends, also when the FiberLocal is gone before.
template <class T>
class FiberLocal {
 public:
  // Never blocks.
  FiberLocal() : key_(internal::NewLocalKey()) {}
  FiberLocal(const FiberLocal&) = delete;
  FiberLocal& operator=(const FiberLocal&) = delete;

  // This fiber's. Throws std::bad_alloc, and what T's constructor throws. Never blocks, but for what that does.
  T& operator*() const {
    if (internal::LocalSlot* slot = internal::FindLocal(key_); slot != nullptr) {
      return static_cast<Slot*>(slot)->value;
    }
    auto* slot = new Slot;
    slot->key = key_;
    slot->destroy = [](internal::LocalSlot* self) { delete static_cast<Slot*>(self); };
    internal::AddLocal(*slot);
    return slot->value;
  }
  // As above. Never blocks, but for what T's constructor does.
  T* operator->() const { return &**this; }

 private:
  struct Slot : internal::LocalSlot {
    T value{};
  };

  const uint64_t key_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_FIBER_LOCAL_H_
