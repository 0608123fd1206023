// SPDX-License-Identifier: Apache-2.0
#include "fiber/blocking_detached.h"

#include "fiber/internal/thread_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/scheduler.h"

namespace fiber {

void SetMaxDetachedThreads(int most) { internal::ThreadPool::Get().SetMaxThreads(most); }

namespace internal {

bool IsSimulated() {
  const ThreadState& thread = ThisThread();
  return thread.scheduler != nullptr && thread.scheduler->is_simulation();
}

void LogUnwanted(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    LogLine("a BlockingDetached call that nobody waits for any more ended with an exception: %s", e.what());
  } catch (...) {
    LogLine("a BlockingDetached call that nobody waits for any more ended with an exception");
  }
}

}  // namespace internal
}  // namespace fiber
