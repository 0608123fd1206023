// SPDX-License-Identifier: Apache-2.0
#include "sched/runtime.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/thread_state.h"
#include "sched/internal/core.h"

namespace sched {
namespace {

internal::Core* MakeCore(const RuntimeOptions& options) {
  auto core = std::make_unique<internal::Core>(options);
  core->Start();
  try {
    fiber::internal::RegisterScheduler(*core);
  } catch (...) {
    core->Stop();
    throw;
  }
  return core.release();
}

}  // namespace

Runtime::Runtime() : Runtime(RuntimeOptions{}) {}

Runtime::Runtime(RuntimeOptions options) : core_(MakeCore(options)) {}

Runtime::~Runtime() {
  if (core_->is_copy()) return;  // what its threads and fibers were doing can neither be ended nor taken apart
  if (absl::Status status = Shutdown(core_->options().drain); !status.ok()) {
    fiber::internal::Fatal("a runtime ends, but not its fibers: %s",
                           std::string(status.message()).c_str());
  }
  delete core_;
}

absl::Status Runtime::Shutdown(fiber::Deadline deadline) {
  if (core_->is_stopped()) return absl::OkStatus();
  if (core_->is_copy()) {
    return absl::FailedPreconditionError("the runtime runs in the process that this one was forked from");
  }
  const fiber::internal::ThreadState& thread = fiber::internal::ThisThread();
  if (thread.scheduler == core_ || thread.blocks_for == core_) {
    fiber::internal::Fatal("a runtime is shut down by one of its own fibers, which could never end");
  }
  core_->CancelAll();
  if (!core_->WaitUntilDrained(deadline.nanos())) {
    return absl::DeadlineExceededError(
        absl::StrCat("the runtime's fibers were cancelled and given time to end; ", core_->DescribeFibers()));
  }
  fiber::internal::UnregisterScheduler(*core_);
  core_->Stop();
  return absl::OkStatus();
}

Stats Runtime::stats() const { return core_->stats(); }

fiber::Scheduler* Runtime::scheduler() const { return core_; }

}  // namespace sched
