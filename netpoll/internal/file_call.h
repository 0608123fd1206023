// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_FILE_CALL_H_
#define WEFT_NETPOLL_INTERNAL_FILE_CALL_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "fiber/blocking_detached.h"
#include "fiber/deadline.h"
#include "fiber/internal/wait.h"

// How calls that may block on a device are made.
namespace netpoll::internal {

// For tests: whether io_uring is used where there is one, unless the environment forbids it (WEFT_IO_URING=0).
void SetMayUseRings(bool may);

// Whether the caller makes them himself: no fiber of a runtime, so there is nobody whom he would hold up.
bool IsBlockingHere();

// Makes `call`, here or on a thread of the pool, and waits for it to the end. OK: it was made. kDeadlineExceeded, kCancelled,
// kResourceExhausted: it never will be. Parks the fiber; blocks the thread when called from a plain one.
absl::Status MakeCall(absl::FunctionRef<void()> call, fiber::Deadline deadline);
// The same, whatever happens: where no thread is to be had within a second, here. Parks the fiber; blocks the thread.
void MakeCallRegardless(absl::FunctionRef<void()> call);

// The same for one that owns what it needs: its wait may end while it is being made.
template <class F>
fiber::internal::DetachedResultOf<F> MakeDetachedCall(F call, fiber::Deadline deadline) {
  if (!IsBlockingHere()) return fiber::BlockingDetached(std::move(call), deadline);
  if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
  return std::move(call)();
}

// Transfer is one system call's worth of reading, writing or syncing.
struct Transfer {
  enum class Kind : uint8_t { kRead, kWrite, kSync, kSyncData };

  Kind kind;
  int fd;
  char* buffer = nullptr;  // kWrite: only read
  size_t size = 0;
  uint64_t offset = 0;
};

// Makes it, and waits for it to the end. `*result` is what the system call returns, or -errno, if the status is OK. Otherwise
// (kDeadlineExceeded, kCancelled, kResourceExhausted) nothing was transferred. Parks the fiber; blocks the thread when called
// from a plain one.
absl::Status MakeTransfer(const Transfer& transfer, bool may_use_ring, fiber::Deadline deadline,
                          int64_t* result);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_FILE_CALL_H_
