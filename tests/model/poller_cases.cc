// SPDX-License-Identifier: Apache-2.0
//
// The poller's permits: interrupts, those who wait in it, and those who only look.
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/wait_block.h"
#include "netpoll/internal/backend.h"
#include "netpoll/internal/backend_epoll.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.cc"
#include "sched/event_source.h"
#include "sched/internal/install.h"
#include "tests/model/case_list.h"

namespace model {
namespace {

// No descriptors; kicks as weak as the contract allows: whoever looks takes it, and two may count
// as one.
class KicksOnly final : public netpoll::internal::Backend {
 public:
  absl::Status Add(int, uint64_t) override { return absl::OkStatus(); }
  void Remove(int) override {}
  int Wait(int64_t deadline_ns, netpoll::internal::Event*, int, bool* was_kicked) override {
    do {
      if (kick_.load(std::memory_order_seq_cst) != 0 &&
          kick_.exchange(0, std::memory_order_seq_cst) != 0) {
        *was_kicked = true;
        return 0;
      }
    } while (deadline_ns != 0 && fiber::internal::FutexWait(kick_, 0, deadline_ns));
    *was_kicked = false;
    return 0;
  }
  void Kick() override { kick_.store(1, std::memory_order_seq_cst); }

 private:
  fiber::internal::Atomic<uint32_t> kick_{0};
};

}  // namespace
}  // namespace model

// What the poller would need besides.
namespace netpoll::internal {
absl::StatusOr<std::unique_ptr<Backend>> EpollBackend::Create() {
  return std::make_unique<model::KicksOnly>();
}
void DescriptorSlab::ForEach(absl::FunctionRef<void(Descriptor&)>) {}
void Descriptor::OnEvent(uint32_t) {}
void Descriptor::Orphan(Poller&) {}
absl::Status RuntimeEndedStatus() { return absl::OkStatus(); }
}  // namespace netpoll::internal
namespace sched::internal {
EventSource* InstalledEventSource(fiber::Scheduler*,
                                  absl::FunctionRef<std::unique_ptr<EventSource>()>) {
  return nullptr;
}
}  // namespace sched::internal

namespace model {
namespace {

using fiber::internal::kNeverNs;
using netpoll::internal::Poller;
using netpoll::internal::PollerSource;
using std::make_shared;

std::shared_ptr<PollerSource> MakePoller() { return make_shared<PollerSource>(**Poller::Create()); }

// Somebody who does not wait takes the kick that was meant for the one who does.
Case InterruptEndsAWaitWhoeverLooks() {
  auto poller = MakePoller();
  return {.threads = {[poller] { poller->Poll(kNeverNs); }, [poller] { poller->Interrupt(); },
                      [poller] {
                        poller->Poll(0);
                        poller->Poll(0);
                      }}};
}

// An interrupt that comes before anybody waits is for the next one who would.
Case TwoInterruptsEndTwoWaits() {
  auto poller = MakePoller();
  auto wait = [poller] { poller->Poll(kNeverNs); };
  return {.threads = {wait, wait, [poller] {
                        poller->Interrupt();
                        poller->Interrupt();
                      }}};
}

Case TwoInterruptersEndTwoWaitsOfOne() {
  auto poller = MakePoller();
  auto interrupt = [poller] { poller->Interrupt(); };
  return {.threads = {[poller] {
                        poller->Poll(kNeverNs);
                        poller->Poll(kNeverNs);
                      },
                      interrupt, interrupt}};
}

// Whoever times out leaves the permit to the other, or has taken it.
Case InterruptsAreNotLostToTimeouts() {
  auto poller = MakePoller();
  return {.threads = {[poller] { poller->Poll(1000); }, [poller] { poller->Poll(kNeverNs); },
                      [poller] {
                        poller->Interrupt();
                        poller->Interrupt();
                      },
                      [poller] { poller->Poll(0); }}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"InterruptEndsAWaitWhoeverLooks", InterruptEndsAWaitWhoeverLooks},
      {"TwoInterruptsEndTwoWaits", TwoInterruptsEndTwoWaits},
      {"TwoInterruptersEndTwoWaitsOfOne", TwoInterruptersEndTwoWaitsOfOne},
      {"InterruptsAreNotLostToTimeouts", InterruptsAreNotLostToTimeouts, 4},
  };
  return kCases;
}

}  // namespace model

namespace fiber::internal {
uint64_t ForkGeneration() { return 0; }
}  // namespace fiber::internal
