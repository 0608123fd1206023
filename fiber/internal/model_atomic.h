// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_MODEL_ATOMIC_H_
#define WEFT_FIBER_INTERNAL_MODEL_ATOMIC_H_

#include <atomic>
#include <type_traits>

namespace fiber::internal {

// The Atomic of the model build: before each access an explorer of interleavings (tests/model) may
// let another thread go first. All accesses are sequentially consistent there; the orders asked for
// are not modelled.
enum class ModelAccess { kRead, kWrite };
void BeforeModelAccess(const void* address, ModelAccess access);
// After one that has left another value than there was.
void AfterModelChange(const void* address);
// In a loop that spins until the word accessed last has another value.
void ModelSpin();
// In a loop that looks at many words: until somebody else has done something.
void ModelGiveWay();
// Accesses in between are use after destruction.
void ModelDestroyed(const void* address);
void ModelCreated(const void* address);

template <class T>
class Atomic {
 public:
  constexpr Atomic() : Atomic(T()) {}
  constexpr Atomic(T value) : value_(value) {  // NOLINT: as std::atomic
    if (!std::is_constant_evaluated()) ModelCreated(this);
  }
  constexpr ~Atomic() {
    if (!std::is_constant_evaluated()) ModelDestroyed(this);
  }
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  T load(std::memory_order) const {
    BeforeModelAccess(this, ModelAccess::kRead);
    return value_;
  }
  void store(T value, std::memory_order) {
    (void)Change([&](T) { return value; });
  }
  T exchange(T value, std::memory_order) {
    return Change([&](T) { return value; });
  }
  T fetch_add(T by, std::memory_order) {
    return Change([&](T old) { return static_cast<T>(old + by); });
  }
  T fetch_sub(T by, std::memory_order) {
    return Change([&](T old) { return static_cast<T>(old - by); });
  }
  T fetch_or(T bits, std::memory_order) {
    return Change([&](T old) { return static_cast<T>(old | bits); });
  }
  T fetch_and(T bits, std::memory_order) {
    return Change([&](T old) { return static_cast<T>(old & bits); });
  }
  bool compare_exchange_strong(T& expected, T desired, std::memory_order, std::memory_order) {
    BeforeModelAccess(this, ModelAccess::kWrite);
    if (value_ != expected) {
      expected = value_;
      return false;
    }
    value_ = desired;
    if (desired != expected) AfterModelChange(this);
    return true;
  }
  bool compare_exchange_weak(T& expected, T desired, std::memory_order success,
                             std::memory_order failure) {
    return compare_exchange_strong(expected, desired, success, failure);
  }

 private:
  template <class F>
  T Change(F next) {
    BeforeModelAccess(this, ModelAccess::kWrite);
    const T old = value_;
    value_ = next(old);
    if (value_ != old) AfterModelChange(this);
    return old;
  }

  T value_;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_MODEL_ATOMIC_H_
