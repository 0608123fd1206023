// SPDX-License-Identifier: Apache-2.0
#include "fiber/scope.h"

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/fiber_local.h"
#include "fiber/go.h"
#include "fiber/inherited.h"
#include "fiber/select.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/fiber/crew.h"
#include "tests/scale.h"

namespace fiber {
namespace {

FIBER_SIM_TEST(ScopeTest, WaitsForAllAndGivesTypedResults) {
  Scope scope;
  int done = 0;
  for (int i = 0; i < 3; ++i) {
    scope.Go([&] {
      (void)Sleep(absl::Seconds(1));
      ++done;
    });
  }
  Child<std::unique_ptr<int>> answer = scope.Spawn([] { return std::make_unique<int>(42); });
  Child<std::string> named = scope.Spawn({.name = "namer"}, [] { return std::string(CurrentName()); });
  EXPECT_TRUE(scope.Wait().ok());
  EXPECT_EQ(done, 3);
  EXPECT_TRUE(answer.is_done());
  EXPECT_EQ(*answer.Join(), 42);  // valid after the scope
  EXPECT_EQ(named.Join(), "namer");
  EXPECT_TRUE(scope.failures().empty());
}

FIBER_SIM_TEST(ScopeTest, TheFirstFailureCancelsTheSiblingsAndAllAreKept) {
  Scope scope;
  absl::Status sibling;
  scope.Go([&] {
    sibling = Sleep(absl::InfiniteDuration());
    return absl::DataLossError("later");
  });
  scope.Go({.name = "culprit"}, [] {
    (void)Sleep(absl::Seconds(1));
    return absl::NotFoundError("first");
  });
  EXPECT_EQ(scope.Wait(), absl::NotFoundError("first"));
  EXPECT_TRUE(absl::IsCancelled(sibling)) << sibling;
  ASSERT_EQ(scope.failures().size(), 2u);
  const Failure& first = scope.failures()[0];
  EXPECT_EQ(first.status, absl::NotFoundError("first"));
  EXPECT_EQ(first.fiber_name, "culprit");
  EXPECT_NE(std::string(first.site.file_name()).find("scope_test.cc"), std::string::npos);
  EXPECT_EQ(scope.failures()[1].status, absl::DataLossError("later"));
}

FIBER_SIM_TEST(ScopeTest, AnExceptionIsAFailureAndWaitRethrowsIt) {
  Scope scope;
  scope.Go([] { (void)Sleep(absl::InfiniteDuration()); });
  scope.Go([] { throw std::runtime_error("broken"); });
  EXPECT_THROW((void)scope.Wait(), std::runtime_error);
  ASSERT_EQ(scope.failures().size(), 1u);
  EXPECT_NE(scope.failures()[0].exception, nullptr);
  EXPECT_EQ(scope.failures()[0].status.message(), "broken");

  Scope other;
  Child<int> child = other.Spawn([]() -> int { throw std::logic_error("no"); });
  EXPECT_THROW(child.Join(), std::logic_error);
  EXPECT_THROW((void)other.Wait(), std::logic_error);
}

FIBER_SIM_TEST(ScopeTest, AFailureEndsTheWaitsOfWhoMadeIt) {
  Channel<int> results;
  Scope scope;
  scope.Go([] { return absl::InternalError("nothing will come"); });
  EXPECT_TRUE(absl::IsCancelled(results.Receive().status()));
  EXPECT_EQ(scope.Wait(), absl::InternalError("nothing will come"));
  EXPECT_TRUE(CheckCancelled().ok());  // once Wait() has returned, it holds no longer
}

FIBER_SIM_TEST(ScopeTest, ItsDeadlineReachesChildrenAndWhoMadeIt) {
  const absl::Duration before = Now();
  Scope scope({.deadline = absl::Seconds(2)});
  absl::Status child;
  scope.Go([&] { child = Sleep(absl::Hours(1)); });
  Event never;
  EXPECT_TRUE(absl::IsDeadlineExceeded(never.Wait()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(scope.Wait()));
  EXPECT_EQ(Now() - before, absl::Seconds(2));
  EXPECT_FALSE(child.ok());
  EXPECT_TRUE(CurrentDeadline().is_never());
}

FIBER_SIM_TEST(ScopeTest, LeftByAnExceptionItCancelsAndJoins) {
  bool has_ended = false;
  try {
    Scope scope;
    scope.Go([&] {
      EXPECT_TRUE(absl::IsCancelled(Sleep(absl::InfiniteDuration())));
      has_ended = true;
    });
    throw 1;
  } catch (int) {
    EXPECT_TRUE(has_ended);
  }
}

FIBER_SIM_TEST(ScopeTest, CancelMakesWaitReturnOk) {
  Scope scope;
  absl::Status seen;
  scope.Go([&] { seen = Sleep(absl::InfiniteDuration()); });
  scope.Go([&] { return Sleep(absl::InfiniteDuration()); });
  scope.Cancel(absl::CancelledError("enough"));
  EXPECT_EQ(CheckCancelled(), absl::CancelledError("enough"));
  // One that comes later still starts, and sees it.
  scope.Go([&] { EXPECT_FALSE(CheckCancelled().ok()); });
  EXPECT_TRUE(scope.Wait().ok());
  EXPECT_EQ(seen, absl::CancelledError("enough"));
  EXPECT_EQ(scope.failures().size(), 1u);
}

FIBER_SIM_TEST(ScopeTest, CancellationGoesDownTheWholeTreeBeforeCancelReturns) {
  Event is_deep;
  bool has_returned = false;  // Cancel()
  auto top = Spawn([&] {
    Scope outer;
    outer.Go([&] {
      Scope middle;
      middle.Go([&] {
        Scope inner({.name = "inner"});
        inner.Go([&] { return Sleep(absl::InfiniteDuration()); });
        is_deep.Set();
        for (;;) {  // computes, and does not park
          const bool is_late = has_returned;
          if (!CheckCancelled().ok()) break;
          EXPECT_FALSE(is_late);
          Yield();
        }
        return inner.Wait();
      });
      return middle.Wait();
    });
    return outer.Wait();
  });
  EXPECT_TRUE(is_deep.Wait().ok());
  top.Cancel(absl::CancelledError("all of it"));
  has_returned = true;
  EXPECT_TRUE(absl::IsCancelled(top.Join()));
}

FIBER_SIM_TEST(ScopeTest, ATokenCancelsIt) {
  CancelSource source;
  Scope scope({.cancel = source.token()});
  absl::Status seen;
  scope.Go([&] { seen = Sleep(absl::InfiniteDuration()); });
  Go([&] { source.Cancel(absl::CancelledError("by token")); });
  EXPECT_TRUE(absl::IsCancelled(Sleep(absl::InfiniteDuration())));
  EXPECT_TRUE(scope.Wait().ok());
  EXPECT_EQ(seen, absl::CancelledError("by token"));
  Scope late({.cancel = source.token()});
  EXPECT_TRUE(absl::IsCancelled(CheckCancelled()));
}

FIBER_SIM_TEST(ScopeTest, NoMoreThanMaxRunningRunAtOnce) {
  Scope scope({.max_running = 2});
  int running = 0, most = 0, started = 0;
  for (int i = 0; i < 7; ++i) {
    scope.Go([&, i] {
      EXPECT_EQ(started++ / 2, i / 2);
      most = std::max(most, ++running);
      (void)Sleep(absl::Seconds(1));
      --running;
    });
  }
  EXPECT_TRUE(scope.Wait().ok());
  EXPECT_EQ(most, 2);
  EXPECT_EQ(started, 7);
}

FIBER_SIM_TEST(ScopeTest, DrainCancelsWhoIsLeftAfterTheGracePeriod) {
  Scope scope;
  absl::Status quick, slow;
  scope.Go([&] { quick = Sleep(absl::Seconds(1)); });
  scope.Go([&] { slow = Sleep(absl::Hours(1)); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(scope.Drain(absl::Seconds(2))));
  EXPECT_TRUE(quick.ok());
  EXPECT_TRUE(absl::IsCancelled(slow));
}

FIBER_SIM_TEST(ScopeTest, AChildMayStartOthersAndJoinThem) {
  Scope scope;
  int sum = 0;
  scope.Go([&] {
    for (int i = 1; i <= 3; ++i) scope.Go([&, i] { sum += i; });
    Child<int> four = scope.Spawn([] { return 4; });
    sum += four.Join();
  });
  EXPECT_TRUE(scope.Wait().ok());
  EXPECT_EQ(sum, 10);
}

FIBER_SIM_TEST(ScopeTest, WithScopeCannotForgetToWait) {
  int done = 0;
  EXPECT_TRUE(WithScope({}, [&](Scope& scope) {
                for (int i = 0; i < 3; ++i) scope.Go([&] { ++done; });
              }).ok());
  EXPECT_EQ(done, 3);
  EXPECT_EQ(WithScope({}, [&](Scope& scope) {
              scope.Go([&] { return Sleep(absl::InfiniteDuration()); });
              return absl::AbortedError("body");
            }), absl::AbortedError("body"));
}

FIBER_SIM_TEST(ScopeTest, AChildCanBeAClauseOfASelect) {
  Scope scope;
  Child<int> slow = scope.Spawn([] {
    (void)Sleep(absl::Seconds(9));
    return 1;
  });
  Child<int> quick = scope.Spawn([] { return 2; });
  EXPECT_EQ(Select(OnJoin(slow, [] {}), OnJoin(quick, [] {})).value(), 1u);
  EXPECT_EQ(quick.Join(), 2);
  EXPECT_TRUE(scope.Wait().ok());
}

TEST(ScopeTest, OnWorkersChildrenFailAndAreCancelledAllTheTime) {
  for (const int workers : {1, 2, 8}) {
    sched::Run({.workers = workers}, [] {
      for (int round = 0; round < tests::Scaled(200); ++round) {
        std::atomic<int> ended{0};
        Channel<int> channel;
        absl::Status status;
        {
          Scope scope({.max_running = round % 3 * 4});
          for (int i = 0; i < 12; ++i) {
            scope.Go([&, i]() -> absl::Status {
              Scope inner;
              inner.Go([&] { (void)channel.Receive(); });
              inner.Go([&] { (void)channel.Send(1, absl::Milliseconds(1)); });
              absl::Status joined = i == round % 12 ? absl::AbortedError("mine") : inner.Wait();
              ended.fetch_add(1);
              return joined;
            });
          }
          status = scope.Wait();
        }
        EXPECT_TRUE(absl::IsAborted(status) || absl::IsCancelled(status)) << status;
        EXPECT_EQ(ended.load(), 12);
      }
    });
  }
}

TEST(ScopeTest, OnAPlainThread) {
  sched::Runtime runtime({.workers = 2});
  Channel<int> results;
  Scope scope;
  scope.Go([&] { return results.Send(5); });
  EXPECT_EQ(results.Receive().value(), 5);
  scope.Go([] { return absl::InternalError("broken"); });
  // Plain threads are not cancelled, but by the failure of their own scope's children.
  EXPECT_TRUE(absl::IsCancelled(results.Receive().status()));
  EXPECT_EQ(scope.Wait(), absl::InternalError("broken"));
}

FIBER_SIM_TEST(ScopeTest, WhoeverLearnsOfAFailureComesAfterIt) {
  const auto fail = []() -> absl::StatusOr<int> { return absl::DataLossError("a"); };
  {
    Scope scope;
    auto child = scope.Spawn(fail);
    EXPECT_FALSE(child.Join().ok());
    scope.Cancel();
    EXPECT_EQ(scope.Wait().code(), absl::StatusCode::kDataLoss);
  }
  {
    Scope scope;
    auto child = scope.Spawn(fail);
    scope.Go([&] { return child.Join().ok() ? absl::OkStatus() : absl::InternalError("b, since a failed"); });
    EXPECT_EQ(scope.Wait().code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(scope.failures()[0].status.code(), absl::StatusCode::kDataLoss);
  }
  const absl::Status status = WithScope({}, [&](Scope& scope) -> absl::Status {
    auto child = scope.Spawn(fail);
    return child.Join().ok() ? absl::OkStatus() : absl::InternalError("the body's, since a failed");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
}

TEST(ScopeDeathTest, AChildThatIgnoresCancellationIsNamed) {
  testing::internal::CaptureStderr();
  sim::SimulateInTest({.schedules = 1}, [] {
    Scope scope({.name = "stubborn"});
    scope.Go({.name = "deaf"}, [] {
      CancelShield shield;
      (void)Sleep(absl::Seconds(5));
    });
    EXPECT_TRUE(absl::IsDeadlineExceeded(scope.Drain(absl::Seconds(1))));
  });
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("fiber::Scope 'stubborn' was cancelled 1s ago and still waits for: fiber"),
            std::string::npos) << said;
  EXPECT_NE(said.find("'deaf' (spawned at"), std::string::npos) << said;
}

TEST(ScopeDeathTest, UnseenFailuresAreLogged) {
  testing::internal::CaptureStderr();
  sim::SimulateInTest({.schedules = 1}, [] {
    Scope scope;
    scope.Go({.name = "sad"}, [] { return absl::InternalError("unseen"); });
    (void)Sleep(absl::Seconds(1));
  });
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("nobody has seen that fiber"), std::string::npos) << said;
  EXPECT_NE(said.find("unseen"), std::string::npos) << said;
}

void RunChildThat(void (*does)(Child<void>& self)) {
  sched::Run([does] {
    Child<void> self;
    Event is_known;
    Scope scope;
    self = scope.Spawn([&] {
      (void)is_known.Wait();
      does(self);
    });
    is_known.Set();
    (void)scope.Wait();
  });
}

TEST(ScopeDeathTest, MisuseEndsTheProcessByName) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sched::Run([] { Scope scope({.max_running = -1, .name = "less"}); }),
               "fiber::Scope 'less': max_running is -1");
  EXPECT_DEATH(RunChildThat([](Child<void>& self) { self.Join(); }), "fiber [0-9]+ joins itself \\(Child::Join\\)");
  EXPECT_DEATH(RunChildThat([](Child<void>& self) { (void)self.Wait(absl::Seconds(5)); }),
               "fiber [0-9]+ joins itself \\(Child::Wait\\)");
  EXPECT_DEATH(sched::Run([] {
                 Scope scope({.name = "early"});
                 (void)scope.Wait();
                 scope.Go([] {});
               }),
               "spawn at .*scope_test.cc:[0-9]+ in a fiber::Scope whose Wait\\(\\) has returned");
  EXPECT_DEATH(sched::Run([] {
                 Scope scope({.name = "mine"});
                 Spawn([&] { (void)scope.Wait(); }).Join();
               }),
               "fiber::Scope 'mine': Wait by a fiber that did not make it");
}

const Inherited<std::string> bound_name("none");

FIBER_SIM_TEST(ScopeTest, WaitTakesAwayItsOwnDeadlineAndNothingThatWasMadeLater) {
  {
    Scope scope({.deadline = absl::Seconds(5)});
    Bind name(bound_name, std::string("a name that is long enough for the heap"));
    const std::string& kept = bound_name.get();
    DeadlineScope bound(absl::Seconds(1));
    scope.Go([] {});
    EXPECT_TRUE(scope.Wait().ok());
    EXPECT_EQ(bound_name.get(), "a name that is long enough for the heap");
    EXPECT_EQ(&bound_name.get(), &kept);
    EXPECT_LE(CurrentDeadline().remaining(), absl::Seconds(1));
  }
  EXPECT_TRUE(CurrentDeadline().is_never());
  EXPECT_EQ(bound_name.get(), "none");
}

FIBER_SIM_TEST(ScopeTest, MayBeWaitedForBehindAShield) {
  for (int i = 0; i < 2; ++i) {
    {
      Scope scope;
      scope.Go([] {});
      CancelShield shield;
      EXPECT_TRUE(scope.Wait().ok());
    }
    EXPECT_TRUE(Sleep(absl::Milliseconds(1)).ok());
  }
}

FIBER_SIM_TEST(ScopeTest, WhoIsCancelledBehindAShieldCancelsItsScopesWhenThatEnds) {
  Event is_shielded, go_on;
  auto owner = Spawn([&] {
    Scope scope;
    auto child = scope.Spawn([] { return Sleep(absl::InfiniteDuration()); });
    {
      CancelShield shield;
      is_shielded.Set();
      EXPECT_TRUE(go_on.Wait().ok());
    }
    EXPECT_TRUE(absl::IsCancelled(child.Join()));
  });
  EXPECT_TRUE(is_shielded.Wait().ok());
  owner.Cancel();
  go_on.Set();
  owner.Join();
}

// Its outer scope's children must not run on until the inner one has ended.
FIBER_SIM_TEST(ScopeTest, WhoIsCancelledWhileAnInnerScopeIsJoinedCancelsTheOuterOneAtOnce) {
  Mutex held;
  held.lock();
  absl::Status outer_child = absl::UnknownError("has not ended");
  auto owner = Spawn([&] {
    Scope outer;
    outer.Go([&] { outer_child = Sleep(absl::InfiniteDuration()); });
    Scope inner;
    inner.Go([&] { MutexLock deaf(held); });
    EXPECT_TRUE(absl::IsDeadlineExceeded(inner.Drain(absl::Seconds(1))));
    (void)outer.Wait();
  });
  EXPECT_TRUE(Sleep(absl::Seconds(2)).ok());
  owner.Cancel();
  EXPECT_TRUE(Sleep(absl::Milliseconds(1)).ok());
  EXPECT_TRUE(absl::IsCancelled(outer_child)) << outer_child;
  held.unlock();
  owner.Join();
}

TEST(ScopeTest, WhoWakesCancelledFindsItselfCancelled) {
  sched::Run({.workers = 2}, [] {
    for (int round = 0; round < tests::Scaled(20); ++round) {
      Scope outer;
      std::atomic<int> asleep{0};
      for (int i = 0; i < 100; ++i) {
        outer.Go([&] {
          Scope inner;
          ++asleep;
          EXPECT_FALSE(Sleep(absl::InfiniteDuration()).ok());
          EXPECT_FALSE(CheckCancelled().ok());
        });
      }
      while (asleep < 100) Yield();
      outer.Cancel();
      EXPECT_TRUE(outer.Wait().ok());
    }
  });
}

struct ThrowsWhenMoved {
  int* moves_left;

  explicit ThrowsWhenMoved(int* moves) : moves_left(moves) {}
  ThrowsWhenMoved(const ThrowsWhenMoved&) = default;
  ThrowsWhenMoved(ThrowsWhenMoved&& other) : moves_left(other.moves_left) {
    if (--*moves_left < 0) throw std::runtime_error("moved once too often");
  }
  void operator()() const {}
};

FIBER_SIM_TEST(ScopeTest, AChildThatCouldNotBeMadeIsNotWaitedFor) {
  for (int moves = 0; moves < 8; ++moves) {
    Scope scope;
    int left = moves;
    const ThrowsWhenMoved original(&left);
    try {
      scope.Go({.name = "moved"}, original);
    } catch (const std::runtime_error&) {
    }
    EXPECT_TRUE(scope.Drain(absl::Hours(1)).ok()) << moves;
  }
}

struct ParksAtItsEnd {
  bool* has_ended = nullptr;
  ~ParksAtItsEnd() {
    if (has_ended == nullptr) return;
    Yield();
    *has_ended = true;
  }
};
FiberLocal<ParksAtItsEnd> parks_at_its_end;

FIBER_SIM_TEST(ScopeTest, ItsChildrensLocalsAreGoneWhenTheyAreJoined) {
  Scope scope;
  bool has_ended = false;
  auto child = scope.Spawn([&] { parks_at_its_end->has_ended = &has_ended; });
  child.Join();
  EXPECT_TRUE(has_ended);
  EXPECT_TRUE(scope.Wait().ok());
}

FIBER_SIM_TEST(ScopeTest, WithScopeReturnsWhatItsBodyFailedOf) {
  const absl::Status status = WithScope({.deadline = absl::Milliseconds(10)}, [](Scope&) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(Sleep(absl::Seconds(1))));
    return absl::DataLossError("the body's");
  });
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
}

TEST(ScopeDeathTest, TheOuterOfTwoIsNotWaitedForFirst) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(sim::Simulate({.schedules = 1},
                             [] {
                               Scope outer({.name = "outer"});
                               Scope inner;
                               outer.Wait().IgnoreError();
                             }),
               "fiber::Scope 'outer' is waited for while a scope that was made after it is open");
}

}  // namespace
}  // namespace fiber
