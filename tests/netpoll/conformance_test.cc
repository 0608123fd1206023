// SPDX-License-Identifier: Apache-2.0
//
// What Stream and Listener promise, of all there are: TCP on the loopback, and the network in
// memory on real workers and on the simulated clock, in fair weather and foul. One body for all of
// them.
#include <errno.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/sim/network.h"
#include "netpoll/stream.h"
#include "netpoll/tcp.h"
#include "sched/gtest.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using fiber::Deadline;
using netpoll::ErrnoOf;
using netpoll::IoResult;
using netpoll::Listener;
using netpoll::ReadFull;
using netpoll::Stream;

const Deadline kPast = Deadline::AtNanos(1);

struct Ends {
  std::unique_ptr<Stream> client;
  std::unique_ptr<Stream> server;
};

// World is where streams come from. Made and used by fibers.
class World {
 public:
  virtual ~World() = default;
  virtual Listener& listener() = 0;
  virtual absl::StatusOr<std::unique_ptr<Stream>> Connect(Deadline deadline = {}) = 0;

  Ends Connected() {
    auto client = Connect();
    EXPECT_TRUE(client.ok()) << client.status();
    auto server = listener().AcceptStream();
    EXPECT_TRUE(server.ok()) << server.status();
    return {*std::move(client), *std::move(server)};
  }
};

class TcpWorld : public World {
 public:
  TcpWorld() : listener_(ListenOnLoopback()), address_(listener_.local()) {}
  Listener& listener() override { return listener_; }
  absl::StatusOr<std::unique_ptr<Stream>> Connect(Deadline deadline) override {
    auto stream = netpoll::TcpStream::Connect(address_, deadline);
    if (!stream.ok()) return stream.status();
    return std::make_unique<netpoll::TcpStream>(*std::move(stream));
  }

 private:
  netpoll::TcpListener listener_;
  const netpoll::Address address_;
};

class MemoryWorld : public World {
 public:
  explicit MemoryWorld(const netpoll::sim::Faults& faults) : network_({.faults = faults}) {
    auto listener = network_.Listen("server");
    EXPECT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }
  Listener& listener() override { return listener_; }
  absl::StatusOr<std::unique_ptr<Stream>> Connect(Deadline deadline) override {
    auto stream = network_.Connect("server", deadline);
    if (!stream.ok()) return stream.status();
    return std::make_unique<netpoll::sim::MemoryStream>(*std::move(stream));
  }

 private:
  netpoll::sim::Network network_;
  netpoll::sim::MemoryListener listener_;
};

const netpoll::sim::Faults kFoul = {.max_delay = absl::Milliseconds(3), .short_read = 0.5};

void RunOnTcp(int workers, absl::FunctionRef<void(World&)> body) {
  sched::RunInTest({.runtime = {.workers = workers}}, [body] {
    TcpWorld world;
    body(world);
  });
}
void RunInMemory(int workers, absl::FunctionRef<void(World&)> body) {
  sched::RunInTest({.runtime = {.workers = workers}}, [body] {
    MemoryWorld world({});
    body(world);
  });
}
void Simulate(int schedules, const netpoll::sim::Faults& faults,
              absl::FunctionRef<void(World&)> body) {
  fiber::sim::SimulateInTest({.schedules = schedules}, [&] {
    MemoryWorld world(faults);
    body(world);
  });
}

struct Setting {
  const char* name;
  void (*run)(absl::FunctionRef<void(World&)> body);
};

class ConformanceTest : public testing::TestWithParam<Setting> {
 protected:
  void Run(absl::FunctionRef<void(World&)> body) { GetParam().run(body); }
};

INSTANTIATE_TEST_SUITE_P(
    Streams, ConformanceTest,
    testing::Values(
        Setting{"TcpW1", [](absl::FunctionRef<void(World&)> body) { RunOnTcp(1, body); }},
        Setting{"TcpW4", [](absl::FunctionRef<void(World&)> body) { RunOnTcp(4, body); }},
        Setting{"MemoryW1", [](absl::FunctionRef<void(World&)> body) { RunInMemory(1, body); }},
        Setting{"MemoryW4", [](absl::FunctionRef<void(World&)> body) { RunInMemory(4, body); }},
        Setting{"SimulatedFair",
                [](absl::FunctionRef<void(World&)> body) { Simulate(50, {}, body); }},
        Setting{"SimulatedFoul",
                [](absl::FunctionRef<void(World&)> body) { Simulate(50, kFoul, body); }}),
    [](const testing::TestParamInfo<Setting>& info) { return info.param.name; });

absl::Status ReadByte(Stream& stream, Deadline deadline = {}) {
  char byte[1];
  return stream.Read(byte, deadline).status();
}

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + i * i % 23);
  return text;
}

// Without: bytes are lost, doubled or out of order where the writer waits for the reader.
TEST_P(ConformanceTest, WhatIsWrittenIsReadInOrderBothWays) {
  Run([](World& world) {
    Ends ends = world.Connected();
    const std::string sent = Pattern(100'000);
    const auto send = [&sent](Stream& stream) {
      for (size_t at = 0, size = 1; at < sent.size(); at += size, size = size * 3 % 70'001 + 1) {
        const std::string_view part = std::string_view(sent).substr(at, size);
        const IoResult result = stream.Write(part);
        EXPECT_TRUE(result.ok()) << result.status;
        EXPECT_EQ(result.bytes, part.size());
      }
      EXPECT_TRUE(stream.CloseWrite().ok());
    };
    const auto receive = [](Stream& stream) {
      std::string got;
      char buffer[5000];
      for (;;) {
        const auto n = stream.Read(buffer);
        if (!n.ok()) {
          EXPECT_TRUE(absl::IsOutOfRange(n.status())) << n.status();
          return got;
        }
        EXPECT_GE(*n, 1u);
        got.append(buffer, *n);
      }
    };
    auto there = fiber::Spawn([&] { send(*ends.client); });
    auto back = fiber::Spawn([&] { send(*ends.server); });
    auto echoed = fiber::Spawn([&] { return receive(*ends.client); });
    EXPECT_EQ(receive(*ends.server), sent);
    EXPECT_EQ(echoed.Join(), sent);
    there.Join();
    back.Join();
  });
}

// Without: who has nothing to read or write waits all the same.
TEST_P(ConformanceTest, CallsOfNoBytesReturnAtOnce) {
  Run([](World& world) {
    Ends ends = world.Connected();
    const auto n = ends.client->Read({}, kPast);
    ASSERT_TRUE(n.ok()) << n.status();
    EXPECT_EQ(*n, 0u);
    EXPECT_TRUE(ends.client->Write("").ok());
    ends.client->Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(ends.client->Read({}).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(ends.client->Write("").status));
  });
}

// Without: the end comes before the bytes, or only once.
TEST_P(ConformanceTest, TheEndComesAfterTheBytesAndForEver) {
  Run([](World& world) {
    Ends ends = world.Connected();
    ASSERT_TRUE(ends.server->Write("12345678abc").ok());
    ends.server->Close();
    char buffer[8];
    EXPECT_TRUE(ReadFull(*ends.client, buffer).ok());
    const IoResult torn = ReadFull(*ends.client, buffer);
    EXPECT_TRUE(absl::IsDataLoss(torn.status)) << torn.status;
    EXPECT_EQ(torn.bytes, 3u);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(absl::IsOutOfRange(ReadByte(*ends.client)));
  });
}

// Without: who has said all cannot hear the answer.
TEST_P(ConformanceTest, HalfCloseLeavesTheOtherDirection) {
  Run([](World& world) {
    Ends ends = world.Connected();
    ASSERT_TRUE(ends.client->Write("question").ok());
    ASSERT_TRUE(ends.client->CloseWrite().ok());
    EXPECT_EQ(Drain(*ends.server), 8u);
    const IoResult refused = ends.client->Write("more");
    EXPECT_TRUE(absl::IsUnavailable(refused.status)) << refused.status;
    EXPECT_EQ(ErrnoOf(refused.status), EPIPE);
    EXPECT_EQ(refused.bytes, 0u);
    ASSERT_TRUE(ends.server->Write("answer").ok());
    ASSERT_TRUE(ends.server->CloseWrite().ok());
    EXPECT_EQ(Drain(*ends.client), 6u);
    ends.client->Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(ends.client->CloseWrite()));
  });
}

// Without: a Write that is parked when its side is shut hangs.
TEST_P(ConformanceTest, CloseWriteEndsAParkedWrite) {
  Run([](World& world) {
    Ends ends = world.Connected();
    auto writer = fiber::Spawn([&] { return ends.client->Write(MoreThanFits()); });
    WaitUntilParked(writer);
    EXPECT_TRUE(ends.client->CloseWrite().ok());
    const IoResult result = writer.Join();
    EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;
    EXPECT_EQ(ErrnoOf(result.status), EPIPE);
    EXPECT_EQ(Drain(*ends.server), result.bytes);
  });
}

// Without: something works, or crashes, or waits after Close().
TEST_P(ConformanceTest, EverythingFailsAfterClose) {
  Run([](World& world) {
    Ends ends = world.Connected();
    ends.client->Close();
    ends.client->Close();
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadByte(*ends.client)));
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadByte(*ends.client, kPast)));
    EXPECT_TRUE(absl::IsFailedPrecondition(ends.client->Write("x").status));
    EXPECT_TRUE(absl::IsFailedPrecondition(ends.client->CloseWrite()));
    ends.client->SetReadDeadline(kPast);
    ends.client->SetWriteDeadline({});
  });
}

// Without: who waits in a stream when it is closed waits for ever.
TEST_P(ConformanceTest, CloseWakesAllWhoWaitQueuedOrNot) {
  Run([](World& world) {
    Ends ends = world.Connected();
    std::vector<fiber::JoinHandle<absl::Status>> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.push_back(fiber::Spawn([&] { return ReadByte(*ends.client); }));
      waiting.push_back(fiber::Spawn([&] { return ends.client->Write(MoreThanFits()).status; }));
    }
    for (auto& handle : waiting) WaitUntilParked(handle);
    ends.client->Close();
    for (auto& handle : waiting) {
      const absl::Status status = handle.Join();
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    }
  });
}

// Without: a call that is too late takes bytes, or sends some.
TEST_P(ConformanceTest, APastDeadlineDoesNothing) {
  Run([](World& world) {
    Ends ends = world.Connected();
    ASSERT_TRUE(ends.server->Write("abc").ok());
    ASSERT_TRUE(ReadByte(*ends.client).ok());  // the rest is there too
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(*ends.client, kPast)));
    ends.client->SetReadDeadline(kPast);
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(*ends.client, absl::Hours(1))));
    EXPECT_TRUE(ends.client->Read({}).ok());
    IoResult sent = ends.client->Write("never", kPast);
    EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status));
    EXPECT_EQ(sent.bytes, 0u);
    ends.client->SetWriteDeadline(kPast);
    sent = ends.client->Write("never");
    EXPECT_TRUE(absl::IsDeadlineExceeded(sent.status));
    EXPECT_EQ(sent.bytes, 0u);
    ends.client->SetReadDeadline({});
    ends.client->SetWriteDeadline(Deadline::Never());
    char rest[2];
    EXPECT_TRUE(ReadFull(*ends.client, rest).ok());
    EXPECT_EQ(std::string_view(rest, 2), "bc");
    ASSERT_TRUE(ends.client->Write("now").ok());
    ends.client->Close();
    EXPECT_EQ(Drain(*ends.server), 3u);
  });
}

// Without: the later of a call's deadline and the stream's holds, or a call that timed out breaks
// the stream.
TEST_P(ConformanceTest, TheEarlierDeadlineHoldsAndTheStreamGoesOn) {
  Run([](World& world) {
    Ends ends = world.Connected();
    const absl::Duration start = fiber::Now();
    ends.client->SetReadDeadline(absl::Hours(1));
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(*ends.client, absl::Milliseconds(5))));
    EXPECT_GE(fiber::Now() - start, absl::Milliseconds(5));
    ends.client->SetReadDeadline(absl::Milliseconds(5));
    EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(*ends.client, absl::Hours(1))));
    EXPECT_GE(fiber::Now() - start, absl::Milliseconds(10));
    EXPECT_LT(fiber::Now() - start, absl::Minutes(1));
    ends.client->SetReadDeadline({});
    ASSERT_TRUE(ends.server->Write("x").ok());
    EXPECT_TRUE(ReadByte(*ends.client).ok());
  });
}

// Without: a deadline that is set while a call is parked is not seen by it, or by the wrong one.
TEST_P(ConformanceTest, ADeadlineThatIsMovedIsSeenByWhoIsParked) {
  Run([](World& world) {
    Ends ends = world.Connected();
    auto reader = fiber::Spawn([&] { return ReadByte(*ends.client); });
    auto writer = fiber::Spawn([&] { return ends.client->Write(MoreThanFits()).status; });
    WaitUntilParked(reader);
    WaitUntilParked(writer);
    ends.client->SetReadDeadline(kPast);
    EXPECT_TRUE(absl::IsDeadlineExceeded(reader.Join()));
    EXPECT_FALSE(writer.is_done()) << "the other direction has its own";
    ends.client->SetWriteDeadline(absl::ZeroDuration());
    EXPECT_TRUE(absl::IsDeadlineExceeded(writer.Join()));

    ends.client->SetReadDeadline(absl::Hours(2));
    auto patient = fiber::Spawn([&] { return ReadByte(*ends.client, absl::Hours(3)); });
    WaitUntilParked(patient);
    ends.client->SetReadDeadline(Deadline::Never());
    ASSERT_TRUE(ends.server->Write("x").ok());
    EXPECT_TRUE(patient.Join().ok());
  });
}

// Without: what a cancelled or late reader was about to get is lost.
TEST_P(ConformanceTest, CancellingAReaderLosesNothing) {
  Run([](World& world) {
    Ends ends = world.Connected();
    auto reader = fiber::Spawn([&] { return ReadByte(*ends.client); });
    auto queued = fiber::Spawn([&] { return ReadByte(*ends.client); });
    WaitUntilParked(reader);
    WaitUntilParked(queued);
    queued.Cancel();
    EXPECT_TRUE(absl::IsCancelled(queued.Join()));
    reader.Cancel();
    EXPECT_TRUE(absl::IsCancelled(reader.Join()));
    ASSERT_TRUE(ends.server->Write("x").ok());
    EXPECT_TRUE(ReadByte(*ends.client).ok());
    // One that was cancelled before it began.
    ASSERT_TRUE(ends.server->Write("y").ok());
    fiber::Event begin;
    auto late = fiber::Spawn([&] {
      while (!begin.is_set()) fiber::Yield();
      return ReadByte(*ends.client);
    });
    late.Cancel();
    begin.Set();
    EXPECT_TRUE(absl::IsCancelled(late.Join()));
    char byte[1];
    ASSERT_TRUE(ReadFull(*ends.client, byte).ok());
    EXPECT_EQ(byte[0], 'y');
  });
}

// Without: a writer runs ahead of its reader without end, or says wrongly how far it came.
TEST_P(ConformanceTest, AWriterWaitsForItsReaderAndSaysHowFarItCame) {
  Run([](World& world) {
    Ends ends = world.Connected();
    auto writer = fiber::Spawn([&] { return ends.client->Write(MoreThanFits()); });
    WaitUntilParked(writer);
    writer.Cancel();
    IoResult result = writer.Join();
    EXPECT_TRUE(absl::IsCancelled(result.status)) << result.status;
    EXPECT_GT(result.bytes, 0u);
    EXPECT_LT(result.bytes, MoreThanFits().size());
    const IoResult late = ends.client->Write("y", absl::Milliseconds(1));
    EXPECT_TRUE(absl::IsDeadlineExceeded(late.status)) << late.status;
    const size_t sent = result.bytes + late.bytes;
    auto drained = fiber::Spawn([&] { return Drain(*ends.server); });
    EXPECT_TRUE(ends.client->Write("z").ok());
    ends.client->Close();
    EXPECT_EQ(drained.Join(), sent + 1);
  });
}

// Without: parts of two Writes are mixed.
TEST_P(ConformanceTest, WritesAreNotInterleaved) {
  Run([](World& world) {
    Ends ends = world.Connected();
    constexpr size_t kSize = 150'000;
    std::vector<fiber::JoinHandle<void>> writers;
    for (char c : {'a', 'b', 'c'}) {
      writers.push_back(
          fiber::Spawn([&, c] { EXPECT_TRUE(ends.client->Write(std::string(kSize, c)).ok()); }));
    }
    std::string block(kSize, '\0');
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(ReadFull(*ends.server, block).ok());
      EXPECT_EQ(block, std::string(kSize, block[0]));
    }
    for (auto& writer : writers) writer.Join();
  });
}

// Without: a peer that goes without reading what it was sent looks like one that has said all.
TEST_P(ConformanceTest, APeerThatClosesWithBytesUnreadResets) {
  Run([](World& world) {
    Ends ends = world.Connected();
    ASSERT_TRUE(ends.client->Write("ab").ok());
    ASSERT_TRUE(ReadByte(*ends.server).ok());  // so the other one is there
    auto reader = fiber::Spawn([&] { return ReadByte(*ends.client); });
    WaitUntilParked(reader);
    ends.server->Close();
    const absl::Status status = reader.Join();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ErrnoOf(status), ECONNRESET);
    EXPECT_TRUE(absl::IsUnavailable(ends.client->Write("x").status));
    EXPECT_TRUE(absl::IsUnavailable(ends.client->CloseWrite()));
    const absl::Status again = ReadByte(*ends.client);
    EXPECT_TRUE(absl::IsUnavailable(again) || absl::IsOutOfRange(again)) << again;
  });
}

// Without: who writes to a peer that is gone is never told.
TEST_P(ConformanceTest, WritingToAPeerThatIsGoneFailsBeforeLong) {
  Run([](World& world) {
    Ends ends = world.Connected();
    ends.server->Close();
    EXPECT_TRUE(absl::IsOutOfRange(ReadByte(*ends.client)));
    IoResult result;
    while (result.ok()) result = ends.client->Write(std::string(5000, '?'), absl::Hours(1));
    EXPECT_TRUE(absl::IsUnavailable(result.status)) << result.status;

    ends = world.Connected();
    auto writer = fiber::Spawn([&] { return ends.client->Write(MoreThanFits()).status; });
    WaitUntilParked(writer);
    ends.server->Close();
    const absl::Status status = writer.Join();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  });
}

// Without: connections come out in another order, or are lost with an accept that gave up.
TEST_P(ConformanceTest, AcceptingTakesConnectionsInOrderAndNoneTooMany) {
  Run([](World& world) {
    EXPECT_TRUE(
        absl::IsDeadlineExceeded(world.listener().AcceptStream(absl::Milliseconds(1)).status()));
    auto waiting = fiber::Spawn([&] { return world.listener().AcceptStream().status(); });
    WaitUntilParked(waiting);
    waiting.Cancel();
    EXPECT_TRUE(absl::IsCancelled(waiting.Join()));
    std::vector<std::unique_ptr<Stream>> clients;
    for (char c : {'1', '2', '3'}) {
      auto client = world.Connect(absl::Hours(1));
      ASSERT_TRUE(client.ok()) << client.status();
      ASSERT_TRUE((*client)->Write({&c, 1}).ok());
      clients.push_back(*std::move(client));
    }
    EXPECT_TRUE(absl::IsDeadlineExceeded(world.listener().AcceptStream(kPast).status()));
    for (char c : {'1', '2', '3'}) {
      auto server = world.listener().AcceptStream();
      ASSERT_TRUE(server.ok()) << server.status();
      char got[1];
      ASSERT_TRUE(ReadFull(**server, got).ok());
      EXPECT_EQ(got[0], c);
    }
  });
}

// Without: who accepts from a listener that is closed waits for ever, and who connects to it, too.
TEST_P(ConformanceTest, AClosedListenerEndsAcceptsAndRefusesConnections) {
  Run([](World& world) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(world.Connect(kPast).status()));
    std::vector<fiber::JoinHandle<absl::Status>> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.push_back(fiber::Spawn([&] { return world.listener().AcceptStream().status(); }));
    }
    for (auto& handle : waiting) WaitUntilParked(handle);
    world.listener().Close();
    world.listener().Close();
    for (auto& handle : waiting) EXPECT_TRUE(absl::IsFailedPrecondition(handle.Join()));
    EXPECT_TRUE(absl::IsFailedPrecondition(world.listener().AcceptStream(kPast).status()));
    const absl::Status refused = world.Connect().status();
    EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
    EXPECT_EQ(ErrnoOf(refused), ECONNREFUSED);
  });
}

// Without: a client whose connection nobody ever accepted is not told when the listener goes.
TEST_P(ConformanceTest, ConnectionsThatWereNotAcceptedAreResetWithTheListener) {
  Run([](World& world) {
    auto client = world.Connect();
    ASSERT_TRUE(client.ok()) << client.status();
    auto reader = fiber::Spawn([&] { return ReadByte(**client); });
    WaitUntilParked(reader);
    world.listener().Close();
    const absl::Status status = reader.Join();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  });
}

}  // namespace
}  // namespace netpoll_test
