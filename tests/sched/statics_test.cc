// SPDX-License-Identifier: Apache-2.0
//
// Static objects use the primitives before main() begins and after it has ended. Without that, a program's static caches
// and loggers could not have a fiber::Mutex: what initialises itself later than they do, or is destroyed earlier, is theirs.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/mutex.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace {

// After main() there is nobody else to tell.
void Check(bool is_so, const char* what) {
  if (is_so) return;
  fprintf(stderr, "statics_test: %s\n", what);
  abort();
}

constinit fiber::Mutex mutex;
constinit fiber::Event is_held[5];  // one for each time
constinit fiber::WaitGroup group;
constinit fiber::Semaphore permits(0);
constinit int turns = 0;  // under the mutex
constinit int times = 0;

// One side of what two do with each other: each has to wait for the other.
void Meet() {
  permits.Release();
  group.Done();
  Check(group.Wait().ok(), "WaitGroup::Wait");
  for (int i = 0; i < 1000; ++i) {
    fiber::MutexLock hold(mutex);
    ++turns;
  }
}

void UseAll(const char* when) {
  fiber::Event& is_held_now = is_held[times++];
  Check(!is_held_now.is_set() && !permits.TryAcquire(), when);
  turns = 0;
  group.Add(2);
  mutex.lock();
  std::thread other([&] {
    is_held_now.Set();
    Meet();
  });
  Check(is_held_now.Wait().ok(), "Event::Wait");
  mutex.unlock();
  Meet();
  other.join();
  Check(turns == 2000, "Mutex");
  Check(permits.Acquire(2).ok(), "Semaphore::Acquire");
  Check(absl::IsDeadlineExceeded(permits.Acquire(1, absl::Microseconds(1))), "a deadline");

  // And all of it by fibers, of a runtime of its own.
  turns = 0;
  group.Add(2);
  sched::Run({.workers = 2}, [] {
    auto fiber = fiber::Spawn(Meet);
    Meet();
    fiber.Join();
  });
  Check(turns == 2000, "Mutex, by fibers");
  Check(permits.Acquire(2).ok(), "Semaphore::Acquire");
}

struct Static {
  explicit Static(const char* name) : name(name) {
    UseAll("before main");
    ++constructed;
  }
  ~Static() { UseAll("after main"); }
  const char* const name;
  static constinit inline int constructed = 0;
};

// Made before everything else, so destroyed after it; and made and destroyed in the middle.
__attribute__((init_priority(101))) Static first("first");
Static middle("middle");

TEST(StaticsTest, HaveBeenUsedBeforeMainAndAreUsedAfterIt) {
  EXPECT_EQ(Static::constructed, 2);
  UseAll("in main");  // the destructors abort if something is wrong
}

}  // namespace
