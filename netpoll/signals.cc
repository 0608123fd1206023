// SPDX-License-Identifier: Apache-2.0
#include "netpoll/signals.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "fiber/cancel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/thread_state.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/signal_registry.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll {

using fiber::internal::Fatal;
using internal::Descriptor;
using internal::Direction;
using internal::FlowLock;
using internal::Poller;
using internal::SignalNews;

// What a fiber of ours and the object share. The fiber ends first.
struct Signals::Delivery {
  Delivery(std::vector<int> wanted, size_t capacity)
      : signals(std::move(wanted)), received(capacity) {}

  void Run() {
    FlowLock lock(*bell, Direction::kRead, fiber::WaitReason::kDescriptor, fiber::Deadline::Never());
    absl::Status status = lock.status();
    while (status.ok()) {
      lock.flow().slot.ClearReady();
      SendNews();
      status = lock.Await();
    }
    received.Close();
  }

  void SendNews() {
    for (size_t i = 0; i < signals.size(); ++i) {
      const uint64_t count = internal::SignalCount(signals[i]);
      while (seen[i] != count && received.TrySend(signals[i]).ok()) ++seen[i];
      seen[i] = count;  // there was no room for the rest
    }
  }

  const uint64_t fork_generation = fiber::internal::ForkGeneration();
  const std::vector<int> signals;
  std::vector<uint64_t> seen;  // the fiber's
  fiber::Channel<int> received;
  bool is_subscribed = false;
  Descriptor* bell = nullptr;
  bool has_fiber = false;
  fiber::Event done;  // the fiber has touched it for the last time
};

void Signals::Ender::operator()(Delivery* delivery) const {
  if (delivery->fork_generation != fiber::internal::ForkGeneration()) {
    // A child of fork() has a copy, but not its fiber, nor those that receive from its channel: that is left as it is.
    if (delivery->bell != nullptr) delivery->bell->Drop();
    if (delivery->is_subscribed) internal::UnsubscribeSignals(delivery->signals);
    return;
  }
  if (delivery->bell != nullptr) delivery->bell->Close();  // the fiber is told so, and ends
  if (delivery->has_fiber) {
    fiber::CancelShield shield;
    delivery->done.Wait().IgnoreError();  // shielded and without a deadline it does not fail
  }
  if (delivery->bell != nullptr) delivery->bell->Drop();
  if (delivery->is_subscribed) internal::UnsubscribeSignals(delivery->signals);
  delete delivery;
}

absl::StatusOr<Signals> Signals::Create(std::vector<int> signals, size_t capacity) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  std::unique_ptr<Delivery, Ender> delivery(new Delivery(std::move(signals), capacity));
  absl::StatusOr<SignalNews> news = internal::SubscribeSignals(delivery->signals);
  if (!news.ok()) return news.status();
  delivery->is_subscribed = true;
  delivery->seen = std::move(news->seen);
  absl::StatusOr<Descriptor*> bell = Descriptor::Create(**poller, news->bell, false);
  if (!bell.ok()) {
    internal::Close(news->bell);
    return bell.status();
  }
  delivery->bell = *bell;
  fiber::CancelShield shield;  // its fiber inherits neither deadline nor scope
  fiber::Go({.name = "netpoll::Signals", .stack_bytes = size_t{64} << 10}, [delivery = delivery.get()] {
    delivery->Run();
    delivery->done.Set();
  });
  delivery->has_fiber = true;
  return Signals(std::move(delivery));
}

namespace {

Signals CreateOrDie(std::initializer_list<int> signals) {
  absl::StatusOr<Signals> created = Signals::Create(signals);
  if (!created.ok()) Fatal("netpoll::Signals: %s", created.status().ToString().c_str());
  return *std::move(created);
}

}  // namespace

Signals::Signals(std::initializer_list<int> signals) : Signals(CreateOrDie(signals)) {}
Signals::Signals(std::unique_ptr<Delivery, Ender> delivery) : delivery_(std::move(delivery)) {}
Signals::Signals(Signals&&) noexcept = default;
Signals& Signals::operator=(Signals&&) noexcept = default;
Signals::~Signals() = default;

fiber::Channel<int>& Signals::received() {
  if (delivery_ == nullptr) Fatal("netpoll::Signals: received() of one that was moved from");
  return delivery_->received;
}

}  // namespace netpoll
