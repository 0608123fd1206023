// SPDX-License-Identifier: Apache-2.0
//
// The protocol between pollers and a waiter, on thousands of seeded interleavings of its accesses to shared memory.
#include <vector>

#include "absl/functional/function_ref.h"
#include "fiber/go.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/semaphore.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "gtest/gtest.h"
#include "tests/netpoll/slot_model.h"

namespace slot_model {
namespace {
fiber::Semaphore* unparks = nullptr;  // of the one reader
}

void SchedulePoint() { fiber::internal::SchedulePoint(); }
void Park() { ASSERT_TRUE(unparks->Acquire().ok()); }
void Unpark() { unparks->Release(); }

namespace {

using Fibers = std::vector<fiber::JoinHandle<void>>;

void OnManySchedules(absl::FunctionRef<void(Socket&)> body) {
  fiber::sim::SimulateInTest({.schedules = 20'000, .preempt_probability = 0.4}, [&] {
    fiber::Semaphore semaphore(0);
    unparks = &semaphore;
    Socket socket;
    body(socket);
    EXPECT_FALSE(semaphore.TryAcquire()) << "unparked twice";
  });
}

// A lost edge is a reader that sleeps on tokens: the simulation reports a deadlock.
TEST(SlotModelTest, NoEdgeIsLostAmongTimeoutsAndMovedDeadlines) {
  OnManySchedules([](Socket& socket) {
    constexpr int kPollers = 2;
    constexpr int kTokens = 2;
    Fibers others;
    for (int i = 0; i < kPollers; ++i) {
      others.push_back(fiber::Spawn([&] {
        for (int sent = 0; sent < kTokens; ++sent) socket.Send();
      }));
    }
    others.push_back(fiber::Spawn([&] {
      for (int i = 0; i < 3; ++i) socket.ExpireTimer();
    }));
    others.push_back(fiber::Spawn([&] { socket.MoveDeadline(); }));
    // Once drained, it is not looked at again without news.
    int received = socket.Receive();
    while (received < kPollers * kTokens) {
      if (socket.is_ready()) {
        received += socket.Receive();
      } else {
        (void)socket.Wait();
      }
    }
    for (auto& other : others) other.Join();
  });
}

// After it has timed out at the socket the reader waits for something else, through the same block. Whoever comes to the
// socket late must leave that wait alone.
void WaitElsewhere(Socket& socket, absl::FunctionRef<void()> come_late) {
  bool is_marked = false;
  Fibers others;
  others.push_back(fiber::Spawn([&] { come_late(); }));
  others.push_back(fiber::Spawn([&] { socket.ExpireTimer(); }));
  auto marker = fiber::Spawn([&] {
    for (auto& other : others) other.Join();  // by now the reader sleeps, or has been woken wrongly
    is_marked = true;
    socket.MarkOther();
  });
  if (!socket.is_ready()) (void)socket.Wait();
  Outcome outcome;
  do {
    outcome = socket.WaitForOther();
  } while (outcome == Outcome::kDeadline);
  EXPECT_TRUE(is_marked);
  EXPECT_TRUE(outcome == Outcome::kReady || outcome == Outcome::kNotLinked);
  marker.Join();
}

TEST(SlotModelTest, NewsForASocketEndsNoOtherWaitOfItsReader) {
  OnManySchedules([](Socket& socket) {
    WaitElsewhere(socket, [&] {
      socket.Send();
      socket.MoveDeadline();  // or else the reader may wait for ever in the socket
    });
  });
}

TEST(SlotModelTest, AMovedDeadlineEndsNoOtherWaitOfTheReader) {
  OnManySchedules([](Socket& socket) {
    WaitElsewhere(socket, [&] {
      socket.MoveDeadline();
      socket.Send();
    });
  });
}

TEST(SlotModelTest, NobodySleepsInWhatIsClosed) {
  OnManySchedules([](Socket& socket) {
    Fibers others;
    others.push_back(fiber::Spawn([&] { socket.Close(); }));
    others.push_back(fiber::Spawn([&] { socket.Send(); }));
    others.push_back(fiber::Spawn([&] { socket.ExpireTimer(); }));
    while (!socket.is_closed()) {
      (void)socket.Receive();
      (void)socket.Wait();
    }
    for (auto& other : others) other.Join();
  });
}

TEST(SlotModelTest, TwoPollersUnparkAWaiterOnce) {
  OnManySchedules([](Socket& socket) {
    Fibers others;
    for (int i = 0; i < 3; ++i) {
      others.push_back(fiber::Spawn([&] { socket.Send(); }));
    }
    int received = 0;
    while (received < 3) {
      const Outcome outcome = socket.Wait();
      EXPECT_TRUE(outcome == Outcome::kReady || outcome == Outcome::kNotLinked);
      received += socket.Receive();
    }
    for (auto& other : others) other.Join();
  });
}

}  // namespace
}  // namespace slot_model
