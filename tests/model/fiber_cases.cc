// SPDX-License-Identifier: Apache-2.0
//
// Parking, claims, timers, cancellation and primitives, by fibers: the files that ship, on a
// stand-in for the scheduler.
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/join.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "fiber/mutex.cc"
#include "fiber/semaphore.cc"
#include "tests/model/case_list.h"
#include "tests/model/fibers.cc"
#include "tests/model/fibers.h"

namespace model {
namespace {

using fiber::Deadline;
using fiber::Event;
using std::make_shared;

const Deadline kSoon = Deadline::AtNanos(1000);
const Deadline kSooner = Deadline::AtNanos(500);

// One wait, whoever wakes it.
Case ParkAndUnpark() {
  auto world = make_shared<World>(1);
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0, [event] { Check(event->Wait().ok(), "it failed"); }),
                      [event] { event->Set(); }, world->Hold(0)}};
}

// Two waits one after the other: what comes late for the first must not end the second.
Case LateTimerOfAnEarlierWait() {
  auto world = make_shared<World>(1);
  auto first = make_shared<Event>();
  auto second = make_shared<Event>();
  return {
      .threads = {world->Run(0,
                             [first, second] {
                               const absl::Status status = first->Wait(kSoon);
                               Check(status.ok() || absl::IsDeadlineExceeded(status), "an odd end");
                               Check(second->Wait().ok(), "a wait without a deadline timed out");
                             }),
                  [first, second] {
                    first->Set();
                    second->Set();
                  },
                  world->ExpireTimers(2)}};
}

// A wait with a later deadline under an entry filed for an earlier one; and the other way round.
Case DeadlineIsMovedBackAndForth() {
  auto world = make_shared<World>(1);
  auto never = make_shared<Event>();
  return {
      .threads = {world->Run(0,
                             [never] {
                               Check(absl::IsDeadlineExceeded(never->Wait(kSooner)), "no deadline");
                               Check(absl::IsDeadlineExceeded(never->Wait(kSoon)), "no deadline");
                               Check(absl::IsDeadlineExceeded(never->Wait(kSooner)), "no deadline");
                             }),
                  world->ExpireTimers(6)}};
}

// A deadline that did not come to pass, then a longer wait: its timer must not be lost.
Case TimerIsReusedByTheNextWait() {
  auto world = make_shared<World>(1);
  auto event = make_shared<Event>();
  auto never = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [event, never] {
                                   event->Wait(kSooner).IgnoreError();
                                   Check(absl::IsDeadlineExceeded(never->Wait(kSoon)),
                                         "no deadline");
                                 }),
                      [event] { event->Set(); }, world->ExpireTimers(4)}};
}

// An earlier runtime, whose fiber had the same block, still holds an entry of the same instant: it does not count, and what
// counts is not lost to it.
Case EntryOfAnEarlierRuntime() {
  auto world = make_shared<World>(1);
  auto event = make_shared<Event>();
  auto never = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [event, never] {
                                   event->Wait(kSooner).IgnoreError();
                                   Check(absl::IsDeadlineExceeded(never->Wait(kSoon)),
                                         "no deadline");
                                 }),
                      [event] { event->Set(); },
                      [world] {
                        const int64_t ns = kSooner.nanos();
                        Check(OnTimer(world->block(0), ns, ns, /*by=*/nullptr) ==
                                  fiber::internal::kNeverNs,
                              "an entry that does not count is filed anew");
                      },
                      world->ExpireTimers(4)}};
}

Case WakerTimerAndCancellerRace() {
  auto world = make_shared<World>(1);
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [event] {
                                   const absl::Status status = event->Wait(kSoon);
                                   Check(status.ok() ? event->is_set()
                                                     : absl::IsDeadlineExceeded(status) ||
                                                           absl::IsCancelled(status),
                                         "an odd end");
                                 }),
                      [event] { event->Set(); }, world->Cancel(0), world->ExpireTimers(1)}};
}

// A cancellation is seen by the wait that is open, or by the next: never by none.
Case CancellationEndsAWait() {
  auto world = make_shared<World>(1);
  auto never = make_shared<Event>();
  return {.threads = {
              world->Run(0, [never] { Check(absl::IsCancelled(never->Wait()), "not cancelled"); }),
              world->Cancel(0), world->Hold(0)}};
}

// A lock cannot fail: what is meant for another wait must not end it.
Case CancellationDoesNotEndALock() {
  auto world = make_shared<World>(2);
  auto mutex = make_shared<fiber::Mutex>();
  auto inside = make_shared<int>(0);
  auto use = [mutex, inside]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex->lock();
    Touch(inside.get());
    Check(++*inside == 1, "two hold the mutex");
    Touch(inside.get());
    --*inside;
    mutex->unlock();
  };
  return {.threads = {world->Run(0, use), world->Run(1, use), world->Cancel(0)}};
}

Case MutexByFibersWithTimeouts() {
  auto world = make_shared<World>(3);
  auto mutex = make_shared<fiber::Mutex>();
  auto inside = make_shared<int>(0);
  auto use = [mutex, inside](Deadline deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!mutex->Lock(deadline).ok()) return;
    Touch(inside.get());
    Check(++*inside == 1, "two hold the mutex");
    Touch(inside.get());
    --*inside;
    mutex->unlock();
  };
  return {.threads = {world->Run(0, [use] { use(kSoon); }), world->Run(1, [use] { use({}); }),
                      world->Run(2, [use] { use({}); }), world->ExpireTimers(1)},
          .finish = [mutex]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
            Check(mutex->try_lock(), "it is held in the end");
            mutex->unlock();
          }};
}

Case SemaphoreByFibersWithTimeouts() {
  auto world = make_shared<World>(2);
  auto semaphore = make_shared<fiber::Semaphore>(1);
  auto taken = make_shared<int>(0);
  auto take = [semaphore, taken](Deadline deadline) {
    if (semaphore->Acquire(1, deadline).ok()) ++*taken;
  };
  return {.threads = {world->Run(0, [take] { take(kSoon); }), world->Run(1, [take] { take({}); }),
                      world->ExpireTimers(1), [semaphore] { semaphore->Release(1); }},
          .finish = [semaphore, taken] {
            while (semaphore->TryAcquire()) ++*taken;
            Check(*taken == 2, "a permit was lost or made");
          }};
}

// The only permit goes to the one who is cancelled, or past him.
Case SemaphoreByFibersWithCancellation() {
  auto world = make_shared<World>(2);
  auto semaphore = make_shared<fiber::Semaphore>(0);
  return {
      .threads = {world->Run(
                      0, [semaphore] { Check(semaphore->Acquire(1).ok(), "it was cancelled"); }),
                  world->Run(1,
                             [semaphore] {
                               if (semaphore->Acquire(1).ok()) semaphore->Release(1);
                             }),
                  [semaphore, world] {
                    semaphore->Release(1);
                    world->Cancel(1)();
                  }},
      .finish = [semaphore] { Check(!semaphore->TryAcquire(), "a permit was made"); }};
}

// Join.
// -------------------------------------------------------------------------------------------------

Case JoinMeetsTheEnd() {
  auto world = make_shared<World>(2);
  return {.threads = {
              world->Run(0,
                         [world] {
                           const absl::Status status = fiber::internal::WaitDone(
                               world->record(1), kSoon, fiber::internal::Interruptible::kYes);
                           if (absl::IsDeadlineExceeded(status)) {
                             Check(fiber::internal::WaitDone(world->record(1), Deadline::Never(),
                                                             fiber::internal::Interruptible::kNo)
                                       .ok(),
                                   "a join without a deadline failed");
                           }
                           Check(fiber::internal::IsDone(world->record(1)),
                                 "joined before the end");
                         }),
              world->Run(1,
                         [world] {
                           Check(fiber::internal::FinishJoin(fiber::internal::ThisThread(),
                                                             world->record(1)),
                                 "not detached");
                         }),
              world->ExpireTimers(2)}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"ParkAndUnpark", ParkAndUnpark},
      {"LateTimerOfAnEarlierWait", LateTimerOfAnEarlierWait},
      {"DeadlineIsMovedBackAndForth", DeadlineIsMovedBackAndForth},
      {"TimerIsReusedByTheNextWait", TimerIsReusedByTheNextWait},
      {"EntryOfAnEarlierRuntime", EntryOfAnEarlierRuntime, 2},
      {"WakerTimerAndCancellerRace", WakerTimerAndCancellerRace},
      {"CancellationEndsAWait", CancellationEndsAWait},
      {"CancellationDoesNotEndALock", CancellationDoesNotEndALock},
      {"MutexByFibersWithTimeouts", MutexByFibersWithTimeouts, 2},
      {"SemaphoreByFibersWithTimeouts", SemaphoreByFibersWithTimeouts},
      {"SemaphoreByFibersWithCancellation", SemaphoreByFibersWithCancellation, 3},
      {"JoinMeetsTheEnd", JoinMeetsTheEnd},
  };
  return kCases;
}

}  // namespace model
