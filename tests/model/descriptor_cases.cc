// SPDX-License-Identifier: Apache-2.0
//
// Sockets as descriptor.cc ships them: the locks of their flows, waits, close, references, the end
// of the poller. The socket is a count of tokens; an event says that there may be some.
#include <poll.h>

#include <memory>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/model/case_list.h"
#include "tests/model/explorer.h"

#define private public  // a poller that has only its mark
#include "netpoll/internal/poller.h"
#undef private
//
#include "fiber/channel.cc"
#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/ambient.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "fiber/select.cc"
#include "netpoll/internal/descriptor.cc"
#include "netpoll/internal/flow_clause.cc"
#include "tests/model/fibers.cc"
#include "tests/model/fibers.h"

namespace model {
namespace {

using fiber::Deadline;
using netpoll::internal::Descriptor;
using netpoll::internal::Direction;
using netpoll::internal::FlowClause;
using netpoll::internal::FlowLock;
using netpoll::internal::Poller;
using std::make_shared;

const Deadline kSoon = Deadline::AtNanos(1000);

constexpr int kFd = 7;

// What the stand-ins for slab, poller and kernel count.
struct Slab {
  Descriptor descriptor;
  bool is_taken = false;
  Poller poller{nullptr};
  int tokens = 0;
  int open_fds = 0;
  int records_back = 0;
};
Slab* slab_of_the_schedule = nullptr;

struct Socket {
  Slab slab;
  Descriptor* descriptor = nullptr;
  int& tokens = slab.tokens;

  Socket() {
    slab_of_the_schedule = &slab;
    slab.open_fds = 1;
    descriptor = *Descriptor::Create(slab.poller, kFd, /*is_tcp=*/true);
  }

  void Send() {
    Touch(&tokens);
    ++tokens;
    descriptor->OnEvent(netpoll::internal::kReadable);
  }
  // One token. The caller may hold a reference to the socket only by its lock.
  absl::Status Receive(Deadline deadline) {
    FlowLock lock(*descriptor, Direction::kRead, fiber::WaitReason::kRead, deadline);
    if (!lock.status().ok()) return lock.status();
    for (;;) {
      lock.flow().slot.ClearReady();
      Touch(&tokens);
      Check(slab.open_fds == 1, "the socket was closed under a reader");
      if (tokens > 0) {
        --tokens;
        return absl::OkStatus();
      }
      if (absl::Status status = lock.Await(); !status.ok()) return status;
    }
  }
  // For `finish`, when it has been dropped.
  void CheckGone() {
    Check(slab.open_fds == 0, "it is still open, or closed twice");
    Check(slab.records_back == 1, "its record was not given back once");
  }
};

// A clause of a select, and what it was told.
struct News final : FlowClause {
  explicit News(Socket& socket) : FlowClause(socket.descriptor, Direction::kRead) {}
  absl::Status Finish(uint32_t) override {
    told = status();
    return absl::OkStatus();
  }
  absl::Status told = absl::UnknownError("not told");
};

// A clause that ends the wait for no good reason when somebody knocks.
struct Knock final : fiber::internal::Clause {
  explicit Knock(netpoll::internal::PollSlot& slot) : slot(slot) {}
  bool TryLink(fiber::internal::Wait& wait) override { return slot.TryLink(wait.block(), waiter.clause); }
  void Unlink(fiber::internal::Wait&) override { slot.Unlink(); }
  bool IsOver(uint32_t) override { return false; }
  absl::Status Finish(uint32_t) override { return absl::OkStatus(); }
  netpoll::internal::PollSlot& slot;
};

bool IsClosed(const absl::Status& status) { return absl::IsFailedPrecondition(status); }

// A reader waits; news, and the owner closes.
Case ReaderMeetsClose() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   const absl::Status status = socket->Receive({});
                                   Check(status.ok() || IsClosed(status), "an odd end");
                                 }),
                      [socket] { socket->Send(); }, [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

// Two readers, of whom one has the flow; the owner closes.
Case TwoReadersMeetClose() {
  auto world = make_shared<World>(2);
  auto socket = make_shared<Socket>();
  auto read = [socket] { Check(IsClosed(socket->Receive({})), "not closed"); };
  return {.threads = {world->Run(0, read), world->Run(1, read),
                      [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

// Two readers and two tokens: one hands the flow to the other.
Case FlowIsHandedOver() {
  auto world = make_shared<World>(2);
  auto socket = make_shared<Socket>();
  auto read = [socket] { Check(socket->Receive({}).ok(), "it failed"); };
  return {.threads = {world->Run(0, read), world->Run(1, read),
                      [socket] {
                        socket->Send();
                        socket->Send();
                      }},
          .finish =
              [socket] {
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

// The one who waits for the flow gives up, as it is handed over or the socket is closed.
Case QueuedReaderIsCancelled() {
  auto world = make_shared<World>(2);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   const absl::Status status = socket->Receive({});
                                   Check(status.ok() || IsClosed(status), "an odd end");
                                 }),
                      world->Run(1,
                                 [socket] {
                                   const absl::Status status = socket->Receive({});
                                   Check(absl::IsCancelled(status) || IsClosed(status),
                                         "it was not cancelled");
                                 }),
                      world->Cancel(1), [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

Case ReaderTimesOut() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   const absl::Status status = socket->Receive(kSoon);
                                   Check(status.ok() || absl::IsDeadlineExceeded(status) ||
                                             IsClosed(status),
                                         "an odd end");
                                 }),
                      world->ExpireTimers(1), [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

// The deadline of the socket is moved to the past while a reader begins to wait.
Case DeadlineIsMovedToThePast() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   Check(absl::IsDeadlineExceeded(socket->Receive({})),
                                         "no deadline");
                                 }),
                      [socket] {
                        socket->descriptor->SetDeadline(Direction::kRead, Deadline::AtNanos(1));
                      },
                      world->ExpireTimers(1)},
          .finish =
              [socket] {
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

// The poller ends while a reader begins to wait, and the owner drops the socket.
Case PollerEnds() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   const absl::Status status = socket->Receive({});
                                   Check(absl::IsUnavailable(status) || IsClosed(status),
                                         "an odd end");
                                 }),
                      [socket] { socket->descriptor->Orphan(socket->slab.poller); },
                      [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

// As Poller::Stop does: it is marked first, then the records are gone through. A socket is made
// meanwhile.
Case SocketIsMadeAsThePollerEnds() {
  auto world = make_shared<World>(1);
  auto slab = make_shared<Slab>();
  slab_of_the_schedule = slab.get();
  slab->open_fds = 1;
  return {.threads = {world->Run(0,
                                 [slab] {
                                   Descriptor* made = *Descriptor::Create(slab->poller, kFd, true);
                                   {
                                     FlowLock lock(*made, Direction::kRead,
                                                   fiber::WaitReason::kRead, {});
                                     Check(absl::IsUnavailable(lock.Await()), "not ended");
                                   }
                                   made->Drop();
                                 }),
                      [slab] {
                        slab->poller.is_stopped_.store(true, std::memory_order_seq_cst);
                        slab->descriptor.Orphan(slab->poller);
                      }}};
}

// A select of a socket and of an event, and both come.
Case SelectMeetsNewsAndAnEvent() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  auto event = make_shared<fiber::Event>();
  return {.threads = {world->Run(0,
                                 [socket, event] {
                                   News news(*socket);
                                   Check(fiber::Select(news, fiber::OnEvent(*event, [] {})).ok(),
                                         "a select failed");
                                   // Whoever won, the flow is free and what came is there to be read.
                                   Check(socket->Receive({}).ok(), "the token is lost");
                                 }),
                      [socket] { socket->Send(); }, [event] { event->Set(); }},
          .finish =
              [socket] {
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

Case SelectMeetsClose() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   News news(*socket);
                                   Check(fiber::Select(news).ok(), "a select failed");
                                   Check(news.told.ok() || IsClosed(news.told), "an odd end");
                                 }),
                      [socket] { socket->Send(); }, [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

// Nothing comes but the end of the poller, and the owner's.
Case SelectMeetsTheEnd() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   News news(*socket);
                                   Check(fiber::Select(news).ok(), "a select failed");
                                   Check(absl::IsUnavailable(news.told) || IsClosed(news.told),
                                         "an odd end");
                                 }),
                      [socket] { socket->descriptor->Orphan(socket->slab.poller); },
                      [socket] { socket->descriptor->Drop(); }},
          .finish = [socket] { socket->CheckGone(); }};
}

// The select is queued for the flow behind a reader, or the reader behind the select.
Case SelectAndReaderTakeTurns() {
  auto world = make_shared<World>(2);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0, [socket] { Check(socket->Receive({}).ok(), "it failed"); }),
                      world->Run(1,
                                 [socket] {
                                   News news(*socket);
                                   Check(fiber::Select(news).ok() && news.told.ok(), "not told");
                                 }),
                      [socket] {
                        socket->Send();
                        socket->Send();
                      }},
          .finish =
              [socket] {
                Check(socket->tokens == 1, "the select has taken something");
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

// Likewise, and the select goes for another reason, as the flow may be handed to it.
Case SelectLeavesTheQueueForAFlow() {
  auto world = make_shared<World>(2);
  auto socket = make_shared<Socket>();
  auto event = make_shared<fiber::Event>();
  return {.threads = {world->Run(0, [socket] { Check(socket->Receive({}).ok(), "it failed"); }),
                      world->Run(1,
                                 [socket, event] {
                                   News news(*socket);
                                   Check(fiber::Select(news, fiber::OnEvent(*event, [] {})).ok(),
                                         "a select failed");
                                 }),
                      [socket, event] {
                        event->Set();
                        socket->Send();
                      }},
          .finish =
              [socket] {
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

// Another clause ends the wait as the select gets the flow of a reader who leaves something.
Case SelectGetsAFlowOnTheWay() {
  auto world = make_shared<World>(2);
  auto socket = make_shared<Socket>();
  auto door = make_shared<netpoll::internal::PollSlot>();
  return {.threads = {world->Run(0, [socket] { Check(socket->Receive({}).ok(), "it failed"); }),
                      world->Run(1,
                                 [socket, door] {
                                   Knock knock(*door);
                                   News news(*socket);
                                   Check(fiber::Select(knock, news).ok() && news.told.ok(), "not told");
                                 }),
                      [socket, door] {
                        socket->Send();
                        socket->Send();
                        fiber::internal::WaitBlock* const block =
                            door->ClaimWaiter(netpoll::internal::kOutcomeLookAgain);
                        if (block != nullptr) fiber::internal::Unpark(*block);
                      }},
          .finish =
              [socket] {
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

// The deadline of the socket is moved to the past as the select begins to wait.
Case DeadlineIsMovedUnderASelect() {
  auto world = make_shared<World>(1);
  auto socket = make_shared<Socket>();
  return {.threads = {world->Run(0,
                                 [socket] {
                                   News news(*socket);
                                   Check(fiber::Select(news).ok(), "a select failed");
                                   Check(absl::IsDeadlineExceeded(news.told), "no deadline");
                                 }),
                      [socket] {
                        socket->descriptor->SetDeadline(Direction::kRead, Deadline::AtNanos(1));
                      },
                      world->ExpireTimers(1)},
          .finish =
              [socket] {
                socket->descriptor->Drop();
                socket->CheckGone();
              }};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"ReaderMeetsClose", ReaderMeetsClose, 3},
      {"TwoReadersMeetClose", TwoReadersMeetClose, 2},
      {"FlowIsHandedOver", FlowIsHandedOver, 2},
      {"QueuedReaderIsCancelled", QueuedReaderIsCancelled, 2},
      {"ReaderTimesOut", ReaderTimesOut, 2},
      {"DeadlineIsMovedToThePast", DeadlineIsMovedToThePast, 3},
      {"PollerEnds", PollerEnds, 3},
      {"SocketIsMadeAsThePollerEnds", SocketIsMadeAsThePollerEnds, 4},
      {"SelectMeetsNewsAndAnEvent", SelectMeetsNewsAndAnEvent, 3},
      {"SelectMeetsClose", SelectMeetsClose, 3},
      {"SelectMeetsTheEnd", SelectMeetsTheEnd, 3},
      {"SelectAndReaderTakeTurns", SelectAndReaderTakeTurns, 3},
      {"SelectLeavesTheQueueForAFlow", SelectLeavesTheQueueForAFlow, 2},
      {"SelectGetsAFlowOnTheWay", SelectGetsAFlowOnTheWay, 2},
      {"DeadlineIsMovedUnderASelect", DeadlineIsMovedUnderASelect, 4},
  };
  return kCases;
}

}  // namespace model

// What descriptors need besides the files that ship.
namespace netpoll::internal {

absl::Status Poller::Add(Descriptor&) { return absl::OkStatus(); }
void Poller::Remove(int) {}
void Close(int fd) {
  model::Touch(&model::slab_of_the_schedule->open_fds);
  model::Check(fd == model::kFd && --model::slab_of_the_schedule->open_fds == 0, "closed twice");
}
Poller::Poller(std::unique_ptr<Backend>) : fork_generation_(0) {}
Descriptor* DescriptorSlab::Take() {
  model::Check(!std::exchange(model::slab_of_the_schedule->is_taken, true), "taken twice");
  return &model::slab_of_the_schedule->descriptor;
}
void DescriptorSlab::Give(Descriptor&) {
  model::Touch(&model::slab_of_the_schedule->records_back);
  ++model::slab_of_the_schedule->records_back;
}
absl::Status ErrnoStatus(absl::StatusCode code, int, std::string_view, std::string_view,
                         std::string_view) {
  return absl::Status(code, "not here");
}
absl::Status ErrnoStatus(int, std::string_view, std::string_view) {
  return absl::UnknownError("not here");
}
int Poll(int fd, short, int64_t) {
  model::Slab& slab = *model::slab_of_the_schedule;
  model::Touch(&slab.tokens);
  model::Check(fd == model::kFd && slab.open_fds == 1, "the socket was closed under a select");
  return slab.tokens > 0 ? POLLIN : 0;
}
absl::Status ClosedStatus() { return absl::FailedPreconditionError("closed"); }
absl::Status RuntimeEndedStatus() { return absl::UnavailableError("ended"); }

}  // namespace netpoll::internal

namespace fiber::internal {
uint64_t ForkGeneration() { return 0; }
}  // namespace fiber::internal
