// SPDX-License-Identifier: Apache-2.0
//
// Go's channels: rows 1, 2, 8, 10, 12, 15, 41, 42, 43 and 49 of docs/go_conformance.md.
#include "fiber/channel.h"

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/select.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "tests/fiber/go/row.h"
#include "tests/parked.h"
#include "tests/scale.h"

namespace fiber {
namespace {

using tests::Times;
using tests::WaitUntilParked;

constexpr auto kNothing = [] {};
constexpr size_t kCapacities = 200;  // from none to one below

// Row 1.
GO_ROW(GoChannel, WhoFindsItEmptyOrFullWaitsAndWhoOnlyTriesDoesNot, 8) {
  for (size_t capacity = 0; capacity < kCapacities; ++capacity) {
    Channel<int> channel(capacity);
    EXPECT_EQ(channel.capacity(), capacity);
    auto receiver = Spawn([&] { return channel.Receive().value(); });
    WaitUntilParked(receiver);
    ASSERT_FALSE(receiver.is_done());
    EXPECT_TRUE(absl::IsDeadlineExceeded(channel.TryReceive().status()));
    ASSERT_TRUE(channel.Send(-1).ok());
    EXPECT_EQ(receiver.Join(), -1);

    for (size_t i = 0; i < capacity; ++i) ASSERT_TRUE(channel.TrySend(static_cast<int>(i)).ok());
    EXPECT_EQ(channel.size(), capacity);
    auto sender = Spawn([&] { return channel.Send(static_cast<int>(capacity)); });
    WaitUntilParked(sender);
    ASSERT_FALSE(sender.is_done());
    if (capacity > 0) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(channel.TrySend(1)));
    }
    EXPECT_EQ(channel.size(), capacity) << "who waits is not counted";
    for (size_t i = 0; i <= capacity; ++i)
      ASSERT_EQ(channel.TryReceive().value(), static_cast<int>(i));
    EXPECT_TRUE(sender.Join().ok());
    EXPECT_EQ(channel.size(), 0u);
    EXPECT_TRUE(absl::IsDeadlineExceeded(channel.TryReceive().status()));
  }
}

// Row 1.
GO_ROW(GoChannel, AClosedOneGivesWhatIsLeftInOrderAndThenTheEndForEver, 8) {
  for (size_t capacity = 0; capacity < kCapacities; ++capacity) {
    Channel<int> channel(capacity);
    for (size_t i = 0; i < capacity; ++i) ASSERT_TRUE(channel.Send(static_cast<int>(i)).ok());
    ASSERT_TRUE(channel.Close());
    for (size_t i = 0; i < capacity; ++i) ASSERT_EQ(channel.Receive().value(), static_cast<int>(i));
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(absl::IsOutOfRange(channel.Receive().status()));
      EXPECT_TRUE(absl::IsOutOfRange(channel.TryReceive().status()));
    }
  }
}

// Row 1.
GO_ROW(GoChannel, CloseEndsAReceiveThatWaits, 10'000) {
  Channel<int> channel(sim::CurrentSeed() % 3);
  auto receiver = Spawn([&] { return channel.Receive().status(); });
  auto selecter = Spawn([&] { return Select(OnReceive(channel, [](int) {})).status(); });
  EXPECT_TRUE(channel.Close());
  EXPECT_TRUE(absl::IsOutOfRange(receiver.Join()));
  EXPECT_TRUE(absl::IsOutOfRange(selecter.Join()));
}

// Row 1. Where Go panics it says so by a status, and by Close() returning false.
GO_ROW(GoChannel, SendingOnAClosedOneFailsForWhoWaitsToo, 10'000) {
  Channel<std::string> channel;
  auto sender = Spawn([&] {
    std::string item = "kept";
    EXPECT_TRUE(absl::IsFailedPrecondition(channel.Send(std::move(item))));
    EXPECT_EQ(item, "kept");  // NOLINT: not moved from
  });
  auto selecter = Spawn([&] {
    std::string item = "kept";
    EXPECT_TRUE(absl::IsFailedPrecondition(
        Select(OnSend(channel, std::move(item), [] { ADD_FAILURE(); })).status()));
    EXPECT_EQ(item, "kept");  // NOLINT
  });
  EXPECT_TRUE(channel.Close());
  EXPECT_FALSE(channel.Close());
  EXPECT_TRUE(absl::IsFailedPrecondition(channel.TrySend("late")));
  // An Otherwise does not come before it.
  EXPECT_TRUE(absl::IsFailedPrecondition(
      Select(OnSend(channel, "late", kNothing), Otherwise([] { ADD_FAILURE(); })).status()));
  sender.Join();
  selecter.Join();
}

// Row 1.
GO_ROW(GoChannel, AHundredItemsArriveInTheirOrder, 100) {
  for (const size_t capacity : {0, 1, 7, 100, 199}) {
    Channel<int> channel(capacity);
    auto sender = Spawn([&] {
      for (int i = 0; i < 100; ++i) ASSERT_TRUE(channel.Send(i).ok());
    });
    for (int i = 0; i < 100; ++i) ASSERT_EQ(channel.Receive().value(), i);
    sender.Join();
  }
}

// Row 1.
GO_ROW(GoChannel, FourSendersAndFourReceiversLoseAndDoubleNothing, 100) {
  constexpr int kEach = 20;
  for (const size_t capacity : {0, 1, 5, 199}) {
    Channel<int> channel(capacity);
    std::array<std::atomic<int>, kEach> seen = {};
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < 4; ++i) {
      fibers.push_back(Spawn([&] {
        for (int item = 0; item < kEach; ++item) ASSERT_TRUE(channel.Send(item).ok());
      }));
      fibers.push_back(Spawn([&] {
        for (int item = 0; item < kEach; ++item) {
          seen[channel.Receive().value()].fetch_add(1, std::memory_order_relaxed);
        }
      }));
    }
    for (auto& each : fibers) each.Join();
    for (auto& count : seen) EXPECT_EQ(count.load(std::memory_order_relaxed), 4);
    EXPECT_EQ(channel.size(), 0u);
  }
}

// Row 2: an item and a close, for two receivers. At no moment is there nothing to be had.
GO_ROW(GoChannel, ATryAlwaysFindsTheItemOrTheEnd, 10'000) {
  Channel<int> channel(1);
  ASSERT_TRUE(channel.Send(1).ok());
  auto other = Spawn([&] { return channel.TryReceive().status(); });
  EXPECT_TRUE(channel.Close());
  const absl::Status mine = channel.Receive().status();
  const absl::Status others = other.Join();
  EXPECT_TRUE(mine.ok() != others.ok());
  EXPECT_TRUE(absl::IsOutOfRange(mine.ok() ? others : mine)) << mine << others;
}

// Row 2: a send hands its item over to who waits, or leaves it in the channel. A try that comes
// after it finds it.
GO_ROW(GoChannel, ATryAfterASendFindsItsItem, 10'000) {
  Channel<int> channel(2);
  auto other = Spawn([&] { return channel.TryReceive().ok(); });
  ASSERT_TRUE(channel.TrySend(1).ok());
  ASSERT_TRUE(channel.TrySend(2).ok());
  EXPECT_TRUE(channel.TryReceive().ok());
  const bool has_taken = other.Join();
  EXPECT_EQ(channel.TryReceive().ok(), !has_taken);
}

struct Interface {
  virtual ~Interface() = default;
  virtual int Value() const = 0;
};
struct Implementation : Interface {
  explicit Implementation(int n) : n(n) {}
  int Value() const override { return n; }
  const int n;
};

// Rows 8 and 12. Stacks do not move, so a slot on one is as good as any: the item arrives whole
// however it was sent.
GO_ROW(GoChannel, ItemsOfAClassHierarchyArriveWholeHoweverTheyAreSent, 10'000) {
  using Item = std::unique_ptr<Interface>;
  Channel<Item> channel(sim::CurrentSeed() % 2);
  auto sender = Spawn([&] {
    ASSERT_TRUE(channel.Send(std::make_unique<Implementation>(1)).ok());
    ASSERT_TRUE(Select(OnSend(channel, std::make_unique<Implementation>(2), kNothing)).ok());
    Item third = std::make_unique<Implementation>(3);
    while (!channel.TrySend(std::move(third)).ok()) Yield();
  });
  EXPECT_EQ((*channel.Receive())->Value(), 1);
  EXPECT_TRUE(Select(OnReceive(channel, [](Item item) { EXPECT_EQ(item->Value(), 2); })).ok());
  EXPECT_EQ((*channel.Receive())->Value(), 3);
  sender.Join();
}

// Row 10.
GO_ROW(GoChannel, ManyConsumersShareTheWorkAndTheirRangesEnd, 100) {
  constexpr std::array<int, 12> kPrimes = {2, 3, 7, 11, 31, 37, 89, 97, 127, 179, 223, 271};
  constexpr int kConsumers = 23;
  const int items = Times(200, 5000);
  Channel<int> work(kConsumers * 3), results(kConsumers * 3);
  int64_t expected = 0;
  for (int i = 0; i < items; ++i) expected += kPrimes[i % kPrimes.size()];
  auto feeder = Spawn([&] {
    for (int i = 0; i < items; ++i) ASSERT_TRUE(work.Send(kPrimes[i % kPrimes.size()]).ok());
    work.Close();
  });
  auto closer = Spawn([&] {
    std::vector<JoinHandle<void>> consumers;
    for (int i = 0; i < kConsumers; ++i) {
      consumers.push_back(Spawn([&] {
        for (int item : work) ASSERT_TRUE(results.Send(item).ok());
      }));
    }
    for (auto& each : consumers) each.Join();
    results.Close();
  });
  int64_t sum = 0;
  int count = 0;
  for (int result : results) {
    sum += result;
    ++count;
  }
  EXPECT_EQ(count, items);
  EXPECT_EQ(sum, expected);
  feeder.Join();
  closer.Join();
}

// Row 15. What is bound to a thread here is a thread that is no worker. Simulations have none.
FIBER_TEST_ON(GoChannelWorkers, APlainThreadAndAFiberPingPong, 1, 2, 8) {
  Channel<int> ping, pong;
  const int rounds = tests::Scaled(2000);
  std::thread thread([&] {
    for (int i = 0; i < rounds; ++i) {
      ASSERT_EQ(ping.Receive().value(), i);
      ASSERT_TRUE(pong.Send(i).ok());
    }
  });
  for (int i = 0; i < rounds; ++i) {
    ASSERT_TRUE(ping.Send(i).ok());
    ASSERT_EQ(pong.Receive().value(), i);
  }
  thread.join();
}

// Row 41.
GO_ROW(GoChannel, SendersAndReceiversAreServedInTheOrderInWhichTheyCame, 1000) {
  constexpr int kEach = 5;
  for (const size_t capacity : {0, 2}) {
    Channel<int> channel(capacity);
    for (size_t i = 0; i < capacity; ++i) ASSERT_TRUE(channel.Send(100).ok());
    std::vector<JoinHandle<int>> fibers;
    for (int i = 0; i < kEach; ++i) {
      fibers.push_back(Spawn([&channel, i] { return channel.Send(i).ok() ? i : -1; }));
      WaitUntilParked(fibers.back());
    }
    for (size_t i = 0; i < capacity; ++i) EXPECT_EQ(channel.Receive().value(), 100);
    for (int i = 0; i < kEach; ++i) EXPECT_EQ(channel.Receive().value(), i);
    for (int i = 0; i < kEach; ++i) EXPECT_EQ(fibers[i].Join(), i);
    fibers.clear();
    for (int i = 0; i < kEach; ++i) {
      fibers.push_back(Spawn([&] { return channel.Receive().value(); }));
      WaitUntilParked(fibers.back());
    }
    for (int i = 0; i < kEach; ++i) ASSERT_TRUE(channel.Send(i).ok());
    for (int i = 0; i < kEach; ++i) EXPECT_EQ(fibers[i].Join(), i);
  }
}

// Row 42.
GO_ROW(GoChannel, AnItemPassesThroughAChainOfTenThousandFibers, 3) {
  const int length = tests::kHasFewFibers ? 1000 : 10'000;
  std::vector<std::unique_ptr<Channel<int>>> links(length + 1);
  for (auto& link : links) link = std::make_unique<Channel<int>>();
  for (int i = 0; i < length; ++i) {
    Go([&in = *links[i], &out = *links[i + 1]] {
      const int item = in.Receive().value();
      EXPECT_TRUE(out.Send(item + 1).ok());
    });
  }
  ASSERT_TRUE(links.front()->Send(0).ok());
  EXPECT_EQ(links.back()->Receive().value(), length);
}

struct Large {
  bool operator==(const Large&) const = default;
  std::array<int64_t, 32> words;
};

// `item` by every call that does not wait: none there, one in the buffer, no room, and with a peer
// that waits.
template <class T>
void TryEverything(const T& item) {
  Channel<T> rendezvous, buffered(1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(rendezvous.TryReceive().status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(rendezvous.TrySend(item)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(buffered.TryReceive().status()));
  EXPECT_TRUE(buffered.TrySend(item).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(buffered.TrySend(item)));
  EXPECT_EQ(buffered.TryReceive().value(), item);

  auto receiver = Spawn([&] { return rendezvous.Receive().value(); });
  while (!rendezvous.TrySend(item).ok()) Yield();
  EXPECT_EQ(receiver.Join(), item);
  auto sender = Spawn([&] { return rendezvous.Send(item); });
  for (;;) {
    absl::StatusOr<T> got = rendezvous.TryReceive();
    if (got.ok()) {
      EXPECT_EQ(*got, item);
      break;
    }
    Yield();
  }
  EXPECT_TRUE(sender.Join().ok());
}

// Row 43.
GO_ROW(GoChannel, CallsThatDoNotWaitWorkForItemsOfAnyType, 500) {
  TryEverything(true);
  TryEverything('x');
  TryEverything(1 << 30);
  TryEverything(int64_t{1} << 60);
  TryEverything(2.5);
  TryEverything(std::string("longer than what fits into a string by itself"));
  TryEverything(std::make_shared<int>(7));
  TryEverything(Large{.words = {1, 2, 3}});
  TryEverything(std::tuple<char, int64_t, std::string>('a', 1, "b"));
}

struct Empty {
  bool operator==(const Empty&) const = default;
};

// Row 49. (In which direction a channel may be used is no part of its type here.)
GO_ROW(GoChannel, ItemsOfNoSizeAreCountedLikeOthers, 500) {
  TryEverything(Empty{});
  Channel<Empty> channel(3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(channel.Send(Empty{}).ok());
  EXPECT_EQ(channel.size(), 3u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel.TrySend(Empty{})));
  channel.Close();
  int count = 0;
  for (Empty each : channel) count += each == Empty{};
  EXPECT_EQ(count, 3);
}

}  // namespace
}  // namespace fiber
