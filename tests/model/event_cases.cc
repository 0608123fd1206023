// SPDX-License-Identifier: Apache-2.0
//
// Events on their way to descriptors: poller.cc and descriptor.cc as they ship, over a kernel that brings edges. There is one
// record and one number: who makes a socket after another uses both again, while a poller may hold an event of the first.
#include <memory>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/ambient.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "netpoll/internal/backend.h"
#include "netpoll/internal/backend_epoll.h"
#include "netpoll/internal/descriptor.cc"
#include "netpoll/internal/poller.cc"
#include "tests/model/case_list.h"
#include "tests/model/explorer.h"
#include "tests/model/fibers.cc"
#include "tests/model/fibers.h"

namespace model {
namespace {

using netpoll::internal::Descriptor;
using netpoll::internal::Direction;
using netpoll::internal::FlowLock;
using netpoll::internal::Poller;
using netpoll::internal::PollerSource;
using std::make_shared;

constexpr int kFd = 7;

// The kernel's side of the number: what it is open on, how it is watched, and an edge for each time that something came.
// Outlives the poller, whose backend (below) passes on to it.
struct Kernel {
  uint64_t tag = 0;  // 0: not watched
  bool has_edge = false;
  int tokens = 0;
  bool is_open = false;
  int harvested = 0;
  int made = 0;  // sockets
  // Who takes the first edge has no CPU until a second socket is made.
  bool holds_first = false;

  Descriptor record;
  bool is_record_free = true;
  std::unique_ptr<PollerSource> source;

  ~Kernel() { source = nullptr; }

  Descriptor* Make() {
    Touch(this);
    Check(!is_open, "the number is not free");
    is_open = true;
    tokens = 0;
    Descriptor* const descriptor = *Descriptor::Create(source->poller(), kFd, /*is_tcp=*/true);
    Touch(this);
    ++made;
    return descriptor;
  }
  void Send() {
    Touch(this);
    ++tokens;
    has_edge = true;
  }
  int Harvest(netpoll::internal::Event* events) {
    Touch(this);
    if (tag == 0 || !std::exchange(has_edge, false)) return 0;
    *events = {tag, netpoll::internal::kReadable};
    if (harvested++ == 0 && holds_first) Await(this, [this] { return made == 2; });
    return 1;
  }
  // One token of the socket, or its end. `*vain` counts waits that ended without any.
  absl::Status Receive(Descriptor& descriptor, int* vain) {
    FlowLock lock(descriptor, Direction::kRead, fiber::WaitReason::kRead, {});
    if (!lock.status().ok()) return lock.status();
    for (;;) {
      lock.flow().slot.ClearReady();
      Touch(this);
      Check(is_open, "the socket was closed under a reader");
      if (tokens > 0) {
        --tokens;
        return absl::OkStatus();
      }
      if (absl::Status status = lock.Await(); !status.ok()) return status;
      Touch(this);
      if (tokens == 0) ++*vain;
    }
  }
  void CheckGone() { Check(!is_open && is_record_free && tag == 0, "something is left of a socket"); }
};
Kernel* kernel_of_the_schedule = nullptr;

class Backend final : public netpoll::internal::Backend {
 public:
  absl::Status Add(int, uint64_t tag) override {
    Kernel& kernel = *kernel_of_the_schedule;
    Touch(&kernel);
    kernel.tag = tag;
    kernel.has_edge = false;
    return absl::OkStatus();
  }
  void Remove(int) override {
    Kernel& kernel = *kernel_of_the_schedule;
    Touch(&kernel);
    kernel.tag = 0;
    kernel.has_edge = false;
  }
  int Wait(int64_t, netpoll::internal::Event* events, int, bool* was_kicked) override {
    *was_kicked = false;
    return kernel_of_the_schedule->Harvest(events);
  }
  void Kick() override {}
};

std::shared_ptr<Kernel> MakeKernel() {
  auto kernel = make_shared<Kernel>();
  kernel_of_the_schedule = kernel.get();
  kernel->source = std::make_unique<PollerSource>(**Poller::Create());
  return kernel;
}

bool IsClosed(const absl::Status& status) { return absl::IsFailedPrecondition(status); }

// What is sent to the second socket, by one that looks after that, as the last poller does.
std::function<void()> SendToTheSecond(std::shared_ptr<Kernel> kernel) {
  return [kernel] {
    Await(kernel.get(), [kernel] { return kernel->made == 2; });
    kernel->Send();
    kernel->source->Poll(0);
  };
}

std::function<void()> Poll(std::shared_ptr<Kernel> kernel) {
  return [kernel] { kernel->source->Poll(0); };
}

// A poller has an event of a socket, which is closed, and brings it when record and number are in use again: whoever waits
// there is not told.
Case EventOfAnEarlierSocketIsStale() {
  auto world = make_shared<World>(1);
  auto kernel = MakeKernel();
  kernel->holds_first = true;
  Descriptor* const first = kernel->Make();
  kernel->Send();
  return {.threads = {world->Run(0,
                                 [kernel, first] {
                                   Await(kernel.get(), [kernel] { return kernel->harvested == 1; });
                                   first->Drop();
                                   Descriptor* const second = kernel->Make();
                                   int vain = 0;
                                   Check(kernel->Receive(*second, &vain).ok(), "it failed");
                                   Check(vain == 0, "an event of another socket was brought");
                                   second->Drop();
                                 }),
                      Poll(kernel), SendToTheSecond(kernel)},
          .finish = [kernel] { kernel->CheckGone(); }};
}

// The event may also be brought while the record changes hands, between the look at its tag and the mark. Then the new user
// tries a system call in vain, once; what comes for it is not lost, and no other wait of the fiber is ended.
Case EventMeetsTheNextUseOfTheRecord() {
  auto world = make_shared<World>(1);
  auto kernel = MakeKernel();
  auto event = make_shared<fiber::Event>();
  Descriptor* const first = kernel->Make();
  kernel->Send();
  return {.threads = {world->Run(0,
                                 [kernel, first, event] {
                                   first->Drop();
                                   Descriptor* const second = kernel->Make();
                                   int vain = 0;
                                   Check(kernel->Receive(*second, &vain).ok(), "it failed");
                                   Check(vain <= 1, "one event was brought twice");
                                   second->Drop();
                                   Check(event->Wait().ok() && event->is_set(),
                                         "a wait for something else was ended");
                                 }),
                      Poll(kernel), SendToTheSecond(kernel), [event] { event->Set(); }},
          .finish = [kernel] { kernel->CheckGone(); }};
}

// Two pollers have an event each as the socket is closed under a reader, whose next wait is for something else.
Case TwoEventsMeetClose() {
  auto world = make_shared<World>(1);
  auto kernel = MakeKernel();
  auto event = make_shared<fiber::Event>();
  Descriptor* const socket = kernel->Make();
  auto send = [kernel] {
    kernel->Send();
    kernel->source->Poll(0);
  };
  return {.threads = {world->Run(0,
                                 [kernel, socket, event] {
                                   int vain = 0;
                                   for (int i = 0; i < 3; ++i) {
                                     const absl::Status status = kernel->Receive(*socket, &vain);
                                     Check(i < 2 ? status.ok() || IsClosed(status) : IsClosed(status), "an odd end");
                                     if (!status.ok()) break;
                                   }
                                   Check(event->Wait().ok() && event->is_set(),
                                         "a wait for something else was ended");
                                 }),
                      send, send,
                      [socket, event] {
                        socket->Close();
                        event->Set();
                      }},
          .finish =
              [kernel, socket] {
                socket->Drop();
                kernel->CheckGone();
              }};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"EventOfAnEarlierSocketIsStale", EventOfAnEarlierSocketIsStale, 3},
      {"EventMeetsTheNextUseOfTheRecord", EventMeetsTheNextUseOfTheRecord, 2},
      {"TwoEventsMeetClose", TwoEventsMeetClose, 2},
  };
  return kCases;
}

}  // namespace model

// What poller and descriptors need besides the files that ship.
namespace netpoll::internal {

absl::StatusOr<std::unique_ptr<Backend>> EpollBackend::Create() { return std::make_unique<model::Backend>(); }
void Close(int) {
  model::Touch(model::kernel_of_the_schedule);
  model::Check(std::exchange(model::kernel_of_the_schedule->is_open, false), "closed twice");
}
Descriptor* DescriptorSlab::Take() {
  model::Touch(model::kernel_of_the_schedule);
  model::Check(std::exchange(model::kernel_of_the_schedule->is_record_free, false), "taken twice");
  return &model::kernel_of_the_schedule->record;
}
void DescriptorSlab::Give(Descriptor&) {
  model::Touch(model::kernel_of_the_schedule);
  model::Check(!std::exchange(model::kernel_of_the_schedule->is_record_free, true), "given back twice");
}
void DescriptorSlab::ForEach(absl::FunctionRef<void(Descriptor&)>) {}
absl::Status ErrnoStatus(absl::StatusCode code, int, std::string_view, std::string_view, std::string_view) {
  return absl::Status(code, "not here");
}
absl::Status ClosedStatus() { return absl::FailedPreconditionError("closed"); }
absl::Status RuntimeEndedStatus() { return absl::UnavailableError("ended"); }

}  // namespace netpoll::internal

namespace sched::internal {
EventSource* InstalledEventSource(fiber::Scheduler*, absl::FunctionRef<std::unique_ptr<EventSource>()>) {
  return nullptr;
}
}  // namespace sched::internal

namespace fiber::internal {
uint64_t ForkGeneration() { return 0; }
}  // namespace fiber::internal
