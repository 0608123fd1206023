// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/file_call.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "absl/status/statusor.h"
#include "fiber/internal/context.h"
#include "fiber/internal/event_wait.h"
#include "fiber/internal/thread_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/scheduler.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/file_ring.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {
namespace {

using fiber::Deadline;
using fiber::internal::ThreadPool;

// A copy from memory that is short enough for a worker.
constexpr size_t kMostNow = size_t{256} << 10;

bool AreRingsAllowed() {
  const char* const value = getenv("WEFT_IO_URING");
  return value == nullptr || std::string_view(value) != "0";
}
std::atomic<bool> may_use_rings{AreRingsAllowed()};

class FileCall final : public fiber::internal::PooledCall {
 public:
  explicit FileCall(absl::FunctionRef<void()> call) : call_(call) {}

 private:
  void Make() noexcept override { call_(); }

  const absl::FunctionRef<void()> call_;
};

int64_t TransferHere(const Transfer& transfer) {
  switch (transfer.kind) {
    case Transfer::Kind::kRead:
      return ReadAt(transfer.fd, transfer.buffer, transfer.size, transfer.offset);
    case Transfer::Kind::kWrite:
      return WriteAt(transfer.fd, transfer.buffer, transfer.size, transfer.offset);
    case Transfer::Kind::kSync:
      return SyncFile(transfer.fd, true);
    case Transfer::Kind::kSyncData:
      return SyncFile(transfer.fd, false);
  }
  return -EINVAL;
}

// A read of what is in memory. False: there may be more to it.
bool TryTransferNow(const Transfer& transfer, int64_t* result) {
  if (transfer.kind != Transfer::Kind::kRead) return false;
  *result = ReadAtNow(transfer.fd, transfer.buffer, std::min(transfer.size, kMostNow), transfer.offset);
  if (*result < 0) return false;
  fiber::internal::SpendTurn();
  return true;
}

// Null: there is none for the caller's runtime.
FileRing* RingOfCaller() {
  if (!may_use_rings.load(std::memory_order_relaxed)) return nullptr;
  const absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return nullptr;  // for want of descriptors
  return static_cast<FileRing*>((*poller)->OfferCompanion(&FileRing::Create));
}

// False: the ring has not done it, and somebody else is to.
bool TransferByRing(FileRing& ring, const Transfer& transfer, Deadline deadline, absl::Status* status,
                    int64_t* result) {
  using fiber::internal::EventWait;
  const fiber::WaitReason reason = transfer.kind == Transfer::Kind::kRead ? fiber::WaitReason::kRead
                                                                          : fiber::WaitReason::kWrite;
  FileRing::Operation operation(transfer);
  if (!ring.Start(operation)) return false;
  *status = EventWait::For(operation.done, reason, &ring, deadline);
  const bool is_late = !status->ok();
  if (is_late) {
    ring.Cancel(operation);
    EventWait::ForIt(operation.done, reason, &ring);
  }
  // -EFAULT is what the kernel makes of one that it would go on with in the thread that began it, which has ended: workers
  // come and go. A bad address is one to a system call, too.
  const bool was_done = operation.result != -ECANCELED && operation.result != -EINTR &&
                        operation.result != -EAGAIN && operation.result != -EFAULT;
  if (!was_done) return is_late;
  *status = absl::OkStatus();
  *result = operation.result;
  return true;
}

}  // namespace

void SetMayUseRings(bool may) {
  may_use_rings.store(may && AreRingsAllowed(), std::memory_order_relaxed);
}

bool IsBlockingHere() {
  const fiber::internal::ThreadState& thread = fiber::internal::ThisThread();
  return thread.current == nullptr || thread.scheduler->is_simulation();
}

absl::Status MakeCall(absl::FunctionRef<void()> call, Deadline deadline) {
  if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
  if (IsBlockingHere()) {
    call();
    return absl::OkStatus();
  }
  FileCall pooled(call);
  return ThreadPool::Get().RunToEnd(pooled, deadline);
}

void MakeCallRegardless(absl::FunctionRef<void()> call) {
  if (IsBlockingHere()) return call();
  FileCall pooled(call);
  // Threads that are all in calls without an end, of a dead server's files, say, must not keep who closes a file from his own.
  if (!ThreadPool::Get().RunRegardless(pooled, absl::Seconds(1)).ok()) call();
}

absl::Status MakeTransfer(const Transfer& transfer, bool may_use_ring, Deadline deadline,
                          int64_t* result) {
  if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
  if (IsBlockingHere()) {
    *result = TransferHere(transfer);
    return absl::OkStatus();
  }
  if (TryTransferNow(transfer, result)) return absl::OkStatus();
  if (FileRing* const ring = may_use_ring ? RingOfCaller() : nullptr; ring != nullptr) {
    absl::Status status;
    if (TransferByRing(*ring, transfer, deadline, &status, result)) return status;
  }
  const auto call = [&] { *result = TransferHere(transfer); };
  FileCall pooled(call);
  return ThreadPool::Get().RunToEnd(pooled, deadline);
}

}  // namespace netpoll::internal
