// SPDX-License-Identifier: Apache-2.0
#include "fiber/select.h"

#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/fiber/crew.h"
#include "tests/scale.h"

namespace fiber {
namespace {

constexpr auto kNothing = [] {};

FIBER_SIM_TEST(SelectTest, TheClauseThatIsReadyGoesAhead) {
  Channel<int> a(1), b(1);
  ASSERT_TRUE(b.Send(4).ok());
  int got = 0;
  EXPECT_EQ(Select(OnReceive(a, [&](int) { ADD_FAILURE(); }), OnReceive(b, [&](int n) { got = n; })).value(), 1u);
  EXPECT_EQ(got, 4);
  EXPECT_EQ(Select(OnReceive(a, [&](int) { ADD_FAILURE(); }), OnSend(b, 5, kNothing)).value(), 1u);
  EXPECT_EQ(b.TryReceive().value(), 5);
}

FIBER_SIM_TEST(SelectTest, WaitsForTheFirstThatComes) {
  Channel<std::string> a, b;
  auto sender = Spawn([&] {
    (void)Sleep(absl::Seconds(1));
    EXPECT_TRUE(b.Send("late").ok());
  });
  std::string got;
  const auto which = Select(OnReceive(a, [&](std::string) { ADD_FAILURE(); }),
                            OnReceive(b, [&](std::string s) { got = std::move(s); }));
  EXPECT_EQ(which.value(), 1u);
  EXPECT_EQ(got, "late");
  // Nothing is left behind: a newcomer finds nobody waiting.
  EXPECT_TRUE(absl::IsDeadlineExceeded(a.TrySend("x")));
  sender.Join();
}

FIBER_SIM_TEST(SelectTest, AClosedChannelIsReady) {
  Channel<int> channel;
  channel.Close();
  EXPECT_TRUE(absl::IsOutOfRange(Select(OnReceive(channel, [](int) { ADD_FAILURE(); })).status()));
  bool is_called = false;
  EXPECT_EQ(Select(OnReceive(channel, [&](absl::StatusOr<int> n) {
              is_called = true;
              EXPECT_TRUE(absl::IsOutOfRange(n.status()));
            })).value(), 0u);
  EXPECT_TRUE(is_called);
  std::string item = "mine";
  Channel<std::string> other;
  auto closer = Spawn([&] { other.Close(); });
  EXPECT_TRUE(absl::IsFailedPrecondition(
      Select(OnSend(other, std::move(item), [] { ADD_FAILURE(); })).status()));
  EXPECT_EQ(item, "mine");  // NOLINT
  closer.Join();
}

FIBER_SIM_TEST(SelectTest, OneSidedClausesEventJoinDeadlineCancel) {
  Event event;
  CancelSource source;
  Channel<int> channel;
  auto child = Spawn([] { return 3; });
  EXPECT_EQ(Select(OnEvent(event, kNothing), OnJoin(child, kNothing), OnReceive(channel, [](int) {})).value(), 1u);
  EXPECT_EQ(child.Join(), 3);

  const absl::Duration before = Now();
  EXPECT_EQ(Select(OnEvent(event, kNothing), OnDeadline(absl::Seconds(3), kNothing),
                   OnDeadline(absl::Seconds(2), kNothing)).value(), 2u);
  EXPECT_EQ(Now() - before, absl::Seconds(2));

  auto canceller = Spawn([&] { source.Cancel(); });
  EXPECT_EQ(Select(OnEvent(event, kNothing), OnCancel(source.token(), kNothing)).value(), 1u);
  EXPECT_EQ(Select(OnCancel(source.token(), kNothing)).value(), 0u);
  canceller.Join();

  auto setter = Spawn([&] { event.Set(); });
  EXPECT_EQ(Select(OnEvent(event, kNothing), OnDeadline(absl::Hours(1), kNothing), OnCancel({}, kNothing)).value(), 0u);
  setter.Join();
}

FIBER_SIM_TEST(SelectTest, OtherwiseIsTakenOnlyIfNothingElseIsReady) {
  Channel<int> channel(1);
  EXPECT_EQ(Select(OnReceive(channel, [](int) {}), Otherwise(kNothing)).value(), 1u);
  ASSERT_TRUE(channel.Send(1).ok());
  EXPECT_EQ(Select(OnReceive(channel, [](int) {}), Otherwise([] { ADD_FAILURE(); })).value(), 0u);
}

FIBER_SIM_TEST(SelectTest, AClauseThatIsOffNeverGoesAhead) {
  Channel<int> channel(1);
  ASSERT_TRUE(channel.Send(1).ok());
  EXPECT_EQ(Select(When(false, OnReceive(channel, [](int) { ADD_FAILURE(); })), Otherwise(kNothing)).value(), 1u);
  // With none at all it waits to be cancelled.
  auto forever = Spawn([] { return Select().status(); });
  auto other = Spawn([&] {
    return Select(When(false, OnReceive(channel, [](int) { ADD_FAILURE(); }))).status();
  });
  (void)Sleep(absl::Hours(1));
  EXPECT_FALSE(forever.is_done());
  forever.Cancel();
  other.Cancel();
  EXPECT_TRUE(absl::IsCancelled(forever.Join()));
  EXPECT_TRUE(absl::IsCancelled(other.Join()));
}

FIBER_SIM_TEST(SelectTest, TheAmbientDeadlineEndsIt) {
  Channel<int> channel;
  DeadlineScope bound(absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      Select(OnReceive(channel, [](int) {}), OnDeadline(absl::Seconds(2), [] { ADD_FAILURE(); })).status()));
}

FIBER_SIM_TEST(SelectTest, OneChannelTwiceAndBothWays) {
  Channel<int> channel;
  // It never pairs with itself.
  EXPECT_EQ(Select(OnSend(channel, 1, [] { ADD_FAILURE(); }), OnReceive(channel, [](int) { ADD_FAILURE(); }),
                   OnDeadline(absl::Milliseconds(1), kNothing)).value(), 2u);
  std::array<JoinHandle<void>, 2> pair;
  int sent = 0, received = 0;
  for (auto& each : pair) {
    each = Spawn([&] {
      EXPECT_TRUE(Select(OnSend(channel, 1, [&] { ++sent; }), OnReceive(channel, [&](int) { ++received; }),
                         OnReceive(channel, [&](int) { ++received; })).ok());
    });
  }
  for (auto& each : pair) each.Join();
  EXPECT_EQ(sent, 1);
  EXPECT_EQ(received, 1);
}

TEST(SelectTest, ChoosesAmongSeveralAlike) {
  Channel<int> a(1), b(1);
  int counts[2] = {};
  const int rounds = tests::Scaled(20'000);
  for (int i = 0; i < rounds; ++i) {
    (void)a.TrySend(0);
    (void)b.TrySend(0);
    ++counts[Select(OnReceive(a, [](int) {}), OnReceive(b, [](int) {})).value()];
  }
  // Ten standard deviations.
  EXPECT_NEAR(counts[0], rounds / 2, 5 * std::sqrt(rounds));
}

TEST(SelectTest, RacingSelectsPairUpOrNeitherDoes) {
  int met = 0;
  sim::SimulateInTest({.schedules = 10'000}, [&] {
    Channel<int> a, b;
    int sent = 0, received = 0;
    // Each may also time out or be cancelled in the same instant.
    auto left = Spawn([&] {
      return Select(OnSend(a, 1, [&] { ++sent; }), OnReceive(b, [&](int) { ++received; }),
                    OnDeadline(absl::Milliseconds(1), kNothing)).status();
    });
    auto right = Spawn([&] {
      (void)Sleep(absl::Milliseconds(1));
      return Select(OnReceive(a, [&](int) { ++received; }), OnSend(b, 2, [&] { ++sent; }),
                    OnDeadline(absl::Milliseconds(1), kNothing)).status();
    });
    auto canceller = Spawn([&] {
      (void)Sleep(absl::Milliseconds(1));
      right.Cancel();
    });
    (void)left.Wait();
    canceller.Join();
    (void)right.Join();
    (void)left.Join();
    EXPECT_EQ(sent, received);
    met += sent;
  });
  EXPECT_GT(met, 0);
}

FIBER_SIM_TEST(SelectTest, AListIsUsedAgainAndAgain) {
  std::vector<std::unique_ptr<Channel<int>>> channels;
  ClauseList list;
  std::vector<int> open;
  int sum = 0;
  for (int i = 0; i < 5; ++i) {
    channels.push_back(std::make_unique<Channel<int>>());
    list.Add(OnReceive(*channels.back(), [&sum](absl::StatusOr<int> n) { sum += n.value_or(0); }));
  }
  EXPECT_EQ(list.size(), 5u);
  for (int i = 0; i < 5; ++i) {
    Go([&channel = *channels[i], i] { EXPECT_TRUE(channel.Send(1 << i).ok()); });
  }
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(Select(list).ok());
  EXPECT_EQ(sum, 31);
  list.Clear();
  EXPECT_EQ(list.size(), 0u);
}

FIBER_SIM_TEST(SelectTest, AHandlerMayThrowParkAndSelect) {
  Channel<int> channel(1);
  ASSERT_TRUE(channel.Send(1).ok());
  EXPECT_THROW((void)Select(OnReceive(channel, [](int) { throw std::string("out"); })), std::string);
  ASSERT_TRUE(channel.Send(2).ok());  // it has been taken
  EXPECT_TRUE(Select(OnReceive(channel, [&](int) {
                (void)Sleep(absl::Seconds(1));
                EXPECT_TRUE(Select(OnSend(channel, 3, kNothing)).ok());
              })).ok());
  EXPECT_EQ(channel.TryReceive().value(), 3);
}

FIBER_SIM_TEST(SelectTest, WhatMadeAClauseReadyMayDestroyItsObject) {
  auto event = std::make_unique<Event>();
  auto channel = std::make_unique<Channel<int>>();
  Channel<int> other;
  auto owner = Spawn([&] {
    (void)Sleep(absl::Seconds(1));  // until somebody waits
    event->Set();
    event.reset();
  });
  EXPECT_TRUE(Select(OnEvent(*event, kNothing), OnReceive(other, [](int) {})).ok());
  owner.Join();
  auto sender = Spawn([&] {
    (void)Sleep(absl::Seconds(1));
    EXPECT_TRUE(channel->Send(1).ok());
    channel.reset();
  });
  EXPECT_TRUE(Select(OnReceive(*channel, [](int) {}), OnReceive(other, [](int) {})).ok());
  sender.Join();
}

TEST(SelectTest, WithAnOtherwiseNobodyElseRunsMeanwhile) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    bool has_run = false;
    auto other = Spawn([&] { has_run = true; });
    Channel<int> channel;
    for (const absl::Duration time : {absl::InfiniteDuration(), absl::ZeroDuration()}) {  // it fails at once in no time
      DeadlineScope deadline(time);
      for (int i = 0; i < 5000; ++i) {
        Select(OnReceive(channel, [](int) {}), Otherwise(kNothing)).status().IgnoreError();
      }
      EXPECT_FALSE(has_run);
    }
  });
}

TEST(SelectDeathTest, AHandlerClearsItsList) {
  Channel<int> channel(1);
  EXPECT_TRUE(channel.TrySend(1).ok());
  ClauseList list;
  list.Add(OnReceive(channel, [&](int) { list.Clear(); }));
  EXPECT_DEATH(Select(list).status().IgnoreError(), "a handler of the list must not clear it");
}

TEST(SelectDeathTest, OneClauseTwice) {
  Channel<int> channel;
  auto clause = OnReceive(channel, [](int) {});
  EXPECT_DEATH(Select(clause, clause).status().IgnoreError(), "a clause is in two Selects at once, or twice in one");
}

TEST(SelectTest, ManyOnThreadsLoseAndDoubleNothing) {
  for (const Crew& crew : kCrews) {
    Channel<int> channels[4] = {Channel<int>(0), Channel<int>(1), Channel<int>(0), Channel<int>(3)};
    std::atomic<int64_t> sent{0}, received{0};
    RunCrew(crew, [&](int i) {
      for (int round = 0; round < tests::Scaled(1000); ++round) {
        Channel<int>& a = channels[(i + round) % 4];
        Channel<int>& b = channels[(i + round / 3 + 1) % 4];
        ASSERT_TRUE(Select(OnSend(a, round, [&] { sent.fetch_add(round); }),
                           OnReceive(b, [&](int n) { received.fetch_add(n); }),
                           OnReceive(a, [&](int n) { received.fetch_add(n); }),
                           OnDeadline(absl::Microseconds(round % 100), kNothing)).ok());
      }
    });
    for (auto& each : channels) {
      for (auto n = each.TryReceive(); n.ok(); n = each.TryReceive()) received.fetch_add(*n);
    }
    EXPECT_EQ(sent.load(), received.load());
  }
}

}  // namespace
}  // namespace fiber
