// SPDX-License-Identifier: Apache-2.0
#include "fiber/cancel.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/fiber_local.h"
#include "fiber/go.h"
#include "fiber/inherited.h"
#include "fiber/mutex.h"
#include "fiber/scope.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace fiber {
namespace {

TEST(CancelTest, TheFirstCauseStaysAndCallbacksHaveReturned) {
  CancelSource source;
  const CancelToken token = source.token();
  EXPECT_FALSE(token.is_cancelled());
  EXPECT_TRUE(token.cause().ok());
  int calls = 0;
  CancelCallback callback = token.OnCancel([&] {
    ++calls;
    EXPECT_FALSE(source.Cancel(absl::InternalError("from within")));
  });
  EXPECT_TRUE(source.Cancel(absl::AbortedError("first")));
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(source.Cancel(absl::AbortedError("second")));
  EXPECT_EQ(token.cause(), absl::AbortedError("first"));
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(callback.Stop());
  // Too late for a registration: it is called at once.
  CancelCallback late = token.OnCancel([&] { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(CancelTest, ACallbackThatIsStoppedIsNotCalled) {
  CancelSource source;
  CancelCallback stopped = source.token().OnCancel([] { ADD_FAILURE(); });
  EXPECT_TRUE(stopped.Stop());
  EXPECT_FALSE(stopped.Stop());
  { CancelCallback gone = source.token().OnCancel([] { ADD_FAILURE(); }); }
  // One that stops itself does not wait for itself.
  CancelCallback self;
  bool is_called = false;
  self = source.token().OnCancel([&] {
    EXPECT_FALSE(self.Stop());
    is_called = true;
  });
  source.Cancel();
  EXPECT_TRUE(is_called);
}

TEST(CancelTest, ACallbackMayBeStoppedInABlockingCallOfItsOwn) {
  sched::Run([] {
    for (const bool is_cancelled_in_one : {false, true}) {
      CancelSource source;
      CancelCallback self;
      bool is_called = false;
      self = source.token().OnCancel([&] {
        Blocking([&] { EXPECT_FALSE(self.Stop()); });
        is_called = true;
      });
      if (is_cancelled_in_one) {
        Blocking([&] { source.Cancel(); });
      } else {
        source.Cancel();
      }
      EXPECT_TRUE(is_called);
    }
  });
}

FIBER_SIM_TEST(CancelTest, StopWaitsForACallThatIsUnderWay) {
  CancelSource source;
  bool has_returned = false;
  CancelCallback callback = source.token().OnCancel([&] {
    (void)Sleep(absl::Seconds(1));
    has_returned = true;
  });
  auto canceller = Spawn([&] { source.Cancel(); });
  while (!source.token().is_cancelled()) Yield();
  EXPECT_FALSE(callback.Stop());
  EXPECT_TRUE(has_returned);
  canceller.Join();
}

TEST(CancelTest, ATokenOfNothingIsNeverCancelled) {
  CancelToken none;
  EXPECT_FALSE(none.is_cancelled());
  EXPECT_FALSE(none.OnCancel([] { ADD_FAILURE(); }).Stop());
  CancelToken token;
  {
    CancelSource source;
    token = source.token();
    source.Cancel();
  }
  EXPECT_TRUE(token.is_cancelled());
}

FIBER_SIM_TEST(DeadlineScopeTest, TheEarliestHoldsAndChildrenInheritIt) {
  EXPECT_TRUE(CurrentDeadline().is_never());
  const absl::Duration start = Now();
  {
    DeadlineScope outer(absl::Seconds(2));
    {
      DeadlineScope inner(absl::Seconds(9));
      EXPECT_EQ(CurrentDeadline().remaining(), absl::Seconds(2));
    }
    Event never;
    auto child = Spawn([&] { return never.Wait(absl::Seconds(5)); });
    auto grandchild = Spawn([&] { return Spawn([&] { return never.Wait(); }).Join(); });
    EXPECT_TRUE(absl::IsDeadlineExceeded(never.Wait(absl::Seconds(1))));
    EXPECT_EQ(Now() - start, absl::Seconds(1));
    EXPECT_TRUE(absl::IsDeadlineExceeded(never.Wait()));
    EXPECT_EQ(Now() - start, absl::Seconds(2));
    EXPECT_TRUE(absl::IsDeadlineExceeded(CheckCancelled()));
    EXPECT_TRUE(absl::IsDeadlineExceeded(Sleep(absl::Seconds(1))));
    // Who joins is out of time too, and cancels what it joins.
    EXPECT_FALSE(child.Join().ok());
    EXPECT_FALSE(grandchild.Join().ok());
    // A lock that cannot fail does not.
    Mutex mutex;
    MutexLock hold(mutex);
  }
  EXPECT_TRUE(CurrentDeadline().is_never());
  EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
}

FIBER_SIM_TEST(DeadlineScopeTest, ASleepThatEndsBeforeIsNotCutShort) {
  DeadlineScope bound(absl::Seconds(2));
  EXPECT_TRUE(Sleep(absl::Seconds(1)).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(Sleep(absl::Seconds(2))));
}

TEST(DeadlineScopeTest, BoundsPlainThreadsToo) {
  DeadlineScope bound(absl::Milliseconds(5));
  Event never;
  EXPECT_TRUE(absl::IsDeadlineExceeded(never.Wait()));
  Channel<int> channel;
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.Receive().status()));
}

FIBER_SIM_TEST(CancelShieldTest, KeepsOutCancellationAndDeadlinesUntilItEnds) {
  Event never;
  auto child = Spawn([&] {
    DeadlineScope outer(absl::Seconds(1));
    {
      CancelShield shield(absl::Hours(1));
      EXPECT_TRUE(Sleep(absl::Seconds(5)).ok());  // cancelled and out of time meanwhile
      EXPECT_TRUE(CheckCancelled().ok());
      EXPECT_TRUE(absl::IsDeadlineExceeded(never.Wait()));  // its own bound
      auto grandchild = Spawn([&] { return CurrentDeadline().is_past(); });
      EXPECT_TRUE(grandchild.Join());
    }
    EXPECT_EQ(CheckCancelled(), absl::CancelledError("stop"));
    return never.Wait();
  });
  (void)Sleep(absl::Milliseconds(500));
  child.Cancel(absl::CancelledError("stop"));
  EXPECT_TRUE(absl::IsCancelled(child.Join()));
}

FIBER_SIM_TEST(CancelShieldTest, AScopeInsideCanStillBeCancelled) {
  auto child = Spawn([&] {
    CancelShield shield;
    Scope scope;
    scope.Go([] { return Sleep(absl::InfiniteDuration()); });
    scope.Go([&] {
      (void)Sleep(absl::Seconds(1));
      return absl::AbortedError("inside");
    });
    // The sibling's failure ends this wait; the cancellation from outside does not.
    EXPECT_TRUE(absl::IsCancelled(Sleep(absl::InfiniteDuration())));
    return scope.Wait();
  });
  child.Cancel();
  EXPECT_EQ(child.Join(), absl::AbortedError("inside"));
}

FIBER_SIM_TEST(FiberLocalTest, EachFiberHasItsOwnUntilItEnds) {
  static int alive = 0;
  struct Counted {
    Counted() { ++alive; }
    ~Counted() { --alive; }
    int value = 0;
  };
  FiberLocal<Counted> local;
  FiberLocal<std::string> name;
  local->value = 1;
  *name = "main";
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&, i] {
      EXPECT_EQ(local->value, 0);
      local->value = 10 + i;
      Yield();
      EXPECT_EQ(local->value, 10 + i);
      EXPECT_EQ(*name, "");
    }));
  }
  for (auto& each : fibers) each.Join();
  EXPECT_EQ(alive, 1);
  EXPECT_EQ(local->value, 1);
  EXPECT_EQ(*name, "main");
}

TEST(FiberLocalTest, PlainThreadsHaveThemTooAndThoseEndWithThem) {
  auto shared = std::make_shared<int>(1);
  FiberLocal<std::shared_ptr<int>> local;
  std::thread([&] { *local = shared; }).join();
  EXPECT_EQ(shared.use_count(), 1);
}

const Inherited<std::string> trace_id("none");

FIBER_SIM_TEST(InheritedTest, ChildrenSeeWhatWasBoundAtTheirSpawn) {
  EXPECT_EQ(trace_id.get(), "none");
  JoinHandle<void> late;
  {
    Bind outer(trace_id, "a");
    auto child = Spawn([] {
      EXPECT_EQ(trace_id.get(), "a");
      Bind mine(trace_id, std::string("b"));
      Scope scope;
      scope.Go([] { EXPECT_EQ(trace_id.get(), "b"); });
      auto answer = scope.Spawn([] { return trace_id.get(); });
      EXPECT_EQ(answer.Join(), "b");
      EXPECT_TRUE(scope.Wait().ok());
    });
    late = Spawn([] {
      (void)Sleep(absl::Seconds(1));
      EXPECT_EQ(trace_id.get(), "a");  // long after the binding's end
    });
    child.Join();
    EXPECT_EQ(trace_id.get(), "a");
  }
  EXPECT_EQ(trace_id.get(), "none");
  late.Join();
}

FIBER_SIM_TEST(CancelTest, ACallbackMayEndTheRegistrationOfTheNext) {
  CancelSource source;
  CancelCallback second;
  CancelCallback first = source.token().OnCancel([&] { EXPECT_TRUE(second.Stop()); });
  second = source.token().OnCancel([] { ADD_FAILURE() << "it was stopped"; });
  EXPECT_TRUE(source.Cancel());
}

FIBER_SIM_TEST(CancelTest, WhatACallbackHoldsIsGoneWhenStopReturns) {
  CancelSource source;
  auto held = std::make_shared<int>(1);
  Event begun;
  CancelCallback callback = source.token().OnCancel([held, &begun] {
    begun.Set();
    Yield();
  });
  auto canceller = Spawn([&] { source.Cancel(); });
  EXPECT_TRUE(begun.Wait().ok());
  EXPECT_FALSE(callback.Stop());
  EXPECT_EQ(held.use_count(), 1);
  canceller.Join();
}

// A value that others inherit, whose destructor uses a FiberLocal.
struct CountsItsEnd {
  static FiberLocal<int> ends;
  bool is_live = false;

  CountsItsEnd() = default;
  explicit CountsItsEnd(bool live) : is_live(live) {}
  CountsItsEnd(CountsItsEnd&& other) noexcept : is_live(std::exchange(other.is_live, false)) {}
  ~CountsItsEnd() {
    if (is_live) ++*ends;
  }
};
FiberLocal<int> CountsItsEnd::ends;
const Inherited<CountsItsEnd> ending;

FIBER_SIM_TEST(FiberLocalTest, WhatTheEndOfAnInheritedValueMakesDoesNotReachTheNextFiber) {
  for (int i = 0; i < 3; ++i) {
    Event unbound;
    JoinHandle<void> last;
    {
      Bind bound(ending, CountsItsEnd(true));
      last = Spawn([&] { EXPECT_TRUE(unbound.Wait().ok()); });
    }
    unbound.Set();  // the value ends with the fiber
    last.Join();
    Spawn([] { EXPECT_EQ(*CountsItsEnd::ends, 0); }).Join();
  }
}

}  // namespace
}  // namespace fiber
