// SPDX-License-Identifier: Apache-2.0
#include "fiber/this_fiber.h"

#include <sched.h>

#include <string>

#include "fiber/internal/context.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"

namespace fiber {

using internal::Record;
using internal::ThisThread;
using internal::Wait;
using internal::WaitBlock;

absl::Status Sleep(Deadline deadline) {
  Wait wait(WaitReason::kSleep, nullptr);
  if (absl::Status status = wait.Check(Deadline::Never()); !status.ok()) return status;
  if (deadline.is_past()) {
    internal::SpendTurn();
    return absl::OkStatus();
  }
  wait.Open();  // linked nowhere: only the deadline or a cancellation claims it
  const uint32_t outcome = wait.Park(deadline);
  return outcome == internal::kOutcomeDeadline && !wait.IsBoundBefore(deadline) ? absl::OkStatus()
                                                                               : wait.StatusOf(outcome);
}

void Yield() {
  if (ThisThread().current == nullptr) {
    sched_yield();  // cannot fail
    return;
  }
  internal::YieldFiber();
}

void MaybeYield() {
  internal::ThreadState& thread = ThisThread();
  if (thread.current != nullptr && thread.scheduler->IsSliceOver(thread)) internal::YieldFiber();
}

absl::Status CheckCancelled() { return internal::CallerStatus(); }

Deadline CurrentDeadline() {
  const internal::Ambient* ambient = internal::CallersBlock().ambient;
  return ambient == nullptr ? Deadline::Never() : Deadline::AtNanos(ambient->deadline_ns);
}

FiberId CurrentId() {
  const Record* current = ThisThread().current;
  return current == nullptr ? 0 : current->id.load(std::memory_order_relaxed);
}

std::string_view CurrentName() {
  const Record* current = ThisThread().current;
  if (current == nullptr) return {};
  const WaitBlock* block = current->block.load(std::memory_order_relaxed);
  return block->name == nullptr ? std::string_view() : std::string_view(*block->name);
}

void SetCurrentName(std::string_view name) {
  const Record* current = ThisThread().current;
  if (current == nullptr) return;
  WaitBlock* block = current->block.load(std::memory_order_relaxed);
  SetName(*block, new std::string(name));
}

}  // namespace fiber
