// SPDX-License-Identifier: Apache-2.0
//
// Go's context: rows 56, 57 and 58 of docs/go_conformance.md. What a context carries there follows
// the work by itself here: cancellation and deadlines by Scope, DeadlineScope and CancelShield,
// values by Inherited. CancelSource is for the rest.
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/inherited.h"
#include "fiber/scope.h"
#include "fiber/select.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "tests/fiber/go/row.h"

namespace fiber {
namespace {

constexpr auto kNothing = [] {};

absl::Status SleepForEver() { return Sleep(absl::InfiniteDuration()); }

// Row 56.
GO_ROW(GoContext, CancellationGoesDownAndNotUp, 10'000) {
  Event has_inner_ended;
  std::atomic<bool> is_outer_cancelled{false};
  Scope outer;
  outer.Go([&] {
    Scope inner;
    inner.Go([] { EXPECT_TRUE(absl::IsCancelled(SleepForEver())); });
    inner.Cancel();
    EXPECT_TRUE(inner.Wait().ok());
    EXPECT_TRUE(CheckCancelled().ok());
    has_inner_ended.Set();
    EXPECT_TRUE(absl::IsCancelled(SleepForEver()));
  });
  outer.Go([&] {
    EXPECT_TRUE(absl::IsCancelled(SleepForEver()));
    EXPECT_TRUE(is_outer_cancelled.load(std::memory_order_relaxed))
        << "a sibling's end is not ours";
  });
  ASSERT_TRUE(has_inner_ended.Wait().ok());
  is_outer_cancelled.store(true, std::memory_order_relaxed);
  outer.Cancel();
  EXPECT_TRUE(outer.Wait().ok());
}

// Row 56.
GO_ROW(GoContext, AllBelowKnowOnceCancelHasReturned, 10'000) {
  CancelSource source;
  std::atomic<bool> has_returned{false};
  Event is_deep;
  auto top = Spawn([&] {
    Scope outer({.cancel = source.token()});
    outer.Go([&] {
      Scope inner;
      inner.Go([&] {
        is_deep.Set();
        for (bool must_know = false; !must_know; Yield()) {
          must_know = has_returned.load(std::memory_order_acquire);
          EXPECT_TRUE(!must_know || absl::IsCancelled(CheckCancelled()));
        }
      });
      (void)inner.Wait();  // may have been about to return
      EXPECT_TRUE(absl::IsCancelled(CheckCancelled()));
    });
    (void)outer.Wait();
  });
  ASSERT_TRUE(is_deep.Wait().ok());
  EXPECT_TRUE(source.Cancel(absl::CancelledError("enough")));
  has_returned.store(true, std::memory_order_release);
  top.Join();
}

// Row 56.
GO_ROW(GoContext, WhatIsStartedUnderACancelledOneIsCancelled, 2000) {
  CancelSource source;
  source.Cancel(absl::CancelledError("before it began"));
  Scope scope({.cancel = source.token()});
  auto child = scope.Spawn([] {
    EXPECT_EQ(CheckCancelled(), absl::CancelledError("before it began"));
    Scope inner;
    return inner.Spawn([] { return SleepForEver(); }).Join();
  });
  EXPECT_EQ(child.Join(), absl::CancelledError("before it began"));
  EXPECT_TRUE(scope.Wait().ok());
}

// Row 56: what has ended no longer hangs on what it was started under.
GO_ROW(GoContext, WhatHasEndedIsTakenOutAndNotCalled, 100) {
  CancelSource source;
  CancelToken last;
  for (int i = 0; i < 100; ++i) {
    Scope scope({.cancel = source.token()});
    scope.Go([] {});
    EXPECT_TRUE(scope.Wait().ok());
    CancelCallback callback = source.token().OnCancel([] { ADD_FAILURE(); });
    EXPECT_TRUE(callback.Stop());
    CancelSource below;
    CancelCallback link = source.token().OnCancel([&below] { below.Cancel(); });
    last = below.token();
  }
  EXPECT_TRUE(source.Cancel());
  EXPECT_FALSE(last.is_cancelled());
}

const Inherited<int> layer_of(0);

// `depth` layers of scopes, fibers and deadlines, each with a value of its own, and what
// `innermost` returns within them all.
absl::Status UnderLayers(int depth, uint64_t kinds, absl::FunctionRef<absl::Status()> innermost) {
  if (depth == 0) return innermost();
  Bind bind(layer_of, depth);
  absl::Status status;
  switch ((kinds + depth) % 3) {
    case 0: {
      Scope scope;
      status = scope.Spawn([&] { return UnderLayers(depth - 1, kinds, innermost); }).Join();
      (void)scope.Wait();
      break;
    }
    case 1: {
      Scope scope({.deadline = absl::Hours(1 + depth)});
      status = UnderLayers(depth - 1, kinds, innermost);
      break;
    }
    default: {
      DeadlineScope bound(absl::Hours(1 + depth));
      status = UnderLayers(depth - 1, kinds, innermost);
    }
  }
  EXPECT_EQ(layer_of.get(), depth);
  return status;
}

// Row 56.
GO_ROW(GoContext, ManyLayersAreCancelledFromAbove, 500) {
  Event is_there;
  auto top = Spawn([&] {
    return UnderLayers(20, sim::CurrentSeed(), [&] {
      EXPECT_EQ(layer_of.get(), 1);
      is_there.Set();
      return SleepForEver();
    });
  });
  ASSERT_TRUE(is_there.Wait().ok());
  top.Cancel(absl::CancelledError("from above"));
  EXPECT_EQ(top.Join(), absl::CancelledError("from above"));
}

// Row 56.
GO_ROW(GoContext, ManyLayersRunOutOfTimeWithTheOneThatHasLeast, 500) {
  const absl::Duration start = Now();
  DeadlineScope bound(absl::Milliseconds(1));
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(UnderLayers(20, sim::CurrentSeed(), [] { return SleepForEver(); })));
  EXPECT_GE(Now() - start, absl::Milliseconds(1));
}

// Row 57.
GO_ROW(GoContext, TheEarlierOfTwoDeadlinesHolds, 500) {
  for (const bool is_outer_earlier : {false, true}) {
    const Deadline early = absl::Milliseconds(1), late = absl::Hours(1);
    JoinHandle<absl::Status> child;
    {
      DeadlineScope outer(is_outer_earlier ? early : late);
      DeadlineScope inner(is_outer_earlier ? late : early);
      EXPECT_EQ(CurrentDeadline(), early);
      child = Spawn([] { return SleepForEver(); });
      EXPECT_TRUE(absl::IsDeadlineExceeded(SleepForEver()));
      EXPECT_TRUE(early.is_past());
      EXPECT_FALSE(late.is_past());
    }
    EXPECT_TRUE(absl::IsDeadlineExceeded(child.Join()));
  }
}

// Row 57.
GO_ROW(GoContext, CancelledBeforeItsDeadlineItIsCancelled, 2000) {
  auto child = Spawn([] {
    DeadlineScope bound(absl::Hours(1));
    return SleepForEver();
  });
  child.Cancel(absl::CancelledError("first"));
  EXPECT_EQ(child.Join(), absl::CancelledError("first"));
}

// Row 57: a tree of sources, all of them cancelled at once.
GO_ROW(GoContext, ManyThatAreCancelledAtTheSameTimeAllAre, 1000) {
  constexpr int kSources = 20;
  std::vector<std::unique_ptr<CancelSource>> sources;
  std::vector<CancelCallback> links;
  for (int i = 0; i < kSources; ++i) {
    sources.push_back(std::make_unique<CancelSource>());
    if (i == 0) continue;
    links.push_back(
        sources[(i - 1) / 2]->token().OnCancel([&each = *sources[i]] { each.Cancel(); }));
  }
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < kSources; ++i) {
    fibers.push_back(Spawn(
        [token = sources[i]->token()] { EXPECT_TRUE(Select(OnCancel(token, kNothing)).ok()); }));
    fibers.push_back(Spawn([&each = *sources[i]] { each.Cancel(); }));
  }
  for (auto& each : fibers) each.Join();
  for (auto& each : sources) EXPECT_TRUE(each->token().is_cancelled());
}

// Row 57: two that cancel each other, from both ends.
GO_ROW(GoContext, TwoThatCancelEachOtherDoNotWaitForEachOther, 10'000) {
  CancelSource left, right;
  CancelCallback to_right = left.token().OnCancel([&] { right.Cancel(); });
  CancelCallback to_left = right.token().OnCancel([&] { left.Cancel(); });
  auto other = Spawn([&] { left.Cancel(); });
  right.Cancel();
  other.Join();
  EXPECT_TRUE(left.token().is_cancelled());
  EXPECT_TRUE(right.token().is_cancelled());
}

// Row 57.
GO_ROW(GoContext, OneThatIsSeenCancelledHasACauseAndIsReadyInASelect, 10'000) {
  CancelSource source;
  auto canceller = Spawn([&] { source.Cancel(absl::CancelledError("the cause")); });
  auto watcher = Spawn([token = source.token()] {
    while (!token.is_cancelled()) Yield();
    EXPECT_EQ(token.cause(), absl::CancelledError("the cause"));
    EXPECT_TRUE(Select(OnCancel(token, kNothing), Otherwise([] { ADD_FAILURE(); })).ok());
  });
  auto asker = Spawn([token = source.token()] {
    while (token.cause().ok()) Yield();
    EXPECT_TRUE(token.is_cancelled());
  });
  canceller.Join();
  watcher.Join();
  asker.Join();
}

// Row 58.
GO_ROW(GoContext, OfSeveralCausesTheFirstStays, 10'000) {
  const std::array<absl::Status, 3> causes = {absl::CancelledError("a"), absl::CancelledError("b"),
                                              absl::CancelledError("c")};
  CancelSource source;
  std::array<JoinHandle<bool>, 3> fibers;
  for (size_t i = 0; i < causes.size(); ++i) {
    fibers[i] = Spawn([&source, &cause = causes[i]] {
      const bool is_first = source.Cancel(cause);
      if (is_first) {
        EXPECT_EQ(source.token().cause(), cause);
      }
      return is_first;
    });
  }
  int count = 0;
  for (size_t i = 0; i < causes.size(); ++i) {
    if (!fibers[i].Join()) continue;
    ++count;
    EXPECT_EQ(source.token().cause(), causes[i]);
  }
  EXPECT_EQ(count, 1);
}

// Row 58: Go's WithoutCancel.
GO_ROW(GoContext, BehindAShieldNothingIsSeenFromOutsideButTheValues, 5000) {
  Event is_cancelled;
  auto child = Spawn([&] {
    Bind bind(layer_of, 7);
    {
      CancelShield shield;
      EXPECT_TRUE(is_cancelled.Wait().ok());
      EXPECT_TRUE(CheckCancelled().ok());
      EXPECT_EQ(Spawn([] { return layer_of.get(); }).Join(), 7);
    }
    return CheckCancelled();
  });
  child.Cancel(absl::CancelledError("outside"));
  is_cancelled.Set();
  EXPECT_EQ(child.Join(), absl::CancelledError("outside"));
}

// Row 58: Go's AfterFunc, called by who cancels, and not in a goroutine of its own.
GO_ROW(GoContext, ACallbackIsCalledOnceOrStopped, 10'000) {
  CancelSource source;
  std::atomic<int> calls{0};
  CancelCallback callback =
      source.token().OnCancel([&] { calls.fetch_add(1, std::memory_order_relaxed); });
  auto canceller = Spawn([&] { EXPECT_TRUE(source.Cancel()); });
  const bool is_stopped = callback.Stop();
  // If it was not prevented, it is over.
  EXPECT_EQ(calls.load(std::memory_order_relaxed), is_stopped ? 0 : 1);
  EXPECT_FALSE(callback.Stop());
  canceller.Join();
  EXPECT_EQ(calls.load(std::memory_order_relaxed), is_stopped ? 0 : 1);
  // Too late, it is called at once.
  CancelCallback late =
      source.token().OnCancel([&] { calls.store(10, std::memory_order_relaxed); });
  EXPECT_EQ(calls.load(std::memory_order_relaxed), 10);
  EXPECT_FALSE(late.Stop());
}

// Row 57: the child's deadline has passed, and nobody has called Cancel().
GO_ROW(GoContext, AChildThatIsJoinedSeesItsDeadlineAndNoCancellation, 500) {
  DeadlineScope bound(absl::Milliseconds(1));
  auto child = Spawn([] { return Sleep(absl::InfiniteDuration()); });
  const absl::Status seen = child.Join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(seen)) << seen;
}

}  // namespace
}  // namespace fiber
