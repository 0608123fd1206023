// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_FUTEX_SOURCE_H_
#define WEFT_SCHED_INTERNAL_FUTEX_SOURCE_H_

#include <cstdint>

#include "fiber/internal/atomic.h"
#include "fiber/internal/futex.h"
#include "sched/event_source.h"

namespace sched::internal {

// FutexSource is where idle workers of a runtime without descriptors sleep: it brings no events, only interrupts.
//
// An interrupt is a permit that the next sleeper uses up, so it is never lost.
// order: futex-source — seq_cst: a permit is counted before the sleeper looks for one, or the kernel's own check of the
// word finds it.
class FutexSource final : public EventSource {
 public:
  void Poll(int64_t deadline_ns) override {
    for (;;) {
      uint32_t permits = permits_.load(std::memory_order_seq_cst);  // order: futex-source
      while (permits > 0) {
        if (permits_.compare_exchange_weak(permits, permits - 1,
                                           std::memory_order_seq_cst,  // order: futex-source
                                           std::memory_order_seq_cst)) {
          return;
        }
      }
      if (!fiber::internal::FutexWait(permits_, 0, deadline_ns)) return;
    }
  }

  void Interrupt() override {
    permits_.fetch_add(1, std::memory_order_seq_cst);  // order: futex-source
    fiber::internal::FutexWake(permits_, 1);
  }

 private:
  fiber::internal::Atomic<uint32_t> permits_{0};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_FUTEX_SOURCE_H_
