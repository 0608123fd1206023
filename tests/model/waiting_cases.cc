// SPDX-License-Identifier: Apache-2.0
//
// Primitives, claims and waits, by threads: the files that ship, and no scheduler.
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "fiber/mutex.cc"
#include "fiber/semaphore.cc"
#include "fiber/wait_group.cc"
#include "tests/model/case_list.h"

// What fibers would need.
namespace fiber::internal {
ThreadState& Switch(ThreadState& thread, Record*, After) {
  Fatal("a thread cannot switch");
  return thread;
}
void YieldFiber() { Fatal("a thread cannot yield"); }
std::string Describe(const Record&) { return "fiber"; }
std::string DescribeUnheld(Record&) { return "fiber"; }
void CheckCanarySlow(const WaitBlock&) {}
}  // namespace fiber::internal

namespace model {
namespace {

using fiber::Deadline;
using std::make_shared;

// It may pass at any time: see clock_ns().
const Deadline kSoon = Deadline::AtNanos(int64_t{1} << 60);

// Event.
// -------------------------------------------------------------------------------------------------

Case EventIsDestroyedAsSoonAsTheWaitReturns() {
  auto event = make_shared<Mortal<fiber::Event>>();
  return {.threads = {[event] { (*event)->Set(); },
                      [event] {
                        Check((*event)->Wait().ok(), "a wait without a deadline failed");
                        Destroy(**event);
                      }}};
}

Case EventIsDestroyedByWhoSawItSet() {
  auto event = make_shared<Mortal<fiber::Event>>();
  auto waited = make_shared<bool>(false);
  return {.threads = {[event] { (*event)->Set(); },
                      [event, waited] {
                        (*event)->Wait(kSoon).IgnoreError();
                        Touch(waited.get());
                        *waited = true;
                      },
                      [event, waited] {
                        Await(waited.get(), [waited] { return *waited; });
                        while (!(*event)->is_set()) fiber::internal::CpuRelax();
                        Destroy(**event);
                      }}};
}

Case EventReleasesAllWhateverTimesOut() {
  auto event = make_shared<fiber::Event>();
  return {.threads = {[event] { event->Set(); },
                      [event] {
                        const absl::Status status = event->Wait(kSoon);
                        Check(status.ok() ? event->is_set() : absl::IsDeadlineExceeded(status),
                              "a wait that returned OK before the event");
                      },
                      [event] { Check(event->Wait().ok(), "a wait without a deadline failed"); }}};
}

Case EventHasTwoSetters() {
  auto event = make_shared<fiber::Event>();
  auto wait = [event] { Check(event->Wait().ok() && event->is_set(), "a wait before the event"); };
  return {.threads = {[event] { event->Set(); }, [event] { event->Set(); }, wait}};
}

// Semaphore.
// -------------------------------------------------------------------------------------------------

struct Guarded {
  explicit Guarded(int permits) : semaphore(permits) {}
  fiber::Semaphore semaphore;
  int inside = 0;
  void Use() {
    Touch(&inside);
    Check(++inside == 1, "two hold the only permit");
    Touch(&inside);
    --inside;
  }
};

Case SemaphoreLosesNoPermitToTimeouts() {
  auto guarded = make_shared<Guarded>(1);
  auto timed = [guarded] {
    if (!guarded->semaphore.Acquire(1, kSoon).ok()) return;
    guarded->Use();
    guarded->semaphore.Release();
  };
  auto patient = [guarded] {
    Check(guarded->semaphore.Acquire().ok(), "a wait without a deadline failed");
    guarded->Use();
    guarded->semaphore.Release();
  };
  return {.threads = {timed, patient, patient}, .finish = [guarded] {
            Check(guarded->semaphore.TryAcquire(), "a permit was lost");
            Check(!guarded->semaphore.TryAcquire(), "a permit was made");
          }};
}

Case SemaphoreLetsOthersByWhenTheFirstGivesUp() {
  auto semaphore = make_shared<fiber::Semaphore>(1);
  return {.threads = {[semaphore] {
                        if (semaphore->Acquire(3, kSoon).ok()) semaphore->Release(3);
                      },
                      [semaphore] {
                        Check(semaphore->Acquire(1).ok(), "a wait without a deadline failed");
                        semaphore->Release(1);
                      },
                      [semaphore] { semaphore->Release(1); }},
          .finish = [semaphore] {
            Check(semaphore->TryAcquire(2), "a permit was lost");
            Check(!semaphore->TryAcquire(1), "a permit was made");
          }};
}

Case SemaphoreIsDestroyedAsSoonAsTheWaitReturns() {
  auto semaphore = make_shared<Mortal<fiber::Semaphore>>(0);
  return {.threads = {[semaphore] { (*semaphore)->Release(2); },
                      [semaphore] {
                        Check((*semaphore)->Acquire(2).ok(), "a wait without a deadline failed");
                        Destroy(**semaphore);
                      }}};
}

Case SemaphoreCountsAcrossTriesAndReleases() {
  auto semaphore = make_shared<fiber::Semaphore>(0);
  auto taken = make_shared<int>(0);
  return {.threads = {[semaphore] {
                        semaphore->Release(1);
                        semaphore->Release(1);
                      },
                      [semaphore, taken] {
                        if (semaphore->TryAcquire()) ++*taken;
                      },
                      [semaphore, taken] {
                        Check(semaphore->Acquire().ok(), "a wait without a deadline failed");
                        ++*taken;
                      }},
          .finish = [semaphore, taken] {
            while (semaphore->TryAcquire()) ++*taken;
            Check(*taken == 2, "permits were lost or made");
          }};
}

// WaitGroup.
// -------------------------------------------------------------------------------------------------

Case WaitGroupIsDestroyedAsSoonAsTheWaitReturns() {
  auto group = make_shared<Mortal<fiber::WaitGroup>>();
  (*group)->Add(2);
  auto done = [group] { (*group)->Done(); };
  return {.threads = {done, done, [group] {
                        Check((*group)->Wait().ok(), "a wait without a deadline failed");
                        Destroy(**group);
                      }}};
}

Case WaitGroupIsUsedAgain() {
  auto group = make_shared<fiber::WaitGroup>();
  group->Add(1);
  auto first = make_shared<bool>(false);
  return {.threads = {[group, first] {
                        Touch(first.get());
                        *first = true;
                        group->Done();
                        group->Add(1);
                        group->Done();
                      },
                      [group, first] {
                        Check(group->Wait().ok(), "a wait without a deadline failed");
                        Touch(first.get());
                        Check(*first, "it returned before the work was done");
                      }}};
}

// Mutex.
// -------------------------------------------------------------------------------------------------

struct Locked {
  fiber::Mutex mutex;
  int inside = 0;
  int uses = 0;
  void Use() {
    Touch(&inside);
    Check(++inside == 1, "two hold the mutex");
    Touch(&inside);
    --inside;
    ++uses;
  }
  void LockAndUse() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex.lock();
    Use();
    mutex.unlock();
  }
  void TryLockAndUse() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!mutex.try_lock()) return;
    Use();
    mutex.unlock();
  }
  void LockForAWhileAndUse() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!mutex.Lock(kSoon).ok()) return;
    Use();
    mutex.unlock();
  }
  void CheckFree(int least_uses) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Check(uses >= least_uses, "somebody did not get in");
    Check(mutex.try_lock(), "it is held in the end");
    mutex.unlock();
  }
};

Case MutexForTwo() {
  auto locked = make_shared<Locked>();
  auto use = [locked] { locked->LockAndUse(); };
  return {.threads = {use, use}, .finish = [locked] { locked->CheckFree(2); }};
}

Case MutexForTwoTwice() {
  auto locked = make_shared<Locked>();
  auto use = [locked] {
    locked->LockAndUse();
    locked->LockAndUse();
  };
  return {.threads = {use, use}, .finish = [locked] { locked->CheckFree(4); }};
}

Case MutexForThree() {
  auto locked = make_shared<Locked>();
  auto use = [locked] { locked->LockAndUse(); };
  return {.threads = {use, use, use}, .finish = [locked] { locked->CheckFree(3); }};
}

// A millisecond passes before each look at the clock: whoever loses once is starving.
Case MutexForThreeWhoStarve() {
  auto locked = make_shared<Locked>();
  auto use = [locked] {
    set_clock_ns(clock_ns() + 2'000'000);
    locked->LockAndUse();
    set_clock_ns(clock_ns() + 2'000'000);
    locked->LockAndUse();
  };
  return {.threads = {use, use, use}, .finish = [locked] { locked->CheckFree(6); }};
}

Case MutexWithTimeouts() {
  auto locked = make_shared<Locked>();
  return {
      .threads = {[locked] { locked->LockAndUse(); }, [locked] { locked->LockForAWhileAndUse(); },
                  [locked] { locked->LockAndUse(); }},
      .finish = [locked] { locked->CheckFree(2); }};
}

Case MutexWithTries() {
  auto locked = make_shared<Locked>();
  return {.threads = {[locked] { locked->LockAndUse(); }, [locked] { locked->TryLockAndUse(); },
                      [locked] { locked->LockAndUse(); }},
          .finish = [locked] { locked->CheckFree(2); }};
}

// A count of references under the mutex of the object counted: the last one destroys it.
Case MutexIsDestroyedByItsLastHolder() {
  auto mutex = make_shared<Mortal<fiber::Mutex>>();
  auto references = make_shared<int>(2);
  auto drop = [mutex, references]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    (*mutex)->lock();
    const bool is_last = --*references == 0;
    (*mutex)->unlock();
    if (is_last) Destroy(**mutex);
  };
  return {.threads = {drop, drop}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"EventIsDestroyedAsSoonAsTheWaitReturns", EventIsDestroyedAsSoonAsTheWaitReturns},
      {"EventIsDestroyedByWhoSawItSet", EventIsDestroyedByWhoSawItSet},
      {"EventReleasesAllWhateverTimesOut", EventReleasesAllWhateverTimesOut},
      {"EventHasTwoSetters", EventHasTwoSetters},
      {"SemaphoreLosesNoPermitToTimeouts", SemaphoreLosesNoPermitToTimeouts, 2},
      {"SemaphoreLetsOthersByWhenTheFirstGivesUp", SemaphoreLetsOthersByWhenTheFirstGivesUp, 3},
      {"SemaphoreIsDestroyedAsSoonAsTheWaitReturns", SemaphoreIsDestroyedAsSoonAsTheWaitReturns},
      {"SemaphoreCountsAcrossTriesAndReleases", SemaphoreCountsAcrossTriesAndReleases},
      {"WaitGroupIsDestroyedAsSoonAsTheWaitReturns", WaitGroupIsDestroyedAsSoonAsTheWaitReturns},
      {"WaitGroupIsUsedAgain", WaitGroupIsUsedAgain},
      {"MutexForTwo", MutexForTwo},
      {"MutexForTwoTwice", MutexForTwoTwice},
      {"MutexForThree", MutexForThree, 3},
      {"MutexForThreeWhoStarve", MutexForThreeWhoStarve, 2},
      {"MutexWithTimeouts", MutexWithTimeouts, 3},
      {"MutexWithTries", MutexWithTries, 3},
      {"MutexIsDestroyedByItsLastHolder", MutexIsDestroyedByItsLastHolder},
  };
  return kCases;
}

}  // namespace model
