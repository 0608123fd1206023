// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_INSTALL_H_
#define WEFT_SCHED_INTERNAL_INSTALL_H_

#include <memory>

#include "absl/functional/function_ref.h"
#include "fiber/scheduler.h"
#include "sched/event_source.h"

namespace sched::internal {

// The event source of a runtime, where its idle workers sleep. The first call makes it by `make` and moves sleepers over
// to it; it lives as long as the runtime. Null if `make` returned null (try again later), or if `scheduler` is not a
// runtime's. Any thread.
EventSource* InstalledEventSource(fiber::Scheduler* scheduler,
                                  absl::FunctionRef<std::unique_ptr<EventSource>()> make);

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_INSTALL_H_
