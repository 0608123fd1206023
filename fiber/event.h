// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_EVENT_H_
#define WEFT_FIBER_EVENT_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

namespace internal {
template <class H>
class EventClause;
struct ChildEvent;
struct EventWait;
class Wait;
}

// Event is something that happens once, and that anybody can wait for, before and after. It cannot
// be unset.
//
//   fiber::Event ready;
//   auto server = fiber::Spawn([&] { LoadTables(); ready.Set(); Serve(); });
//   if (absl::Status status = ready.Wait(absl::Seconds(5)); !status.ok()) return status;
//
// Thread safety: any fiber, any thread.
// Fairness: Set() releases all who wait, in the order of their coming.
// Memory ordering: what happened before the Set() that set it is visible where is_set() is true or
// Wait() returned OK.
// Lifetime: may be destroyed as soon as it is known to be set, even while the Set() that set it is
// about to return; but no other call may be under way. Destroying it while somebody waits ends the
// process.
class Event {
 public:
  constexpr Event() = default;
  ~Event() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Sets it and releases everybody who waits. No effect if it is set. Never blocks.
  void Set();

  // Whether it is set. Never blocks.
  bool is_set() const { return (word_.Load() & kSet) != 0; }

  // Waits until it is set: OK. Parks the fiber; blocks the thread when called from a plain one.
  // kDeadlineExceeded or kCancelled: it was not set in time. Both are looked at first, as
  // everywhere: with a deadline that has passed it fails even if the event is set.
  [[nodiscard]] absl::Status Wait(Deadline deadline = {});

 private:
  template <class H>
  friend class internal::EventClause;
  friend struct internal::ChildEvent;
  friend struct internal::EventWait;

  static constexpr uint64_t kSet = uint64_t{1} << internal::StateWord::kFirstBit;

  // Until it is set, whoever is cancelled.
  void WaitUninterrupted();
  absl::Status WaitAs(internal::Wait& wait, Deadline deadline);
  // For a select's clause. False: it is set, and nothing was linked.
  [[nodiscard]] bool TryLink(internal::Waiter& waiter);
  // Takes it out, unless Set() has.
  void Unlink(internal::Waiter& waiter);
  [[noreturn]] void DieWithWaiters();

  // kSet implies that nobody is linked.
  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
};

}  // namespace fiber

#endif  // WEFT_FIBER_EVENT_H_
