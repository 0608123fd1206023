// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/futex.h"

#include <errno.h>
#include <linux/futex.h>
#include <time.h>

#include <cstring>

#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {

bool FutexWait(Atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns) {
  timespec at{};
  timespec* timeout = nullptr;
  if (deadline_ns != kNeverNs) {
    if (deadline_ns < 0) deadline_ns = 0;
    at.tv_sec = static_cast<time_t>(deadline_ns / 1'000'000'000);
    at.tv_nsec = static_cast<long>(deadline_ns % 1'000'000'000);
    timeout = &at;
  }
  // The bitset form takes an absolute time on the monotonic clock.
  const long result = System().futex(reinterpret_cast<uint32_t*>(&word),
                                     FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, timeout,
                                     FUTEX_BITSET_MATCH_ANY);
  if (result == 0) return true;
  switch (errno) {
    case ETIMEDOUT: return false;
    case EAGAIN:
    case EINTR: return true;
    default: Fatal("futex wait failed: %s", strerror(errno));
  }
}

void FutexWake(Atomic<uint32_t>& word, int count) {
  // EFAULT: the memory is gone, and whoever waited there with it.
  if (System().futex(reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG,
                     static_cast<uint32_t>(count), nullptr, 0) < 0 &&
      errno != EFAULT) {
    Fatal("futex wake failed: %s", strerror(errno));
  }
}

}  // namespace fiber::internal
