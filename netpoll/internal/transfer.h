// SPDX-License-Identifier: Apache-2.0
//
// What reads and writes of all streams over descriptors have in common: the system call, the wait, and what is looked at
// when.
#ifndef WEFT_NETPOLL_INTERNAL_TRANSFER_H_
#define WEFT_NETPOLL_INTERNAL_TRANSFER_H_

#include <errno.h>

#include <algorithm>
#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/context.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/stream.h"

namespace netpoll::internal {

// What one system call is given at most. While the other end keeps up the kernel goes on and on, without end for all that
// a worker, a deadline or Close() can do.
inline constexpr size_t kMostAtOnce = size_t{256} << 10;

// Writes `total` bytes. `send_rest(fd, done)` is one system call for what is left after `done` bytes, with -errno for a
// result; `peer_text(fd)` says in messages who does not get it.
template <class SendRest, class PeerText>
IoResult WriteAll(Descriptor* descriptor, size_t total, fiber::Deadline deadline, SendRest send_rest,
                  PeerText peer_text) {
  if (descriptor == nullptr) return {0, ClosedStatus()};
  if (total == 0) return {0, descriptor->is_closing() ? ClosedStatus() : absl::OkStatus()};
  FlowLock lock(*descriptor, Direction::kWrite, fiber::WaitReason::kWrite, deadline);
  IoResult result{0, lock.status()};
  if (!result.ok()) return result;
  const int fd = descriptor->fd();
  for (;;) {
    const ssize_t n = send_rest(fd, result.bytes);
    if (n >= 0) {
      result.bytes += static_cast<size_t>(n);
      if (result.bytes == total) return result;
      // A peer that keeps up would keep this call from ever waiting, where it lets others run and looks at these. The flow
      // stays locked, as it does while the call waits.
      fiber::internal::SpendTurn();
      if (result.status = lock.Check(); !result.ok()) return result;
      continue;
    }
    if (n != -EAGAIN) {
      result.status = ErrnoStatus(static_cast<int>(-n), "write to", peer_text(fd));
      return result;
    }
    // Old news, in most cases: clearing it before every write would cost all of those that succeed.
    if (lock.flow().slot.is_ready()) {
      lock.flow().slot.ClearReady();
      continue;
    }
    result.status = lock.Await();
    if (!result.ok()) return result;
  }
}

// Reads what is there, at most `buffer`. `receive(fd, data, size)` is one system call, with -errno for a result.
template <class Receive, class PeerText>
absl::StatusOr<size_t> ReadSome(Descriptor* descriptor, std::span<char> buffer,
                                fiber::Deadline deadline, Receive receive, PeerText peer_text) {
  if (descriptor == nullptr) return ClosedStatus();
  if (buffer.empty()) {
    if (descriptor->is_closing()) return ClosedStatus();
    return size_t{0};
  }
  FlowLock lock(*descriptor, Direction::kRead, fiber::WaitReason::kRead, deadline);
  if (!lock.status().ok()) return lock.status();
  Flow& flow = lock.flow();
  const int fd = descriptor->fd();
  const size_t size = std::min(buffer.size(), kMostAtOnce);
  bool is_last_try = false;
  for (;;) {
    // Drained, and no news since: the system call would find nothing. Nobody brings news of an orphan.
    if (!flow.is_drained || flow.slot.is_ready() || descriptor->is_orphan()) {
      flow.slot.ClearReady();
      flow.is_drained = false;
      const ssize_t n = receive(fd, buffer.data(), size);
      if (n > 0) {
        // What comes after this call is an edge of its own. What came with it is not: hence the sticky bits.
        flow.is_drained = static_cast<size_t>(n) < size && descriptor->short_read_drains();
        return static_cast<size_t>(n);
      }
      if (n == 0) return absl::OutOfRangeError("end of stream");
      if (n != -EAGAIN) {
        return ErrnoStatus(static_cast<int>(-n), "read from", peer_text(fd));
      }
      flow.is_drained = true;
    }
    absl::Status status = lock.Await();
    if (status.ok()) continue;
    // Orphaned meanwhile: there may have been news that nobody came to tell.
    if (!absl::IsFailedPrecondition(status) || !lock.has_lock() || is_last_try) return status;
    is_last_try = true;
  }
}

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_TRANSFER_H_
