// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_PARKED_H_
#define WEFT_TESTS_PARKED_H_

#include <atomic>

#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/this_fiber.h"

namespace tests {

// Lets other fibers go until the one of `handle` waits for something. On several workers it may run
// beside this.
template <class T>
void WaitUntilParked(const fiber::JoinHandle<T>& handle) {
  using fiber::internal::Record;
  using fiber::internal::State;
  bool is_parked = false;
  while (!is_parked && !handle.is_done()) {
    fiber::Yield();
    fiber::internal::ForEachRecord([&](Record& record) {
      if (record.id.load(std::memory_order_acquire) == handle.id() &&
          record.state.load(std::memory_order_acquire) == State::kParked) {
        is_parked = true;
      }
    });
  }
}

}  // namespace tests

#endif  // WEFT_TESTS_PARKED_H_
