// SPDX-License-Identifier: Apache-2.0
//
// An explorer of interleavings. It runs the code that ships, compiled with WEFT_MODEL: each access
// to an Atomic, a Touch() and whatever blocks is a point at which another thread of the case may go
// first, and all orders are tried, one after the other, by depth-first search over those choices.
//
// Two ways to keep that finite and short:
//  - Sleep sets (Godefroid, "Partial-Order Methods for the Verification of Concurrent Systems",
//  1996): of orders that only
//    differ in accesses that do not touch each other (other addresses, or reads), one is tried.
//    Nothing is lost by that, as long as plain data that threads share is announced by Touch().
//  - A bound on preemptions, that is, switches away from a thread that could go on (Musuvathi and
//  Qadeer, "Iterative
//    Context Bounding", 2007), for cases that are too large otherwise: most bugs need one or two.
//    Without sleep sets, for the two together would lose orders.
//
// Sequentially consistent orders only: memory orders are argued at their tags, and left to
// ThreadSanitizer and the hardware.
#ifndef WEFT_TESTS_MODEL_EXPLORER_H_
#define WEFT_TESTS_MODEL_EXPLORER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"

namespace model {

// What is run under every order. Made anew for each.
struct Case {
  std::vector<std::function<void()>> threads;
  std::function<void()> finish = {};  // when all threads have ended
};

inline constexpr int kAllOrders = -1;

struct Options {
  int most_preemptions = kAllOrders;
  uint64_t most_schedules = 20'000'000;  // then it is incomplete
};

struct Result {
  uint64_t schedules = 0;  // orders that were run to their end
  uint64_t redundant = 0;  // of these, orders that turned out to be like another
  bool is_complete = false;
  std::string failure;  // the first; empty: none
};

Result Explore(const Options& options, absl::FunctionRef<Case()> make);

// For the threads of a case.
// ------------------------------------------------------------------------------------------

// The schedule has failed if not `ok`.
void Check(bool ok, const char* what);
// An access to plain data that threads of the case share.
void Touch(const void* address);
// Goes on when `is_true` returns true, and has then touched `address`: what is looked at changes
// only after a Touch() of that.
void Await(const void* address, std::function<bool()> is_true);
// One of 0 … n - 1, and in other orders the others: what the code leaves to chance.
uint32_t ChooseBelow(uint32_t n);
// An object's end: whatever comes later and touches one of its Atomics fails the schedule.
template <class T>
void Destroy(T& object);
// An object whose end is part of the case.
template <class T>
struct Mortal {
  template <class... A>
  explicit Mortal(A... arguments) {
    new (bytes) T(arguments...);
  }
  T& operator*() { return *std::launder(reinterpret_cast<T*>(bytes)); }
  T* operator->() { return &**this; }
  alignas(T) std::byte bytes[sizeof(T)];
};

// What time it is; a deadline that is not kNeverNs may pass at any point, whatever the clock says.
int64_t clock_ns();
void set_clock_ns(int64_t ns);
// The latest deadline at which a sleep of a thread has ended.
int64_t passed_ns();

// Implementation only below here.
// -------------------------------------------------------------------------------------

void TouchAll();

template <class T>
void Destroy(T& object) {
  TouchAll();
  object.~T();
}

}  // namespace model

#endif  // WEFT_TESTS_MODEL_EXPLORER_H_
