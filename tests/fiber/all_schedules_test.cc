// SPDX-License-Identifier: Apache-2.0
//
// Channels and selects under all schedules of two or three fibers that make two calls each; how many those are is printed.
// (All orders of their accesses to memory: tests/model/channel_cases.cc.) No item is lost or doubled, whatever ends the
// waits.
#include <climits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/select.h"
#include "fiber/sim/explore.h"
#include "fiber/sim/gtest.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "tests/scale.h"

namespace fiber {
namespace {

using sim::ExploreInTest;

// Preemptions and late timers in a schedule. Without a bound there are up to half a million.
constexpr int kMost = tests::kIsSlow ? 2 : INT_MAX;

// What became of the items, each a bit.
struct Ledger {
  int sent = 0;
  int received = 0;

  absl::Status Send(Channel<int>& channel, int bit, Deadline deadline = {}) {
    absl::Status status = channel.Send(bit, deadline);
    if (status.ok()) sent |= bit;
    return status;
  }
  absl::Status Receive(Channel<int>& channel, Deadline deadline = {}) {
    const absl::StatusOr<int> item = channel.Receive(deadline);
    if (item.ok()) Take(*item);
    return item.status();
  }
  void Take(int item) {
    EXPECT_EQ(received & item, 0) << "received twice";
    received |= item;
  }
  // What was sent has arrived, or is still in the channel.
  void Check(Channel<int>& channel) {
    for (absl::StatusOr<int> left = channel.TryReceive(); left.ok(); left = channel.TryReceive()) {
      Take(*left);
    }
    EXPECT_EQ(sent, received);
  }
};

TEST(AllSchedulesTest, TwoSendersAndAReceiver) {
  for (const size_t capacity : {0, 1, 2}) {
    ExploreInTest({.max_preemptions = kMost}, [capacity] {
      Channel<int> channel(capacity);
      Ledger ledger;
      auto one = Spawn([&] { EXPECT_TRUE(ledger.Send(channel, 1).ok()); });
      auto other = Spawn([&] { EXPECT_TRUE(ledger.Send(channel, 2).ok()); });
      EXPECT_TRUE(ledger.Receive(channel).ok());
      EXPECT_TRUE(ledger.Receive(channel).ok());
      one.Join();
      other.Join();
      ledger.Check(channel);
      EXPECT_EQ(ledger.received, 3);
    });
  }
}

TEST(AllSchedulesTest, ItemsOfOneSenderArriveInOrder) {
  for (const size_t capacity : {0, 1}) {
    ExploreInTest({.max_preemptions = kMost}, [capacity] {
      Channel<int> channel(capacity);
      auto sender = Spawn([&] {
        EXPECT_TRUE(channel.Send(1).ok());
        EXPECT_TRUE(channel.Send(2).ok());
        channel.Close();
      });
      std::vector<int> seen;
      for (const int item : channel) seen.push_back(item);
      EXPECT_EQ(seen, (std::vector<int>{1, 2}));
      sender.Join();
    });
  }
}

TEST(AllSchedulesTest, DeadlinesOnBothSides) {
  for (const size_t capacity : {0, 1}) {
    ExploreInTest({.max_preemptions = kMost, .max_late_timers = kMost}, [capacity] {
      Channel<int> channel(capacity);
      Ledger ledger;
      auto sender = Spawn([&] {
        for (const int bit : {1, 2}) {
          const absl::Status status = ledger.Send(channel, bit, absl::Milliseconds(1));
          EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
        }
      });
      for (int i = 0; i < 2; ++i) {
        const absl::Status status = ledger.Receive(channel, absl::Milliseconds(1));
        EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
      }
      sender.Join();
      ledger.Check(channel);
    });
  }
}

TEST(AllSchedulesTest, AReceiverIsCancelledAsItemsCome) {
  for (const size_t capacity : {0, 1}) {
    ExploreInTest({.max_preemptions = kMost}, [capacity] {
      Channel<int> channel(capacity);
      Ledger ledger;
      auto receiver = Spawn([&] {
        while (ledger.Receive(channel).ok()) {
        }
      });
      auto sender = Spawn([&] {
        for (const int bit : {1, 2}) (void)ledger.Send(channel, bit, absl::Milliseconds(1));
      });
      receiver.Cancel();
      receiver.Join();
      sender.Join();
      ledger.Check(channel);
    });
  }
}

TEST(AllSchedulesTest, CloseAmongSendersAndReceivers) {
  for (const size_t capacity : {0, 1}) {
    ExploreInTest({.max_preemptions = kMost}, [capacity] {
      Channel<int> channel(capacity);
      Ledger ledger;
      auto sender = Spawn([&] {
        for (const int bit : {1, 2}) {
          const absl::Status status = ledger.Send(channel, bit);
          EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status)) << status;
        }
      });
      auto receiver = Spawn([&] {
        for (int i = 0; i < 2; ++i) {
          const absl::Status status = ledger.Receive(channel);
          EXPECT_TRUE(status.ok() || absl::IsOutOfRange(status)) << status;
        }
      });
      EXPECT_TRUE(channel.Close());
      sender.Join();
      receiver.Join();
      ledger.Check(channel);
    });
  }
}

// Each may send to the other or receive from it: they pair up, one way or the other.
TEST(AllSchedulesTest, SelectsThatFaceEachOther) {
  ExploreInTest({.max_preemptions = kMost}, [] {
    Channel<int> there, back;
    Ledger ledger;
    const auto meet = [&](Channel<int>& out, Channel<int>& in, int bit) {
      auto which = Select(OnSend(out, bit, [&] { ledger.sent |= bit; }),
                          OnReceive(in, [&](int item) { ledger.Take(item); }));
      EXPECT_TRUE(which.ok());
    };
    auto other = Spawn([&] { meet(back, there, 2); });
    meet(there, back, 1);
    other.Join();
    EXPECT_EQ(ledger.sent, ledger.received);
    EXPECT_NE(ledger.sent, 0);
  });
}

TEST(AllSchedulesTest, SelectsThatMayTimeOutOrBeStopped) {
  ExploreInTest({.max_preemptions = kMost, .max_late_timers = kMost}, [] {
    Channel<int> channel, none;
    Ledger ledger;
    Event stop;
    auto sender = Spawn([&] {
      for (const int bit : {1, 2}) {
        EXPECT_TRUE(Select(OnSend(channel, bit, [&] { ledger.sent |= bit; }), OnEvent(stop, [] {})).ok());
      }
    });
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(Select(OnReceive(channel, [&](int item) { ledger.Take(item); }),
                         OnReceive(none, [](int) {}), OnDeadline(absl::Milliseconds(1), [] {}))
                      .ok());
    }
    stop.Set();
    sender.Join();
    ledger.Check(channel);
  });
}

}  // namespace
}  // namespace fiber
