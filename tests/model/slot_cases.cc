// SPDX-License-Identifier: Apache-2.0
//
// Poll slots: a fiber that waits, pollers, deadlines that are moved, and who closes.
#include <memory>
#include <utility>

#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "netpoll/internal/poll_slot.h"
#include "tests/model/case_list.h"
#include "tests/model/fibers.cc"
#include "tests/model/fibers.h"

namespace model {
namespace {

using fiber::Deadline;
using fiber::Event;
using std::make_shared;

const Deadline kSoon = Deadline::AtNanos(1000);
const Deadline kSooner = Deadline::AtNanos(500);

// A socket as the kernel has it: tokens, and an edge when the first comes. Harvested edges may be
// held for any time.
struct Socket {
  netpoll::internal::PollSlot slot;
  int tokens = 0;
  bool has_edge = false;
  fiber::internal::Atomic<bool> is_closed{false};
  // As of a flow. Looked at only by cases that move it.
  bool is_deadline_moved = false;
  fiber::internal::Atomic<int64_t> deadline_ns{fiber::internal::kNeverNs};

  void Send() {
    Touch(this);
    if (tokens++ == 0) has_edge = true;
  }
  bool Harvest() {
    Touch(this);
    return std::exchange(has_edge, false);
  }
  int Read() {
    slot.ClearReady();
    Touch(this);
    return std::exchange(tokens, 0);
  }
  // The outcome.
  uint32_t Wait(Deadline deadline) {
    fiber::internal::Wait wait(fiber::WaitReason::kRead, this);
    wait.Open();
    if (!slot.TryLink(wait.block())) {
      return wait.CloseUnclaimed() ? netpoll::internal::kOutcomeReady
                                   : wait.Park(Deadline::Never());
    }
    if (is_closed.load(std::memory_order_seq_cst) && wait.CloseUnclaimed()) {
      slot.Unlink();
      return netpoll::internal::kOutcomeClosed;
    }
    if (is_deadline_moved) {
      const int64_t moved_ns = deadline_ns.load(std::memory_order_seq_cst);
      deadline = Deadline::Earlier(deadline, Deadline::AtNanos(moved_ns));
    }
    const uint32_t outcome = wait.Park(deadline);
    if (fiber::internal::IsFailure(outcome)) slot.Unlink();
    return outcome;
  }
  // A wait that news does not end: as between two tries of something that no event tells of.
  uint32_t Sleep(Deadline deadline) {
    fiber::internal::Wait wait(fiber::WaitReason::kRead, this);
    wait.Open();
    slot.LinkDeaf(wait.block());
    if (is_closed.load(std::memory_order_seq_cst) && wait.CloseUnclaimed()) {
      slot.Unlink();
      return netpoll::internal::kOutcomeClosed;
    }
    const uint32_t outcome = wait.Park(deadline);
    if (fiber::internal::IsFailure(outcome)) slot.Unlink();
    return outcome;
  }
  void MoveDeadline(Deadline deadline) {
    deadline_ns.exchange(deadline.nanos(), std::memory_order_seq_cst);
    Claim(netpoll::internal::kOutcomeLookAgain);
  }
  void Close() {
    is_closed.store(true, std::memory_order_seq_cst);
    Claim(netpoll::internal::kOutcomeClosed);
  }

 private:
  void Claim(uint32_t outcome) {
    WaitBlock* block = slot.ClaimWaiter(outcome);
    if (block != nullptr) fiber::internal::Unpark(*block);
  }
};

std::shared_ptr<Socket> SocketWithADeadline() {
  auto socket = make_shared<Socket>();
  socket->is_deadline_moved = true;
  return socket;
}

void ReadTokens(Socket& socket, int wanted, Deadline deadline) {
  int got = 0;
  while (got < wanted) {
    got += socket.Read();
    while (got < wanted && !socket.slot.is_ready()) {
      const uint32_t outcome = socket.Wait(deadline);
      if (outcome == netpoll::internal::kOutcomeReady) break;
      deadline = {};
    }
  }
}

std::function<void()> PollTwice(std::shared_ptr<Socket> socket) {
  return [socket] {
    for (int i = 0; i < 2; ++i) {
      if (socket->Harvest()) socket->slot.MarkReady();
    }
  };
}

// Whoever sends harvests after it, as the last poller to look does: so no edge is left in the
// kernel.
std::function<void()> SendAndPoll(std::shared_ptr<Socket> socket, int count) {
  return [socket, count] {
    for (int i = 0; i < count; ++i) {
      socket->Send();
      if (socket->Harvest()) socket->slot.MarkReady();
    }
  };
}

Case SlotWithTwoPollers() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0, [socket] { ReadTokens(*socket, 2, {}); }),
                      SendAndPoll(socket, 2), PollTwice(socket)}};
}

Case SlotWithATimeout() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0, [socket] { ReadTokens(*socket, 2, kSoon); }),
                      SendAndPoll(socket, 2), world->ExpireTimers(2)}};
}

// News of one socket must not end a wait for another, nor be lost by a wait elsewhere in between.
Case SlotWithAWaitElsewhere() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [socket, event] {
                                   socket->Wait(kSooner);
                                   Check(event->Wait().ok() && event->is_set(),
                                         "a wait for something else was ended");
                                   ReadTokens(*socket, 1, {});
                                 }),
                      SendAndPoll(socket, 1), [event] { event->Set(); }, world->ExpireTimers(2)}};
}

void ReadUntilClosed(Socket& socket, Deadline deadline) {
  while (socket.Wait(deadline) != netpoll::internal::kOutcomeClosed) {
    if (socket.is_closed.load(std::memory_order_seq_cst)) break;
    socket.Read();
    deadline = {};
  }
}

Case SlotIsClosed() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0, [socket] { ReadUntilClosed(*socket, {}); }),
                      SendAndPoll(socket, 1), [socket] { socket->Close(); }}};
}

// Two pollers may have news in hand as it is closed: neither ends a wait for something else.
Case SlotWithTwoPollersIsClosed() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [socket, event] {
                                   ReadUntilClosed(*socket, {});
                                   Check(event->Wait().ok() && event->is_set(),
                                         "a wait for something else was ended");
                                 }),
                      SendAndPoll(socket, 2), PollTwice(socket),
                      [socket, event] {
                        socket->Close();
                        event->Set();
                      }}};
}

Case SlotIsClosedWhileAWaitTimesOut() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0, [socket] { ReadUntilClosed(*socket, kSoon); }),
                      SendAndPoll(socket, 1), [socket] { socket->Close(); },
                      world->ExpireTimers(1)}};
}

// Whoever waits under a later deadline, or none, is told of an earlier one.
Case DeadlineIsMovedEarlierTwice() {
  auto world = make_shared<World>(1);
  auto socket = SocketWithADeadline();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   while (socket->Wait({}) != fiber::internal::kOutcomeDeadline) {
                                   }
                                 }),
                      [socket] {
                        socket->MoveDeadline(kSoon);
                        socket->MoveDeadline(kSooner);
                      },
                      world->ExpireTimers(4)}};
}

Case MovedDeadlineMeetsNews() {
  auto world = make_shared<World>(1);
  auto socket = SocketWithADeadline();
  return {.threads = {world->Run(0, [socket] { ReadTokens(*socket, 1, {}); }),
                      SendAndPoll(socket, 1), [socket] { socket->MoveDeadline(kSoon); },
                      world->ExpireTimers(1)}};
}

Case MovedDeadlineEndsNoWaitElsewhere() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [socket, event] {
                                   socket->Wait(kSooner);
                                   Check(event->Wait().ok() && event->is_set(),
                                         "a wait for something else was ended");
                                 }),
                      [socket] { socket->MoveDeadline(kSooner); }, [event] { event->Set(); },
                      world->ExpireTimers(1)}};
}

Case DeafWaitKeepsNews() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   Check(socket->Sleep(kSoon) == fiber::internal::kOutcomeDeadline,
                                         "news ended a deaf wait");
                                   Check(socket->slot.is_ready(),
                                         "news is not looked for after a deaf wait");
                                   ReadTokens(*socket, 1, {});
                                 }),
                      SendAndPoll(socket, 1), world->ExpireTimers(1)}};
}

Case DeafWaitIsEndedByClose() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   const uint32_t outcome = socket->Sleep(kSoon);
                                   Check(outcome == netpoll::internal::kOutcomeClosed ||
                                             outcome == fiber::internal::kOutcomeDeadline,
                                         "news ended a deaf wait");
                                   Check(socket->Sleep({}) == netpoll::internal::kOutcomeClosed,
                                         "news ended a deaf wait");
                                 }),
                      SendAndPoll(socket, 1), [socket] { socket->Close(); },
                      world->ExpireTimers(1)}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"SlotWithTwoPollers", SlotWithTwoPollers, 4},
      {"SlotWithATimeout", SlotWithATimeout, 3},
      {"SlotWithAWaitElsewhere", SlotWithAWaitElsewhere},
      {"SlotIsClosed", SlotIsClosed},
      {"SlotWithTwoPollersIsClosed", SlotWithTwoPollersIsClosed, 3},
      {"SlotIsClosedWhileAWaitTimesOut", SlotIsClosedWhileAWaitTimesOut, 2},
      {"DeadlineIsMovedEarlierTwice", DeadlineIsMovedEarlierTwice, 3},
      {"MovedDeadlineMeetsNews", MovedDeadlineMeetsNews, 2},
      {"MovedDeadlineEndsNoWaitElsewhere", MovedDeadlineEndsNoWaitElsewhere},
      {"DeafWaitKeepsNews", DeafWaitKeepsNews},
      {"DeafWaitIsEndedByClose", DeafWaitIsEndedByClose},
  };
  return kCases;
}

}  // namespace model
