// SPDX-License-Identifier: Apache-2.0
//
// StackDepot's word about a line that nobody will shorten.
#include <algorithm>
#include <cstdio>
#include <string_view>
#include <utility>

#include "absl/strings/string_view.h"
#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "fiber/wait_reason.h"

namespace fiber::internal {
namespace {

constexpr int64_t kStallLogIntervalNs = 10'000'000'000;
constexpr int64_t kStallLookNs = 250'000'000;
constexpr int64_t kStallLookShare = 32;  // one part in so many of a worker's time, at most
constexpr size_t kMostVisits = 4096;     // by one call; any number would do

// The fibers of the process, as long as none is found that runs or will run by itself.
struct StillFibers {
  size_t unstarted = 0;
  size_t parked = 0;
  size_t waiting_for[kWaitReasons] = {};
};

bool IsWokenFromInside(WaitReason reason) {
  switch (reason) {
    case WaitReason::kRead:
    case WaitReason::kWrite:
    case WaitReason::kAccept:
    case WaitReason::kConnect:
    case WaitReason::kDescriptor:
    case WaitReason::kProcess:
    case WaitReason::kBlockingCall:
    case WaitReason::kSelect:  // which may have clauses of these kinds
      return false;
    default: return true;
  }
}

// False: this fiber runs, or will by itself, or is another scheduler's, whose fibers are not for us to hold. Those that have
// ended do not count.
bool CountIfStill(Record& fiber, const Scheduler& scheduler, StillFibers& still) {
  const State state = fiber.state.load(std::memory_order_relaxed);
  if (state == State::kFree || state == State::kDone) return true;
  if (state == State::kNew) {
    ++still.unstarted;
    return true;
  }
  if (SchedulerOf(fiber) != &scheduler || !TryHold(fiber)) return false;
  const WaitBlock& block = *fiber.block.load(std::memory_order_acquire);  // order: owner
  const bool is_still = block.timer.deadline_ns.load(std::memory_order_relaxed) == kNeverNs &&
                        IsWokenFromInside(block.reason);
  ++still.parked;
  ++still.waiting_for[static_cast<int>(block.reason)];
  Release(fiber);
  return is_still;
}

// On the heap nothing: there may be none.
void LogStall(const StillFibers& still, absl::string_view limit) {
  char reasons[256] = "";
  size_t size = 0;
  for (int i = 0; i < kWaitReasons; ++i) {
    if (still.waiting_for[i] == 0 || size >= sizeof reasons) continue;
    const std::string_view name = WaitReasonName(static_cast<WaitReason>(i));
    size += static_cast<size_t>(snprintf(reasons + size, sizeof reasons - size, "%s%zu in %.*s",
                                         size == 0 ? "" : ", ", still.waiting_for[i],
                                         static_cast<int>(name.size()), name.data()));
  }
  LogLine("%zu fibers wait unstarted, and the %zu that have stacks are all parked for good (%s), "
          "unless a thread that is no worker unparks one; %.*s",
          still.unstarted, still.parked, reasons, static_cast<int>(limit.size()), limit.data());
}

}  // namespace

void StackDepot::LookForStall(const Scheduler& scheduler, int64_t now_ns) {
  {
    SpinLockHolder hold(lock_);
    if (is_stall_said_ || now_ns < next_stall_look_ns_) return;
    next_stall_look_ns_ = now_ns + kStallLookNs;
  }
  StillFibers still;
  bool is_stall = true;
  size_t from = 0;
  do {
    from = VisitRecords(from, kMostVisits, [&](Record& fiber) {
      is_stall = CountIfStill(fiber, scheduler, still);
      return is_stall;
    });
  } while (is_stall && from != 0);
  const int64_t end_ns = MonotonicNs();
  absl::Status failure;
  {
    SpinLockHolder hold(lock_);
    next_stall_look_ns_ =
        std::max(next_stall_look_ns_, end_ns + kStallLookShare * (end_ns - now_ns));
    is_stall = is_stall && still.unstarted == waiting_.load(std::memory_order_relaxed);
    if (!std::exchange(is_stall_seen_, is_stall) || !is_stall) return;
    is_stall_said_ = true;
    next_stall_look_ns_ = now_ns + kStallLogIntervalNs;
    for (const Pool& pool : pools_) {
      if (pool.waiting > 0) failure = pool.carve_failure;
    }
  }
  LogStall(still, failure.ok() ? absl::string_view(kStackMemoryUsedUp) : LimitIn(failure));
}

}  // namespace fiber::internal
