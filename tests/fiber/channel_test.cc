// SPDX-License-Identifier: Apache-2.0
#include "fiber/channel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "tests/fiber/crew.h"
#include "tests/scale.h"

namespace fiber {
namespace {

FIBER_SIM_TEST(ChannelTest, ItemsLeaveInTheOrderInWhichTheyCame) {
  for (const size_t capacity : {0, 1, 3}) {
    Channel<int> channel(capacity);
    auto sender = Spawn([&] {
      for (int i = 0; i < 10; ++i) EXPECT_TRUE(channel.Send(i).ok());
      EXPECT_TRUE(channel.Close());
    });
    int next = 0;
    for (int each : channel) EXPECT_EQ(each, next++);
    EXPECT_EQ(next, 10);
    EXPECT_TRUE(CheckCancelled().ok());
    sender.Join();
  }
}

FIBER_SIM_TEST(ChannelTest, ASendOfARendezvousReturnsOnceSomebodyHasTheItem) {
  Channel<int> channel;
  bool has_received = false;
  auto receiver = Spawn([&] {
    (void)Sleep(absl::Seconds(1));
    has_received = true;
    EXPECT_EQ(channel.Receive().value(), 7);
  });
  EXPECT_TRUE(channel.Send(7).ok());
  EXPECT_TRUE(has_received);
  EXPECT_EQ(channel.size(), 0u);
  EXPECT_EQ(channel.capacity(), 0u);
  receiver.Join();
}

TEST(ChannelTest, TryAndSizeOnAPlainThread) {
  Channel<std::string> channel(2);
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.TryReceive().status()));
  EXPECT_TRUE(channel.TrySend("a").ok());
  const std::string b = "b";
  EXPECT_TRUE(channel.TrySend(b).ok());
  EXPECT_EQ(b, "b");
  std::string c = "c";
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.TrySend(std::move(c))));
  EXPECT_EQ(c, "c");  // NOLINT: a send that fails has not touched it
  EXPECT_EQ(channel.size(), 2u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.Send(std::move(c), absl::ZeroDuration())));
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.Send(std::move(c), absl::Milliseconds(1))));
  EXPECT_EQ(c, "c");  // NOLINT
  EXPECT_EQ(channel.TryReceive().value(), "a");
  EXPECT_TRUE(channel.Close());
  EXPECT_FALSE(channel.Close());
  EXPECT_TRUE(channel.is_closed());
  EXPECT_TRUE(absl::IsFailedPrecondition(channel.Send(std::move(c))));
  EXPECT_TRUE(absl::IsFailedPrecondition(channel.TrySend(std::move(c))));
  EXPECT_EQ(c, "c");  // NOLINT
  EXPECT_EQ(channel.Receive().value(), "b");
  EXPECT_TRUE(absl::IsOutOfRange(channel.Receive().status()));
  EXPECT_TRUE(absl::IsOutOfRange(channel.TryReceive().status()));
}

FIBER_SIM_TEST(ChannelTest, CancellationAndDeadlinesAreLookedAtFirst) {
  Channel<int> channel(1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.Send(1, absl::ZeroDuration())));
  EXPECT_EQ(channel.size(), 0u);
  EXPECT_TRUE(channel.Send(1).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.Receive(absl::ZeroDuration()).status()));
  EXPECT_EQ(channel.size(), 1u);
  auto child = Spawn([&] {
    (void)Sleep(absl::InfiniteDuration());
    return channel.Receive().status();
  });
  child.Cancel(absl::CancelledError("enough"));
  EXPECT_EQ(child.Join(), absl::CancelledError("enough"));
  EXPECT_EQ(channel.Receive().value(), 1);
}

FIBER_SIM_TEST(ChannelTest, CloseReleasesAllWhoWait) {
  Channel<std::unique_ptr<int>> channel;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(Spawn([&] { EXPECT_TRUE(absl::IsOutOfRange(channel.Receive().status())); }));
  }
  Yield();
  EXPECT_TRUE(channel.Close());
  for (auto& each : fibers) each.Join();

  Channel<std::unique_ptr<int>> full(1);
  ASSERT_TRUE(full.Send(std::make_unique<int>(0)).ok());
  fibers.clear();
  for (int i = 1; i < 4; ++i) {
    fibers.push_back(Spawn([&full, i] {
      auto item = std::make_unique<int>(i);
      EXPECT_TRUE(absl::IsFailedPrecondition(full.Send(std::move(item))));
      ASSERT_NE(item, nullptr);  // NOLINT: who could not send keeps it
      EXPECT_EQ(*item, i);
    }));
  }
  Yield();
  full.Close();
  EXPECT_EQ(*full.Receive().value(), 0);
  EXPECT_TRUE(absl::IsOutOfRange(full.Receive().status()));
  for (auto& each : fibers) each.Join();
}

FIBER_SIM_TEST(ChannelTest, WhoWaitsIsServedInTheOrderOfComing) {
  Channel<int> channel;
  std::vector<JoinHandle<void>> fibers;
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&channel, i] { EXPECT_EQ(channel.Receive().value(), i); }));
    (void)Sleep(absl::Seconds(1));  // until it waits
  }
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(channel.Send(i).ok());
  for (auto& each : fibers) each.Join();
  fibers.clear();
  for (int i = 0; i < 4; ++i) {
    fibers.push_back(Spawn([&channel, i] { EXPECT_TRUE(channel.Send(i).ok()); }));
    (void)Sleep(absl::Seconds(1));
  }
  for (int i = 0; i < 4; ++i) EXPECT_EQ(channel.Receive().value(), i);
  for (auto& each : fibers) each.Join();
}

TEST(ChannelTest, ADeadlineRacingASendLosesAndDoublesNothing) {
  for (const size_t capacity : {0, 1}) {
    int sent = 0, expired = 0;
    sim::SimulateInTest({.schedules = 5000}, [&, capacity] {
      Channel<int> channel(capacity);
      for (size_t i = 0; i < capacity; ++i) EXPECT_TRUE(channel.Send(-1).ok());
      absl::Status status;
      auto sender = Spawn([&] { status = channel.Send(5, absl::Milliseconds(1)); });
      auto receiver = Spawn([&] {
        (void)Sleep(absl::Milliseconds(1));
        for (size_t i = 0; i < capacity; ++i) EXPECT_EQ(channel.Receive().value(), -1);
        return channel.Receive(absl::Milliseconds(1));
      });
      sender.Join();
      const absl::StatusOr<int> got = receiver.Join();
      EXPECT_EQ(status.ok(), got.ok()) << status << ", " << got.status();
      ++(status.ok() ? sent : expired);
    });
    EXPECT_GT(sent, 0);
    EXPECT_GT(expired, 0);
  }
}

TEST(ChannelTest, ACancellationRacingAReceiveLosesAndDoublesNothing) {
  int received = 0, cancelled = 0;
  sim::SimulateInTest({.schedules = 5000}, [&] {
    Channel<std::unique_ptr<int>> channel;
    auto receiver = Spawn([&] { return channel.Receive(); });
    auto canceller = Spawn([&] { receiver.Cancel(); });
    auto item = std::make_unique<int>(5);
    const absl::Status status = channel.Send(std::move(item), absl::Seconds(1));
    canceller.Join();
    const auto got = receiver.Join();
    EXPECT_EQ(status.ok(), got.ok()) << status << ", " << got.status();
    EXPECT_EQ(status.ok(), item == nullptr);  // NOLINT
    ++(got.ok() ? received : cancelled);
  });
  EXPECT_GT(received, 0);
  EXPECT_GT(cancelled, 0);
}

FIBER_SIM_TEST(ChannelTest, MayBeDestroyedByWhoeverHasBeenLetThrough) {
  auto channel = std::make_unique<Channel<int>>();
  auto sender = Spawn([&channel = *channel] { EXPECT_TRUE(channel.Send(1).ok()); });
  EXPECT_EQ(channel->Receive().value(), 1);
  channel.reset();
  sender.Join();
}

// What it still holds is destroyed with it.
TEST(ChannelTest, OwnsWhatItHolds) {
  auto item = std::make_shared<int>(1);
  {
    Channel<std::shared_ptr<int>> channel(3);
    EXPECT_TRUE(channel.Send(item).ok());
    EXPECT_TRUE(channel.Receive().ok());
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(channel.Send(item).ok());
    EXPECT_EQ(item.use_count(), 4);
  }
  EXPECT_EQ(item.use_count(), 1);
}

struct NoDefault {
  explicit NoDefault(int v) : value(v) {}
  NoDefault(NoDefault&&) noexcept = default;
  NoDefault& operator=(NoDefault&&) = delete;
  int value;
};
struct Nothing {};

TEST(ChannelTest, TakesAnythingThatMovesWithoutThrowing) {
  Channel<NoDefault> channel(1);
  EXPECT_TRUE(channel.Send(NoDefault(3)).ok());
  EXPECT_EQ(channel.Receive()->value, 3);
  Channel<Nothing> empty(1);
  EXPECT_TRUE(empty.Send({}).ok());
  EXPECT_TRUE(empty.Receive().ok());
  Channel<absl::StatusOr<std::string>> results(1);
  EXPECT_TRUE(results.Send(absl::NotFoundError("none")).ok());
  EXPECT_TRUE(absl::IsNotFound(results.Receive()->status()));
}

TEST(ChannelTest, ManySendersAndReceiversLoseAndDoubleNothing) {
  for (const Crew& crew : kCrews) {
    for (const size_t capacity : {0, 1, 7}) {
      const int count = crew.fibers + crew.threads;  // half of them send
      const int items = tests::Scaled(2000);
      Channel<int> channel(capacity);
      std::atomic<int> senders{count / 2};
      std::vector<std::vector<int>> got(count);
      RunCrew(crew, [&](int i) {
        if (i % 2 == 0) {
          for (int each = 0; each < items; ++each) {
            ASSERT_TRUE(channel.Send(i / 2 * items + each).ok());
          }
          if (senders.fetch_sub(1) == 1) channel.Close();
        } else {
          for (int item : channel) got[i].push_back(item);
        }
      });
      std::vector<int> all;
      for (const auto& each : got) {
        // Those of one sender come in order.
        std::vector<int> last(count, -1);
        for (int item : each) {
          EXPECT_LT(last[item / items], item);
          last[item / items] = item;
        }
        all.insert(all.end(), each.begin(), each.end());
      }
      std::sort(all.begin(), all.end());
      std::vector<int> expected(count / 2 * items);
      std::iota(expected.begin(), expected.end(), 0);
      EXPECT_EQ(all, expected);
    }
  }
}

// Deadlines and cancellations of waits that peers complete at the same moment, on threads.
TEST(ChannelTest, DeadlinesRacingOnThreadsLoseAndDoubleNothing) {
  for (const Crew& crew : kCrews) {
    Channel<int> channel(1);
    std::atomic<int> sent{0}, received{0}, senders{0};
    for (int i = 0; i < crew.fibers + crew.threads; ++i) senders.fetch_add(i % 2 == 0 ? 1 : 0);
    RunCrew(crew, [&](int i) {
      for (int round = 0; round < tests::Scaled(300); ++round) {
        const absl::Duration patience = absl::Microseconds(round % 50);
        if (i % 2 == 0) {
          if (channel.Send(round, patience).ok()) sent.fetch_add(1);
        } else if (channel.Receive(patience).ok()) {
          received.fetch_add(1);
        }
      }
    });
    while (channel.TryReceive().ok()) received.fetch_add(1);
    EXPECT_EQ(sent.load(), received.load());
  }
}

TEST(ChannelDeathTest, DestroyedWithWaitersNamesItself) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      sched::Run([] {
        auto channel = std::make_unique<Channel<int>>();
        auto receiver = Spawn([&channel = *channel] { (void)channel.Receive(); });
        Yield();
        (void)Sleep(absl::Milliseconds(20));
        channel.reset();
      }),
      "fiber::Channel 0x[0-9a-f]+ was destroyed while 0 waited to send and 1 to receive");
}

}  // namespace
}  // namespace fiber
