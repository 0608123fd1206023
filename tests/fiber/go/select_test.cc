// SPDX-License-Identifier: Apache-2.0
//
// Go's select: rows 3 to 9, 11, 40 and 44 to 48 of docs/go_conformance.md.
#include "fiber/select.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/channel.h"
#include "fiber/go.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "tests/fiber/go/row.h"
#include "tests/parked.h"

namespace fiber {
namespace {

using tests::Times;
using tests::WaitUntilParked;

constexpr auto kNothing = [] {};
constexpr auto kDrop = [](int) {};

// Row 3: at every moment there is an item in one of the two, so a select that does not wait finds
// one.
GO_ROW(GoSelect, OneThatDoesNotWaitFindsAnItemThatIsInEitherChannelAtAnyTime, 10'000) {
  Channel<int> a(1), b(1);
  ASSERT_TRUE(a.Send(1).ok());
  auto other = Spawn([&] {
    EXPECT_TRUE(Select(OnReceive(a, kDrop), OnReceive(b, kDrop),
                       Otherwise([] { ADD_FAILURE() << "neither looked ready"; }))
                    .ok());
  });
  ASSERT_TRUE(b.Send(1).ok());
  EXPECT_TRUE(Select(OnReceive(a, kDrop), Otherwise(kNothing)).ok());
  other.Join();
}

// Row 4: the same with a close in place of the second item.
GO_ROW(GoSelect, OneThatDoesNotWaitFindsAnItemInOneOrTheEndOfTheOther, 10'000) {
  Channel<int> a(1), b;
  ASSERT_TRUE(a.Send(1).ok());
  auto other = Spawn([&] {
    const auto drop = [](absl::StatusOr<int>) {};
    EXPECT_TRUE(Select(OnReceive(a, drop), OnReceive(b, drop),
                       Otherwise([] { ADD_FAILURE() << "neither looked ready"; }))
                    .ok());
  });
  ASSERT_TRUE(b.Close());
  EXPECT_TRUE(Select(OnReceive(a, kDrop), Otherwise(kNothing)).ok());
  other.Join();
}

// Row 5.
GO_ROW(GoSelect, OneThatSendsAndReceivesOnOneChannelNeverMeetsItself, 1000) {
  for (const size_t capacity : {0, 10}) {
    Channel<int> channel(capacity);
    std::array<JoinHandle<void>, 2> pair;
    for (int self = 0; self < 2; ++self) {
      pair[self] = Spawn([&, self] {
        const auto take = [&, self](int from) {
          if (capacity == 0) {
            EXPECT_NE(from, self);
          }
        };
        for (int i = 0; i < Times(10, 500); ++i) {
          // In either order of the clauses.
          if (i % 2 == 0) {
            ASSERT_TRUE(Select(OnReceive(channel, take), OnSend(channel, self, kNothing)).ok());
          } else {
            ASSERT_TRUE(Select(OnSend(channel, self, kNothing), OnReceive(channel, take)).ok());
          }
        }
      });
    }
    for (auto& each : pair) each.Join();
  }
}

// Rows 6 and 50: each channel has a plain sender and receiver, and two selects go over all of them,
// which drop a channel once they have done their part of it.
GO_ROW(GoSelect, SelectsOverManyChannelsAmongPlainCallsAllEnd, 500) {
  constexpr int kChannels = 4;
  const int each = Times(10, 500);
  std::array<Channel<int>, kChannels> channels = {Channel<int>(0), Channel<int>(0), Channel<int>(2),
                                                  Channel<int>(3)};
  std::vector<JoinHandle<void>> fibers;
  for (auto& channel : channels) {
    fibers.push_back(Spawn([&channel, each] {
      for (int i = 0; i < each; ++i) ASSERT_TRUE(channel.Send(i).ok());
    }));
    fibers.push_back(Spawn([&channel, each] {
      for (int i = 0; i < each; ++i) ASSERT_TRUE(channel.Receive().ok());
    }));
  }
  fibers.push_back(Spawn([&] {
    std::array<int, kChannels> left;
    left.fill(each);
    for (int i = 0; i < kChannels * each; ++i) {
      ASSERT_TRUE(Select(When(left[3] > 0, OnSend(channels[3], 1, [&] { --left[3]; })),
                         When(left[2] > 0, OnSend(channels[2], 1, [&] { --left[2]; })),
                         When(left[0] > 0, OnSend(channels[0], 1, [&] { --left[0]; })),
                         When(left[1] > 0, OnSend(channels[1], 1, [&] { --left[1]; })))
                      .ok());
    }
  }));
  fibers.push_back(Spawn([&] {
    std::array<int, kChannels> left;
    left.fill(each);
    for (int i = 0; i < kChannels * each; ++i) {
      ASSERT_TRUE(Select(When(left[0] > 0, OnReceive(channels[0], [&](int) { --left[0]; })),
                         When(left[1] > 0, OnReceive(channels[1], [&](int) { --left[1]; })),
                         When(left[2] > 0, OnReceive(channels[2], [&](int) { --left[2]; })),
                         When(left[3] > 0, OnReceive(channels[3], [&](int) { --left[3]; })))
                      .ok());
    }
  }));
  for (auto& fiber : fibers) fiber.Join();
  for (auto& channel : channels) EXPECT_EQ(channel.size(), 0u);
}

// Row 7.
GO_ROW(GoSelect, OfTwoThatAreAlwaysReadyEachIsTakenHalfOfTheTime, 5) {
  Channel<int> a(1), b(1), never, neither;
  std::array<int, 4> counts = {};
  const int rounds = 10'000;
  for (int i = 0; i < rounds; ++i) {
    (void)a.TrySend(0);
    (void)b.TrySend(0);
    ++counts[Select(OnReceive(never, kDrop), OnReceive(a, kDrop), OnReceive(neither, kDrop),
                    OnReceive(b, kDrop))
                 .value()];
  }
  EXPECT_EQ(counts[0] + counts[2], 0);
  EXPECT_NEAR(counts[1], rounds / 2, 5 * std::sqrt(rounds)) << "ten standard deviations";
}

// Row 8.
GO_ROW(GoSelect, ItemsArriveWholeByOneThatWaitsAndByOneThatDoesNot, 10'000) {
  Channel<std::vector<std::string>> channel;
  const std::vector<std::string> item = {"not short enough for a string to hold by itself", "b"};
  auto sender = Spawn([&] {
    EXPECT_TRUE(Select(OnSend(channel, item, kNothing)).ok());
    bool is_sent = false;
    while (!is_sent) {
      EXPECT_TRUE(
          Select(OnSend(channel, item, [&] { is_sent = true; }), Otherwise([] { Yield(); })).ok());
    }
  });
  bool is_received = false;
  while (!is_received) {
    EXPECT_TRUE(Select(OnReceive(channel,
                                 [&](std::vector<std::string> got) {
                                   EXPECT_EQ(got, item);
                                   is_received = true;
                                 }),
                       Otherwise([] { Yield(); }))
                    .ok());
  }
  EXPECT_TRUE(
      Select(OnReceive(channel, [&](std::vector<std::string> got) { EXPECT_EQ(got, item); })).ok());
  sender.Join();
}

// Row 9.
GO_ROW(GoSelect, OfTwoSendsOnOneChannelThatHasRoomEachIsTakenNowAndThen, 20) {
  for (const size_t capacity : {1, 10, 100}) {
    Channel<int> channel(capacity);
    std::array<int, 2> counts = {};
    constexpr int kRounds = 1000;
    for (int i = 0; i < kRounds; ++i) {
      ASSERT_TRUE(Select(OnSend(channel, 0, kNothing), OnSend(channel, 1, kNothing)).ok());
      ++counts[channel.Receive().value()];
    }
    EXPECT_GT(counts[0], kRounds / 10);
    EXPECT_GT(counts[1], kRounds / 10);
  }
}

// Row 11.
GO_ROW(GoSelect, AChannelThatIsNamedTwiceIsLeftTwice, 1000) {
  Channel<int> twice, other;
  auto first = Spawn([&] {
    return Select(OnReceive(twice, kDrop), OnReceive(twice, kDrop), OnReceive(other, kDrop))
        .value();
  });
  WaitUntilParked(first);
  auto second = Spawn([&] { return twice.Receive().value(); });
  WaitUntilParked(second);
  ASSERT_TRUE(other.Send(7).ok());
  EXPECT_EQ(first.Join(), 2u);
  ASSERT_TRUE(twice.Send(8).ok());
  EXPECT_EQ(second.Join(), 8);
  EXPECT_TRUE(absl::IsDeadlineExceeded(twice.TrySend(9))) << "somebody seems to wait still";
}

// Row 40: a select of four sends does one of them, so no number arrives twice.
GO_ROW(GoSelect, OneNeverSendsByTwoOfItsClauses, 10'000) {
  const int items = Times(5, 100);
  std::array<Channel<int>, 4> channels;
  Channel<int> all;
  auto sender = Spawn([&] {
    for (int i = 0; i < items; ++i) {
      ASSERT_TRUE(Select(OnSend(channels[0], i, kNothing), OnSend(channels[1], i, kNothing),
                         OnSend(channels[2], i, kNothing), OnSend(channels[3], i, kNothing))
                      .ok());
    }
    for (auto& channel : channels) channel.Close();
  });
  auto forwarder = Spawn([&] {
    std::array<JoinHandle<void>, 4> forwarders;
    for (size_t i = 0; i < channels.size(); ++i) {
      forwarders[i] = Spawn([&all, &channel = channels[i]] {
        for (int item : channel) ASSERT_TRUE(all.Send(item).ok());
      });
    }
    for (auto& each : forwarders) each.Join();
    all.Close();
  });
  std::vector<int> counts(items);
  for (int item : all) ++counts[item];
  EXPECT_EQ(std::count(counts.begin(), counts.end(), 1), items);
  sender.Join();
  forwarder.Join();
}

// Row 44: what is ready is taken, whatever else is named; clauses that are off are as if they were
// not there.
GO_ROW(GoSelect, TakesWhatIsReadyAndLeavesTheRestAlone, 1000) {
  Channel<int> ready(1), empty, full(1), off(1);
  ASSERT_TRUE(ready.Send(5).ok());
  ASSERT_TRUE(full.Send(1).ok());
  ASSERT_TRUE(off.Send(1).ok());
  int got = 0;
  EXPECT_EQ(Select(OnReceive(empty, kDrop), OnSend(full, 2, kNothing),
                   When(false, OnReceive(off, kDrop)), OnReceive(ready, [&](int n) { got = n; }))
                .value(),
            3u);
  EXPECT_EQ(got, 5);
  EXPECT_EQ(full.size(), 1u);
  EXPECT_EQ(off.size(), 1u);
  // Two inputs are merged until both have ended: an input that has is switched off.
  Channel<int> one(1), two;
  auto feeder = Spawn([&] {
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(one.Send(1).ok());
    one.Close();
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(two.Send(10).ok());
    two.Close();
  });
  int sum = 0;
  bool has_one = true, has_two = true;
  const auto add = [&sum](bool& is_open) {
    return [&sum, &is_open](absl::StatusOr<int> n) { n.ok() ? sum += * n : is_open = false; };
  };
  while (has_one || has_two) {
    ASSERT_TRUE(Select(When(has_one, OnReceive(one, add(has_one))),
                       When(has_two, OnReceive(two, add(has_two))))
                    .ok());
  }
  EXPECT_EQ(sum, 55);
  feeder.Join();
}

// Row 44: each way to ask without waiting meets each way to wait.
GO_ROW(GoSelect, OneThatAsksAgainAndAgainMeetsOneThatWaits, 2000) {
  Channel<int> channel, never;
  const auto receive = [&](int way) {
    int got = 0;
    const auto take = [&](int n) { got = n; };
    bool is_ok = false;
    if (way == 0) return channel.Receive().value();
    if (way == 1) is_ok = Select(OnReceive(channel, take)).ok();
    if (way == 2) is_ok = Select(OnReceive(never, kDrop), OnReceive(channel, take)).ok();
    EXPECT_TRUE(is_ok);
    return got;
  };
  const auto try_send = [&](int way) {
    if (way == 0) return channel.TrySend(1).ok();
    if (way == 1) return Select(OnSend(channel, 1, kNothing), Otherwise(kNothing)).value() == 0;
    return Select(OnSend(channel, 1, kNothing), OnReceive(never, kDrop), Otherwise(kNothing))
               .value() == 0;
  };
  const auto send = [&](int way) {
    if (way == 0) return channel.Send(1).ok();
    if (way == 1) return Select(OnSend(channel, 1, kNothing)).ok();
    return Select(OnReceive(never, kDrop), OnSend(channel, 1, kNothing)).ok();
  };
  const auto try_receive = [&](int way) {
    if (way == 0) return channel.TryReceive().ok();
    if (way == 1) return Select(OnReceive(channel, kDrop), Otherwise(kNothing)).value() == 0;
    return Select(OnReceive(never, kDrop), OnReceive(channel, kDrop), Otherwise(kNothing))
               .value() == 1;
  };
  for (int waiting = 0; waiting < 3; ++waiting) {
    for (int asking = 0; asking < 3; ++asking) {
      auto receiver = Spawn([&] { EXPECT_EQ(receive(waiting), 1); });
      while (!try_send(asking)) Yield();
      receiver.Join();
      auto sender = Spawn([&] { EXPECT_TRUE(send(waiting)); });
      while (!try_receive(asking)) Yield();
      sender.Join();
    }
  }
}

// Row 45: memory is asked for nowhere in a select, so what could stay behind is somebody in a
// queue.
GO_ROW(GoSelect, ManyOfThemLeaveNobodyInAQueue, 10) {
  Channel<int> a, b, never;
  const int rounds = Times(1000, 20'000);
  auto peer = Spawn([&] {
    for (int i = 0; i < rounds; ++i) ASSERT_TRUE((i % 2 == 0 ? a : b).Send(i).ok());
  });
  for (int i = 0; i < rounds; ++i) {
    ASSERT_TRUE(Select(OnReceive(a, kDrop), OnReceive(b, kDrop), OnReceive(never, kDrop),
                       OnSend(never, 1, kNothing))
                    .ok());
  }
  peer.Join();
  for (Channel<int>* each : {&a, &b, &never}) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(each->TrySend(1)));
    EXPECT_TRUE(absl::IsDeadlineExceeded(each->TryReceive().status()));
  }
}

enum class Way { kWaits, kGoesAhead, kFails };

// What select(), which returns what Select does, does by itself.
template <class F>
Way WayOf(F select) {
  auto fiber = Spawn(std::move(select));
  WaitUntilParked(fiber);
  if (!fiber.is_done()) {
    fiber.Cancel();
    EXPECT_TRUE(absl::IsCancelled(fiber.Join().status()));
    return Way::kWaits;
  }
  return fiber.Join().ok() ? Way::kGoesAhead : Way::kFails;
}

// Row 46. A send fails where Go panics.
GO_ROW(GoSelect, TheTableOfWhatWaitsAndWhatGoesAhead, 200) {
  struct State {
    const char* name;
    size_t capacity;
    size_t items;
    bool is_closed, is_off;
    Way send, receive;
  };
  constexpr Way kWaits = Way::kWaits, kGoesAhead = Way::kGoesAhead, kFails = Way::kFails;
  const State states[] = {
      {"off", 1, 0, false, true, kWaits, kWaits},
      {"closed", 0, 0, true, false, kFails, kGoesAhead},
      {"closed with an item", 2, 1, true, false, kFails, kGoesAhead},
      {"rendezvous", 0, 0, false, false, kWaits, kWaits},
      {"empty", 2, 0, false, false, kGoesAhead, kWaits},
      {"neither empty nor full", 2, 1, false, false, kGoesAhead, kGoesAhead},
      {"full", 2, 2, false, false, kWaits, kGoesAhead},
  };
  for (const State& state : states) {
    const bool is_on = !state.is_off;
    Channel<int> never;
    const auto with_channel = [&](auto body) {
      Channel<int> channel(state.capacity);
      for (size_t i = 0; i < state.items; ++i) EXPECT_TRUE(channel.Send(1).ok());
      if (state.is_closed) channel.Close();
      return body(channel);
    };
    const auto drop = [](absl::StatusOr<int>) {};
    EXPECT_EQ(with_channel([&](auto& c) {
                return WayOf([&] { return Select(When(is_on, OnSend(c, 1, kNothing))); });
              }),
              state.send)
        << state.name;
    EXPECT_EQ(with_channel([&](auto& c) {
                return WayOf([&] { return Select(When(is_on, OnReceive(c, drop))); });
              }),
              state.receive)
        << state.name;
    // Beside another that never is ready.
    EXPECT_EQ(with_channel([&](auto& c) {
                return WayOf([&] {
                  return Select(OnReceive(never, kDrop), When(is_on, OnSend(c, 1, kNothing)));
                });
              }),
              state.send)
        << state.name;
    EXPECT_EQ(with_channel([&](auto& c) {
                return WayOf([&] {
                  return Select(When(is_on, OnReceive(c, drop)), OnSend(never, 1, kNothing));
                });
              }),
              state.receive)
        << state.name;
    // What would wait takes the Otherwise, and nothing else does.
    bool is_otherwise = false;
    const auto otherwise = [&is_otherwise] { is_otherwise = true; };
    with_channel([&](auto& c) {
      EXPECT_EQ(Select(When(is_on, OnSend(c, 1, kNothing)), Otherwise(otherwise)).ok(),
                state.send != kFails);
      return 0;
    });
    EXPECT_EQ(is_otherwise, state.send == kWaits) << state.name;
    is_otherwise = false;
    with_channel([&](auto& c) {
      EXPECT_TRUE(Select(When(is_on, OnReceive(c, drop)), Otherwise(otherwise)).ok());
      return 0;
    });
    EXPECT_EQ(is_otherwise, state.receive == kWaits) << state.name;
  }
  EXPECT_EQ(WayOf([] { return Select(); }), Way::kWaits);
}

// Row 47. In C++ the order in which operands are evaluated is open; that each is once is not.
GO_ROW(GoSelect, OperandsAreEvaluatedOnceAndMovedFromOnlyIfTheirClauseGoesAhead, 500) {
  Channel<std::string> a(1), b(1);
  int evaluated = 0;
  const auto channel = [&](Channel<std::string>& c) -> Channel<std::string>& {
    ++evaluated;
    return c;
  };
  std::string first = "first", second = "second";
  const auto item = [&](std::string& text) -> std::string&& {
    ++evaluated;
    return std::move(text);
  };
  const auto which =
      Select(OnSend(channel(a), item(first), kNothing), OnSend(channel(b), item(second), kNothing),
             When(false, OnSend(channel(b), item(second), kNothing)));
  EXPECT_EQ(evaluated, 6);
  EXPECT_EQ(first, which.value() == 0 ? "" : "first");    // NOLINT
  EXPECT_EQ(second, which.value() == 1 ? "" : "second");  // NOLINT
  EXPECT_EQ(a.size() + b.size(), 1u);
}

// Row 48: a select that loses in the middle or at the end of a queue leaves the others there in
// order.
GO_ROW(GoSelect, OneThatLeavesAQueueKeepsTheOthersInIt, 2000) {
  for (int place = 0; place < 3; ++place) {
    Channel<int> queue, other;
    std::vector<JoinHandle<int>> receivers;
    JoinHandle<size_t> leaver;
    for (int i = 0; i < 3; ++i) {
      if (i == place) {
        leaver =
            Spawn([&] { return Select(OnReceive(queue, kDrop), OnReceive(other, kDrop)).value(); });
        WaitUntilParked(leaver);
        continue;
      }
      receivers.push_back(Spawn([&] { return queue.Receive().value(); }));
      WaitUntilParked(receivers.back());
    }
    ASSERT_TRUE(other.Send(1).ok());
    EXPECT_EQ(leaver.Join(), 1u);
    receivers.push_back(Spawn([&] { return queue.Receive().value(); }));
    WaitUntilParked(receivers.back());
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(queue.Send(i).ok());
    for (int i = 0; i < 3; ++i) EXPECT_EQ(receivers[i].Join(), i);
  }
}

// Row 9, where the peer always comes later.
GO_ROW(GoSelect, OfTwoSendsOnOneChannelThatWaitEachIsTakenNowAndThen, 20) {
  Channel<int> channel;
  std::array<int, 2> counts = {};
  for (int i = 0; i < 200; ++i) {
    auto sender = Spawn([&] {
      return Select(OnSend(channel, 0, [] {}), OnSend(channel, 1, [] {})).status();
    });
    tests::WaitUntilParked(sender);
    ++counts[channel.Receive().value()];
    EXPECT_TRUE(sender.Join().ok());
  }
  EXPECT_GT(counts[0], 20);
  EXPECT_GT(counts[1], 20);
}

}  // namespace
}  // namespace fiber
