// SPDX-License-Identifier: Apache-2.0
//
// Channels and selects, by fibers. What is sent is known by its value, a bit of its own: none is lost or doubled, and who
// fails to send has his item still.
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/channel.cc"
#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/ambient.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "fiber/select.cc"
#include "tests/model/case_list.h"
#include "tests/model/fibers.cc"
#include "tests/model/fibers.h"

namespace model {
namespace {

using fiber::Deadline;
using std::make_shared;

const Deadline kSoon = Deadline::AtNanos(1000);

struct Item {
  explicit Item(int bit) : value(bit) { ++alive; }
  Item(Item&& other) noexcept : value(std::exchange(other.value, 0)) { ++alive; }
  ~Item() { --alive; }

  int value;  // 0: moved from
  static inline int alive = 0;
};

// A channel, and what came of its items. Its counts go up in whatever order, and are looked at in the end.
struct Pipe {
  explicit Pipe(size_t capacity) : channel(capacity) { Item::alive = 0; }

  void Sent(bool is_sent, int bit, const Item& item) {
    Check(item.value == (is_sent ? 0 : bit),
          "an item left whose send failed, or stayed though it was sent");
    if (is_sent) sent += bit;
  }
  absl::StatusOr<int> Received(absl::StatusOr<Item> item) {
    if (!item.ok()) return item.status();
    Check(item->value != 0 && (received & item->value) == 0,
          "received what was not sent, or twice");
    received += item->value;
    return item->value;
  }
  absl::Status Send(int bit, Deadline deadline = {}) {
    Item item(bit);
    absl::Status status = channel.Send(std::move(item), deadline);
    Sent(status.ok(), bit, item);
    return status;
  }
  // When a case is made.
  void Fill(int bit) {
    Item item(bit);
    Sent(channel.TrySend(std::move(item)).ok(), bit, item);
  }
  absl::StatusOr<int> Receive(Deadline deadline = {}) {
    return Received(channel.Receive(deadline));
  }
  auto OnReceive() {
    return fiber::OnReceive(
        channel, [this](absl::StatusOr<Item> item) { Received(std::move(item)).IgnoreError(); });
  }
  void Drain() {
    while (Received(channel.TryReceive()).ok()) {
    }
  }

  fiber::Channel<Item> channel;
  int sent = 0;
  int received = 0;
};

// Two, the first at the lower address each time: selects lock in that order.
std::pair<std::shared_ptr<Pipe>, std::shared_ptr<Pipe>> MakeTwo(size_t capacity_a,
                                                                size_t capacity_b) {
  struct Two {
    Pipe a;
    Pipe b;
  };
  std::shared_ptr<Two> two(new Two{Pipe(capacity_a), Pipe(capacity_b)});
  return {{two, &two->a}, {two, &two->b}};
}

// For `finish`, with all channels. That nobody is linked is found by a channel's end.
template <class... P>
void CheckAll(P&... pipes) {
  (pipes.Drain(), ...);
  Check(((pipes.sent == pipes.received) && ...), "an item was lost");
  Check(Item::alive == 0, "an item was not destroyed, or twice");
}

// A select leaves nothing linked.
template <class... C>
absl::StatusOr<size_t> SelectOne(C&... clauses) {
  absl::StatusOr<size_t> which = fiber::Select(clauses...);
  Check(!(clauses.waiter.is_linked || ...), "a select has left something linked");
  return which;
}

// Receives from one, or sends to the other.
absl::Status Exchange(Pipe& in, Pipe& out, int bit) {
  Item item(bit);
  auto receive = in.OnReceive();
  auto send = fiber::OnSend(out.channel, std::move(item), [] {});
  const absl::StatusOr<size_t> which = SelectOne(receive, send);
  out.Sent(which.ok() && *which == 1, bit, item);
  return which.status();
}

// Channels.
// -------------------------------------------------------------------------------------------------

Case Rendezvous() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(0);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   Check(pipe->Send(1).ok(), "a send failed");
                                   Check(pipe->Send(2).ok(), "a send failed");
                                 }),
                      world->Run(1,
                                 [pipe] {
                                   Check(*pipe->Receive() == 1, "not the first");
                                   Check(*pipe->Receive() == 2, "not the second");
                                 })},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case RendezvousOfThree() {
  auto world = make_shared<World>(3);
  auto pipe = make_shared<Pipe>(0);
  return {.threads = {world->Run(0, [pipe] { Check(pipe->Send(1).ok(), "a send failed"); }),
                      world->Run(1, [pipe] { Check(pipe->Send(2).ok(), "a send failed"); }),
                      world->Run(2,
                                 [pipe] {
                                   Check(pipe->Receive().ok(), "a receive failed");
                                   Check(pipe->Receive().ok(), "a receive failed");
                                 })},
          .finish = [pipe] { CheckAll(*pipe); }};
}

// Who waits with an item sees it into the buffer, behind what is there.
Case BufferOfOneKeepsTheOrder() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(1);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   for (int bit : {1, 2, 4})
                                     Check(pipe->Send(bit).ok(), "a send failed");
                                 }),
                      world->Run(1,
                                 [pipe] {
                                   for (int bit : {1, 2, 4})
                                     Check(*pipe->Receive() == bit, "out of order");
                                 })},
          .finish = [pipe] { CheckAll(*pipe); }};
}

// Two wait for room; two receives make it for both.
Case BufferOfOneForThree() {
  auto world = make_shared<World>(3);
  auto pipe = make_shared<Pipe>(1);
  pipe->Fill(4);
  return {.threads = {world->Run(0, [pipe] { Check(pipe->Send(1).ok(), "a send failed"); }),
                      world->Run(1, [pipe] { Check(pipe->Send(2).ok(), "a send failed"); }),
                      world->Run(2,
                                 [pipe] {
                                   Check(*pipe->Receive() == 4, "not the first");
                                   Check(pipe->Receive().ok(), "a receive failed");
                                 })},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case SendAndReceiveTimeOut() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(0);
  return {.threads = {world->Run(0, [pipe] { pipe->Send(1, kSoon).IgnoreError(); }),
                      world->Run(1, [pipe] { pipe->Receive(kSoon).IgnoreError(); }),
                      world->ExpireTimers(2)},
          .finish = [pipe] { CheckAll(*pipe); }};
}

// The sender gives up and sends another: the receiver gets the one or the other.
Case SenderWhoGivesUpIsPassedBy() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(0);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   if (!pipe->Send(1, kSoon).ok())
                                     Check(pipe->Send(2).ok(), "a send failed");
                                 }),
                      world->Run(1, [pipe] { Check(pipe->Receive().ok(), "a receive failed"); }),
                      world->ExpireTimers(1)},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case ReceiveIsCancelled() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(1);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   const absl::Status status = pipe->Receive().status();
                                   Check(status.ok() || absl::IsCancelled(status), "an odd end");
                                 }),
                      world->Run(1, [pipe] { Check(pipe->Send(1).ok(), "a send failed"); }),
                      world->Cancel(0)},
          .finish = [pipe] { CheckAll(*pipe); }};
}

// It waits for room, which comes.
Case SendIsCancelled() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(1);
  pipe->Fill(1);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   const absl::Status status = pipe->Send(2);
                                   Check(status.ok() || absl::IsCancelled(status), "an odd end");
                                 }),
                      world->Run(1, [pipe] { Check(*pipe->Receive() == 1, "not the first"); }),
                      world->Cancel(0)},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case CloseMeetsASendAndAReceive() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(0);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   const absl::Status status = pipe->Send(1);
                                   Check(status.ok() || absl::IsFailedPrecondition(status),
                                         "an odd end");
                                 }),
                      world->Run(1,
                                 [pipe] {
                                   const absl::Status status = pipe->Receive().status();
                                   Check(status.ok() || absl::IsOutOfRange(status), "an odd end");
                                 }),
                      [pipe] { Check(pipe->channel.Close(), "closed by another"); }},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case CloseLeavesWhatIsInTheBuffer() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(1);
  pipe->Fill(1);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   const absl::Status status = pipe->Send(2);
                                   Check(status.ok() || absl::IsFailedPrecondition(status),
                                         "an odd end");
                                 }),
                      world->Run(1, [pipe] { Check(*pipe->Receive() == 1, "not the first"); }),
                      [pipe] { Check(pipe->channel.Close(), "closed by another"); }},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case ChannelIsDestroyedAsSoonAsTheReceiveReturns() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Mortal<fiber::Channel<Item>>>(size_t{0});
  return {
      .threads = {world->Run(0, [pipe] { Check((*pipe)->Send(Item(1)).ok(), "a send failed"); }),
                  world->Run(1, [pipe] {
                    Check((*pipe)->Receive()->value == 1, "not what was sent");
                    Destroy(**pipe);
                  })}};
}

// Selects.
// -------------------------------------------------------------------------------------------------

// Each wants to receive where the other sends. They meet on one of the two channels, whichever each looks at first.
Case SelectsFaceEachOther() {
  auto world = make_shared<World>(2);
  const auto [a, b] = MakeTwo(0, 0);
  return {
      .threads = {world->Run(0, [a, b] { Check(Exchange(*a, *b, 1).ok(), "a select failed"); }),
                  world->Run(1, [a, b] { Check(Exchange(*b, *a, 1).ok(), "a select failed"); })},
      .finish = [a, b] {
        Check(a->sent + b->sent == 1, "they met on both channels, or on none");
        CheckAll(*a, *b);
      }};
}

// As above, until a time, which may come for each.
Case SelectsThatFaceEachOtherTimeOut() {
  auto world = make_shared<World>(2);
  const auto [a, b] = MakeTwo(0, 0);
  auto until = [](WaitBlock& block, Pipe& in, Pipe& out) {
    fiber::internal::PushDeadline(block, kSoon.nanos());
    const absl::Status status = Exchange(in, out, 1);
    Check(status.ok() || absl::IsDeadlineExceeded(status), "an odd end");
    fiber::internal::DropAmbient(block);
  };
  return {.threads = {world->Run(0, [world, a, b, until] { until(world->block(0), *a, *b); }),
                      world->Run(1, [world, a, b, until] { until(world->block(1), *b, *a); }),
                      world->ExpireTimers(2)},
          .finish = [a, b] { CheckAll(*a, *b); }};
}

// Both ways on one channel: with each other, never with themselves.
Case SelectsMeetOnOneChannel() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(0);
  return {.threads = {world->Run(
                          0, [pipe] { Check(Exchange(*pipe, *pipe, 1).ok(), "a select failed"); }),
                      world->Run(
                          1, [pipe] { Check(Exchange(*pipe, *pipe, 2).ok(), "a select failed"); })},
          .finish = [pipe] { CheckAll(*pipe); }};
}

// Two come for one select: it takes from one of them, the other's item stays.
Case SelectTakesOneOfTwo() {
  auto world = make_shared<World>(3);
  const auto [a, b] = MakeTwo(1, 1);
  return {.threads = {world->Run(0,
                                 [a, b] {
                                   auto from_a = a->OnReceive();
                                   auto from_b = b->OnReceive();
                                   Check(SelectOne(from_a, from_b).ok(), "a select failed");
                                   Check(a->received + b->received == 1, "it took both, or none");
                                 }),
                      world->Run(1, [a] { Check(a->Send(1).ok(), "a send failed"); }),
                      world->Run(2, [b] { Check(b->Send(1).ok(), "a send failed"); })},
          .finish = [a, b] { CheckAll(*a, *b); }};
}

Case SelectWithAnEvent() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(1);
  auto event = make_shared<fiber::Event>();
  return {.threads = {world->Run(0,
                                 [pipe, event] {
                                   auto receive = pipe->OnReceive();
                                   auto set = fiber::OnEvent(*event, [] {});
                                   const absl::StatusOr<size_t> which = SelectOne(receive, set);
                                   Check(which.ok(), "a select failed");
                                   Check((*which == 0) == (pipe->received == 1),
                                         "not what it says");
                                   Check(*which == 0 || event->is_set(), "before the event");
                                 }),
                      world->Run(1, [pipe] { Check(pipe->Send(1).ok(), "a send failed"); }),
                      [event] { event->Set(); }},
          .finish = [pipe] { CheckAll(*pipe); }};
}

// Nobody sends; the event must not be missed, whenever it comes.
Case SelectMissesNoEvent() {
  auto world = make_shared<World>(1);
  auto pipe = make_shared<Pipe>(0);
  auto event = make_shared<fiber::Event>();
  return {.threads = {world->Run(0,
                                 [pipe, event] {
                                   auto receive = pipe->OnReceive();
                                   auto set = fiber::OnEvent(*event, [] {});
                                   Check(*SelectOne(receive, set) == 1, "not the event");
                                 }),
                      [event] { event->Set(); }},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case SelectWithADeadline() {
  auto world = make_shared<World>(2);
  auto pipe = make_shared<Pipe>(1);
  return {.threads = {world->Run(0,
                                 [pipe] {
                                   auto receive = pipe->OnReceive();
                                   auto late = fiber::OnDeadline(kSoon, [] {});
                                   const absl::StatusOr<size_t> which = SelectOne(receive, late);
                                   Check(which.ok(), "a select failed");
                                   Check((*which == 0) == (pipe->received == 1),
                                         "not what it says");
                                 }),
                      world->Run(1, [pipe] { Check(pipe->Send(1).ok(), "a send failed"); }),
                      world->ExpireTimers(1)},
          .finish = [pipe] { CheckAll(*pipe); }};
}

Case SelectIsCancelled() {
  auto world = make_shared<World>(2);
  const auto [a, b] = MakeTwo(1, 0);
  return {.threads = {world->Run(0,
                                 [a, b] {
                                   const absl::Status status = Exchange(*a, *b, 1);
                                   Check(status.ok() || absl::IsCancelled(status), "an odd end");
                                 }),
                      world->Run(1, [a] { Check(a->Send(1).ok(), "a send failed"); }),
                      world->Cancel(0)},
          .finish = [a, b] { CheckAll(*a, *b); }};
}

// The channel of the clause that went ahead goes, the other stays.
Case ChannelIsDestroyedAsSoonAsTheSelectReturns() {
  struct Channels {
    Mortal<fiber::Channel<Item>> mortal{size_t{0}};
    Pipe other{0};
  };
  auto world = make_shared<World>(2);
  auto channels = make_shared<Channels>();
  return {.threads = {world->Run(0,
                                 [channels] {
                                   Check(channels->mortal->Send(Item(1)).ok(), "a send failed");
                                 }),
                      world->Run(1,
                                 [channels] {
                                   int value = 0;
                                   auto receive = fiber::OnReceive(
                                       *channels->mortal, [&](Item item) { value = item.value; });
                                   auto elsewhere = channels->other.OnReceive();
                                   Check(SelectOne(receive, elsewhere).ok() && value == 1,
                                         "not what was sent");
                                   Destroy(*channels->mortal);
                                 })},
          .finish = [channels] { CheckAll(channels->other); }};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"Rendezvous", Rendezvous},
      {"RendezvousOfThree", RendezvousOfThree, 2},
      {"BufferOfOneKeepsTheOrder", BufferOfOneKeepsTheOrder, 3},
      {"BufferOfOneForThree", BufferOfOneForThree, 2},
      {"SendAndReceiveTimeOut", SendAndReceiveTimeOut},
      {"SenderWhoGivesUpIsPassedBy", SenderWhoGivesUpIsPassedBy},
      {"ReceiveIsCancelled", ReceiveIsCancelled},
      {"SendIsCancelled", SendIsCancelled},
      {"CloseMeetsASendAndAReceive", CloseMeetsASendAndAReceive},
      {"CloseLeavesWhatIsInTheBuffer", CloseLeavesWhatIsInTheBuffer},
      {"ChannelIsDestroyedAsSoonAsTheReceiveReturns", ChannelIsDestroyedAsSoonAsTheReceiveReturns},
      {"SelectsFaceEachOther", SelectsFaceEachOther},
      {"SelectsThatFaceEachOtherTimeOut", SelectsThatFaceEachOtherTimeOut, 2},
      {"SelectsMeetOnOneChannel", SelectsMeetOnOneChannel},
      {"SelectTakesOneOfTwo", SelectTakesOneOfTwo, 2},
      {"SelectWithAnEvent", SelectWithAnEvent, 2},
      {"SelectMissesNoEvent", SelectMissesNoEvent},
      {"SelectWithADeadline", SelectWithADeadline},
      {"SelectIsCancelled", SelectIsCancelled, 2},
      {"ChannelIsDestroyedAsSoonAsTheSelectReturns", ChannelIsDestroyedAsSoonAsTheSelectReturns},
  };
  return kCases;
}

}  // namespace model
