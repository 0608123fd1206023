// SPDX-License-Identifier: Apache-2.0
//
// The network in memory: what it has beside conformance_test.cc. Faults, by probability, by hand
// and by seed; the virtual clock; its limits.
#include "netpoll/sim/network.h"

#include <errno.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/stream.h"
#include "sched/gtest.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using fiber::Deadline;
using fiber::sim::SimulateInTest;
using netpoll::ErrnoOf;
using netpoll::IoResult;
using netpoll::ReadFull;
using netpoll::Stream;
using netpoll::sim::Faults;
using netpoll::sim::MemoryListener;
using netpoll::sim::MemoryPair;
using netpoll::sim::MemoryStream;
using netpoll::sim::Network;
using netpoll::sim::NetworkOptions;

absl::Status ReadByte(Stream& stream, Deadline deadline = {}) {
  char byte[1];
  return stream.Read(byte, deadline).status();
}

// Without: a delay is no time of the virtual clock, or what was sent later arrives earlier.
TEST(NetworkTest, WhatIsSentArrivesWhenItsDelayIsOver) {
  SimulateInTest({.schedules = 50}, [] {
    Network network(
        {.faults = {.min_delay = absl::Milliseconds(20), .max_delay = absl::Milliseconds(30)}});
    MemoryPair pair = network.Pair();
    const absl::Duration start = fiber::Now();
    ASSERT_TRUE(pair.client.Write("a").ok());
    EXPECT_EQ(fiber::Now(), start) << "who writes does not wait";
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.server, absl::Milliseconds(19))));
    ASSERT_TRUE(ReadByte(pair.server).ok());
    EXPECT_GE(fiber::Now() - start, absl::Milliseconds(20));
    EXPECT_LE(fiber::Now() - start, absl::Milliseconds(30));
    const absl::Duration second = fiber::Now();
    pair.client.Close();
    EXPECT_TRUE(absl::IsOutOfRange(ReadByte(pair.server)));
    EXPECT_GE(fiber::Now() - second, absl::Milliseconds(20)) << "so does the end";
  });
}

// Without: connecting takes no time, or a deadline in the middle is not seen.
FIBER_SIM_TEST(NetworkTest, ConnectingGoesThereAndBack) {
  Network network({.faults = {.min_delay = absl::Milliseconds(20)}});
  auto listener = network.Listen("far away");
  ASSERT_TRUE(listener.ok());
  absl::Duration start = fiber::Now();
  EXPECT_TRUE(network.Connect("far away").ok());
  EXPECT_EQ(fiber::Now() - start, absl::Milliseconds(40));
  start = fiber::Now();
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(network.Connect("far away", absl::Milliseconds(39)).status()));
  EXPECT_EQ(fiber::Now() - start, absl::Milliseconds(39));
  auto cancelled = fiber::Spawn([&] { return network.Connect("far away").status(); });
  cancelled.Cancel();
  EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
}

// Without: addresses that are taken, free again, unknown or empty are not told apart.
FIBER_SIM_TEST(NetworkTest, AnAddressHasOneListenerAtATime) {
  Network network;
  EXPECT_TRUE(absl::IsInvalidArgument(network.Listen("").status()));
  EXPECT_EQ(ErrnoOf(network.Connect("server").status()), ECONNREFUSED);
  auto listener = network.Listen("server");
  ASSERT_TRUE(listener.ok());
  const absl::Status taken = network.Listen("server").status();
  EXPECT_TRUE(absl::IsAlreadyExists(taken)) << taken;
  EXPECT_EQ(ErrnoOf(taken), EADDRINUSE);
  EXPECT_TRUE(network.Listen("another").ok());
  listener->Close();
  auto again = network.Listen("server");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(network.Connect("server").ok());
  EXPECT_TRUE(again->Accept().ok());
  Network elsewhere;
  EXPECT_EQ(ErrnoOf(elsewhere.Connect("server").status()), ECONNREFUSED);
}

// Without: a Connect is lost, or not told, where nobody accepts.
FIBER_SIM_TEST(NetworkTest, AFullBacklogKeepsWhoConnects) {
  Network network({.backlog = 2});
  auto listener = network.Listen("busy");
  ASSERT_TRUE(listener.ok());
  std::vector<MemoryStream> clients;
  for (int i = 0; i < 2; ++i) clients.push_back(*network.Connect("busy"));
  EXPECT_TRUE(absl::IsDeadlineExceeded(network.Connect("busy", absl::Seconds(1)).status()));
  auto third = fiber::Spawn([&] { return network.Connect("busy").status(); });
  auto fourth = fiber::Spawn([&] { return network.Connect("busy").status(); });
  WaitUntilParked(third);
  WaitUntilParked(fourth);
  EXPECT_TRUE(listener->Accept().ok());
  EXPECT_TRUE(third.Wait(absl::Hours(1)).ok() || fourth.is_done());
  listener->Close();
  const absl::Status one = third.Join(), other = fourth.Join();
  EXPECT_TRUE(one.ok() != other.ok());
  EXPECT_EQ(ErrnoOf(one.ok() ? other : one), ECONNREFUSED);
}

// Without: a fault that was asked for does not come, or says something else than documented.
FIBER_SIM_TEST(NetworkTest, FaultsThatAreCertainHappen) {
  Network network;
  auto listener = network.Listen("server");
  ASSERT_TRUE(listener.ok());
  network.SetFaults({.refuse = 1});
  EXPECT_EQ(ErrnoOf(network.Connect("server").status()), ECONNREFUSED);
  network.SetFaults({.unreachable = 1});
  const absl::Status unreachable = network.Connect("server").status();
  EXPECT_TRUE(absl::IsUnavailable(unreachable));
  EXPECT_EQ(ErrnoOf(unreachable), EHOSTUNREACH);

  network.SetFaults({});
  MemoryPair pair = network.Pair();
  ASSERT_TRUE(pair.client.Write("abc").ok());
  ASSERT_TRUE(pair.server.Write("before").ok());
  network.SetFaults({.short_read = 1});
  char buffer[3];
  const auto n = pair.server.Read(buffer);
  ASSERT_TRUE(n.ok());
  EXPECT_LT(*n, 3u);
  EXPECT_TRUE(ReadFull(pair.server, std::span(buffer).subspan(*n)).ok());

  network.SetFaults({.reset = 1});
  const IoResult reset = pair.client.Write("lost");
  EXPECT_TRUE(absl::IsUnavailable(reset.status)) << reset.status;
  EXPECT_EQ(ErrnoOf(reset.status), ECONNRESET);
  EXPECT_EQ(reset.bytes, 0u);
  network.SetFaults({});
  EXPECT_EQ(ErrnoOf(pair.client.Write("more").status), ECONNRESET);
  EXPECT_EQ(ErrnoOf(ReadByte(pair.server)), ECONNRESET);
  char before[6];
  EXPECT_TRUE(ReadFull(pair.client, before).ok()) << "what had arrived can be read";
  EXPECT_EQ(ErrnoOf(ReadByte(pair.client)), ECONNRESET);
}

// Without: a peer that vanishes says so after all, or its silence ends a call before its deadline.
FIBER_SIM_TEST(NetworkTest, APeerThatVanishesIsSilent) {
  Network network({.buffer_bytes = 1000, .faults = {.max_delay = absl::Milliseconds(5)}});
  MemoryPair pair = network.Pair();
  ASSERT_TRUE(pair.server.Write("hello").ok());
  char hello[5];
  ASSERT_TRUE(ReadFull(pair.client, hello).ok());
  ASSERT_TRUE(pair.server.Write("on its way").ok());
  if (fiber::sim::CurrentSeed() % 2 == 0) {
    pair.server.Vanish();
  } else {
    network.SetFaults({.vanish = 1});
    ASSERT_TRUE(pair.server.Write("it").ok());
    network.SetFaults({});
  }
  pair.server.Close();
  const absl::Duration start = fiber::Now();
  // What arrived on its way there may be read.
  char rest[16];
  absl::Status status;
  while (status.ok()) status = pair.client.Read(rest, absl::Hours(5)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_GE(fiber::Now() - start, absl::Hours(5));
  const IoResult sent = pair.client.Write(std::string(5000, 'x'), absl::Hours(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status)) << sent.status;
  EXPECT_EQ(sent.bytes, 1000u);
}

// Without: a crash of the peer looks like its end.
FIBER_SIM_TEST(NetworkTest, AResetByHandReachesThePeerBehindTheBytes) {
  Network network;
  MemoryPair pair = network.Pair();
  ASSERT_TRUE(pair.server.Write("x").ok());
  pair.server.Reset();
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadByte(pair.server)));
  ASSERT_TRUE(ReadByte(pair.client).ok());
  EXPECT_EQ(ErrnoOf(ReadByte(pair.client)), ECONNRESET);
  EXPECT_EQ(ErrnoOf(pair.client.Write("y").status), ECONNRESET);
  EXPECT_EQ(ErrnoOf(pair.client.CloseWrite()), ENOTCONN);
}

// Without: no back-pressure, or more than the buffer has.
FIBER_SIM_TEST(NetworkTest, ABufferTakesNoMoreThanItHolds) {
  Network network({.buffer_bytes = 10});
  MemoryPair pair = network.Pair();
  const IoResult sent = pair.client.Write("0123456789abcdef", absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status));
  EXPECT_EQ(sent.bytes, 10u);
  char buffer[4];
  ASSERT_TRUE(ReadFull(pair.server, buffer).ok());
  EXPECT_EQ(pair.client.Write("abcdef", absl::Seconds(1)).bytes, 4u);
  pair.client.Close();
  EXPECT_EQ(Drain(pair.server), 10u);
}

// A conversation in foul weather, as numbers.
std::vector<int64_t> Converse(uint64_t seed, NetworkOptions options) {
  std::vector<int64_t> trace;
  SimulateInTest({.first_seed = seed, .schedules = 1}, [&] {
    Network network(options);
    MemoryPair pair = network.Pair();
    auto writer = fiber::Spawn([&] {
      for (int i = 0; i < 10; ++i) {
        if (!pair.client.Write("0123456789").ok()) break;
        if (!fiber::Sleep(absl::Milliseconds(1)).ok()) break;
      }
      pair.client.Close();
    });
    char buffer[10];
    for (;;) {
      const auto n = pair.server.Read(buffer, absl::Seconds(10));
      trace.push_back(absl::ToInt64Nanoseconds(fiber::Now()));
      trace.push_back(n.ok() ? static_cast<int64_t>(*n) : -static_cast<int64_t>(n.status().code()));
      if (!n.ok()) break;
    }
    writer.Join();
  });
  return trace;
}

// Without: a failure that faults are needed for does not replay, or each schedule has the same
// ones.
TEST(NetworkTest, FaultsReplayWithTheSeed) {
  const NetworkOptions foul = {
      .faults = {
          .max_delay = absl::Milliseconds(10), .short_read = 0.3, .reset = 0.05, .vanish = 0.05}};
  std::set<std::vector<int64_t>> traces;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const std::vector<int64_t> trace = Converse(seed, foul);
    EXPECT_EQ(trace, Converse(seed, foul));
    traces.insert(trace);
  }
  EXPECT_GT(traces.size(), 20u);  // some are over before anything is drawn
  NetworkOptions other = foul;
  other.seed = 77;
  EXPECT_NE(Converse(1, foul), Converse(1, other));
}

// Without: a byte is lost or doubled between a read that gives up and the one after it.
TEST(NetworkTest, ReadersThatGiveUpNowAndThenLoseNoByte) {
  SimulateInTest({.schedules = 300, .late_probability = 0.1}, [] {
    Network network(
        {.buffer_bytes = 7, .faults = {.max_delay = absl::Milliseconds(3), .short_read = 0.3}});
    MemoryPair pair = network.Pair();
    std::string sent;
    auto writer = fiber::Spawn([&] {
      for (int i = 0; i < 30; ++i) {
        const std::string part(static_cast<size_t>(i % 5 + 1), static_cast<char>('a' + i % 26));
        const IoResult result = pair.client.Write(part, absl::Milliseconds(2));
        sent.append(part, 0, result.bytes);
        EXPECT_TRUE(result.ok() || absl::IsDeadlineExceeded(result.status)) << result.status;
      }
      pair.client.Close();
    });
    std::string got;
    char buffer[4];
    for (;;) {
      const auto n = pair.server.Read(buffer, absl::Milliseconds(1));
      if (n.ok()) got.append(buffer, *n);
      if (absl::IsOutOfRange(n.status())) break;
    }
    writer.Join();
    EXPECT_EQ(got, sent);
  });
}

// Without: some order of two calls on one stream is wrong, and no seed happened to have it.
FIBER_EXPLORE_TEST(NetworkTest, AReadMeetsAWriteAndACloseInEveryOrder) {
  Network network;
  MemoryPair pair = network.Pair();
  auto peer = fiber::Spawn([&] {
    EXPECT_TRUE(pair.server.Write("x").ok());
    pair.server.Close();
  });
  EXPECT_TRUE(ReadByte(pair.client).ok());
  EXPECT_TRUE(absl::IsOutOfRange(ReadByte(pair.client)));
  peer.Join();
}

// Without: a thread that is no worker cannot use a stream, on the real clock.
FIBER_TEST_ON(NetworkTest, PlainThreadsUseStreamsToo, 1, 2) {
  Network network;
  MemoryPair pair = network.Pair();
  std::thread thread([&] {
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(pair.client, absl::Milliseconds(1))));
    EXPECT_TRUE(pair.client.Write("question").ok());
    EXPECT_TRUE(ReadByte(pair.client).ok());
    pair.client.Close();
  });
  char question[8];
  EXPECT_TRUE(ReadFull(pair.server, question).ok());
  EXPECT_TRUE(pair.server.Write("!").ok());
  EXPECT_TRUE(absl::IsOutOfRange(ReadByte(pair.server)));
  thread.join();
}

// Without: streams depend on the network object, or moved ones on where they were.
FIBER_SIM_TEST(NetworkTest, StreamsOutliveTheirNetworkAndMove) {
  auto network = std::make_unique<Network>();
  auto listener = network->Listen("server");
  ASSERT_TRUE(listener.ok());
  auto client = network->Connect("server");
  ASSERT_TRUE(client.ok());
  network = nullptr;
  auto server = listener->AcceptStream();
  ASSERT_TRUE(server.ok());
  MemoryStream moved = *std::move(client);
  ASSERT_TRUE(moved.Write("x").ok());
  ASSERT_TRUE(ReadByte(**server).ok());
  moved = MemoryStream();
  EXPECT_TRUE(absl::IsOutOfRange(ReadByte(**server)));
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadByte(moved)));
  EXPECT_TRUE(absl::IsFailedPrecondition(moved.Write("x").status));
  EXPECT_TRUE(absl::IsFailedPrecondition(moved.CloseWrite()));
  MemoryListener other = *std::move(listener);
  other = MemoryListener();
  EXPECT_TRUE(absl::IsFailedPrecondition(other.Accept().status()));
}

TEST(NetworkDeathTest, OptionsThatMakeNoSenseAreNamed) {
  EXPECT_DEATH(Network({.buffer_bytes = 0}), "a buffer of 0 bytes");
  EXPECT_DEATH(Network({.backlog = 0}), "a backlog of 0");
  EXPECT_DEATH(Network({.faults = {.reset = 1.5}}), "1.5 is no probability");
  EXPECT_DEATH(Network({.faults = {.reset = std::nan("")}}), "nan is no probability");
  EXPECT_DEATH(Network({.faults = {.max_delay = absl::InfiniteDuration()}}), "nor more than a hundred years");
}

}  // namespace
}  // namespace netpoll_test
