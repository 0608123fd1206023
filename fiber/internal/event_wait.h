// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_EVENT_WAIT_H_
#define WEFT_FIBER_INTERNAL_EVENT_WAIT_H_

#include <new>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/internal/wait.h"
#include "fiber/wait_reason.h"

namespace fiber::internal {

// Waits for an event that stands for something else, which messages and dumps are to name.
struct EventWait {
  // As Event::Wait(), but nothing escapes: who waits has left to somebody else what must not be gone while that uses it.
  // Without memory to say why it ended, kResourceExhausted. REQUIRES: CallersBlock() was called. Parks the fiber; blocks the
  // thread when called from a plain one.
  static absl::Status For(Event& event, WaitReason reason, const void* object, Deadline deadline) {
    try {
      Wait wait(reason, object);
      return event.WaitAs(wait, deadline);
    } catch (const std::bad_alloc&) {
      return absl::Status(absl::StatusCode::kResourceExhausted, "");
    }
  }
  // Until it is set or `deadline` has come, whoever is cancelled: true, it is set. Parks the fiber; blocks the thread when called from
  // a plain one.
  static bool ForIt(Event& event, WaitReason reason, const void* object, Deadline deadline = {}) {
    Wait wait(reason, object, Interruptible::kNo);
    return event.WaitAs(wait, deadline).code() == absl::StatusCode::kOk;
  }
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_EVENT_WAIT_H_
