// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_EVENT_WAIT_H_
#define WEFT_FIBER_INTERNAL_EVENT_WAIT_H_

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/internal/wait.h"
#include "fiber/wait_reason.h"

namespace fiber::internal {

// Waits for an event that stands for something else, which messages and dumps are to name.
struct EventWait {
  // As Event::Wait(). Parks the fiber; blocks the thread when called from a plain one.
  static absl::Status For(Event& event, WaitReason reason, const void* object, Deadline deadline) {
    Wait wait(reason, object);
    return event.WaitAs(wait, deadline);
  }
  // Until it is set, whoever is cancelled. Parks the fiber; blocks the thread when called from a plain one.
  static void ForIt(Event& event, WaitReason reason, const void* object) {
    Wait wait(reason, object, Interruptible::kNo);
    event.WaitAs(wait, Deadline::Never()).IgnoreError();  // nothing else can end it
  }
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_EVENT_WAIT_H_
