// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/poller.h"

#include <mutex>
#include <utility>

#include "fiber/internal/fork.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "netpoll/internal/backend_epoll.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/internal/errno_status.h"
#include "sched/internal/install.h"

namespace netpoll::internal {
namespace {

using fiber::internal::ThisThread;
using fiber::internal::ThreadState;

constexpr int kBatch = 128;

}  // namespace

Poller::Poller(std::unique_ptr<Backend> backend)
    : backend_(std::move(backend)), fork_generation_(fiber::internal::ForkGeneration()) {}

absl::StatusOr<Poller*> Poller::Create() {
  absl::StatusOr<std::unique_ptr<Backend>> backend = EpollBackend::Create();
  if (!backend.ok()) return backend.status();
  return new Poller(*std::move(backend));
}

absl::StatusOr<Poller*> Poller::OfCaller() {
  const ThreadState& thread = ThisThread();
  if (thread.current == nullptr) {
    return absl::FailedPreconditionError(
        "sockets are made by fibers: a plain thread has no runtime to watch them (sched::Run, sched::Runtime)");
  }
  absl::Status failure;  // remains OK if this scheduler takes no source
  const auto make = [&failure]() -> std::unique_ptr<sched::EventSource> {
    absl::StatusOr<Poller*> poller = Poller::Create();
    if (poller.ok()) return std::make_unique<PollerSource>(**poller);
    failure = poller.status();
    return nullptr;
  };
  sched::EventSource* source =
      sched::internal::InstalledEventSource(thread.current->scheduler, make);
  if (source != nullptr) return &static_cast<PollerSource*>(source)->poller();
  if (!failure.ok()) return failure;
  return absl::FailedPreconditionError("this fiber's scheduler has no sockets (a simulation?)");
}

bool Poller::is_own_process() const {
  return fork_generation_ == fiber::internal::ForkGeneration();
}

void Poller::Poll(int64_t deadline_ns) {
  bool was_kicked = false;
  const bool may_wait = deadline_ns > 0 && (deadline_ns == fiber::internal::kNeverNs ||
                                            deadline_ns > fiber::internal::MonotonicNs());
  if (!may_wait) {
    (void)Harvest(0, &was_kicked);
    if (!was_kicked) return;
    const uint64_t word = permits_.load(std::memory_order_seq_cst);  // order: poll-permit
    if (PermitsOf(word) > 0 && WaitingOf(word) > 0) backend_->Kick();
    return;
  }
  for (;;) {
    if (!BeginWait()) {
      (void)Harvest(0, &was_kicked);
      if (was_kicked) {
        const uint64_t word = permits_.load(std::memory_order_seq_cst);  // order: poll-permit
        if (PermitsOf(word) > 0 && WaitingOf(word) > 0) backend_->Kick();
      }
      return;
    }
    const bool found = Harvest(deadline_ns, &was_kicked);
    const bool took_permit = EndWait(was_kicked);
    // A kick whose permit somebody else has taken is nothing to come back for.
    if (found || took_permit || !was_kicked) return;
  }
}

// True: counted as waiting. False: took a permit instead.
bool Poller::BeginWait() {
  uint64_t word = permits_.load(std::memory_order_relaxed);
  for (;;) {
    const bool waits = PermitsOf(word) == 0;
    if (permits_.compare_exchange_weak(word, waits ? word + kWaiting : word - kPermit,
                                       std::memory_order_seq_cst,  // order: poll-permit
                                       std::memory_order_relaxed)) {
      return waits;
    }
  }
}

// True: took a permit.
bool Poller::EndWait(bool was_kicked) {
  uint64_t word = permits_.load(std::memory_order_relaxed);
  bool takes;
  uint64_t next;
  do {
    takes = was_kicked && PermitsOf(word) > 0;
    next = word - kWaiting - (takes ? kPermit : 0);
  } while (!permits_.compare_exchange_weak(word, next,
                                           std::memory_order_seq_cst,  // order: poll-permit
                                           std::memory_order_relaxed));
  if (was_kicked && PermitsOf(next) > 0 && WaitingOf(next) > 0) backend_->Kick();
  return takes;
}

void Poller::Interrupt() {
  if (!is_own_process()) return;
  const uint64_t before = permits_.fetch_add(kPermit, std::memory_order_seq_cst);  // order: poll-permit
  if (WaitingOf(before) > 0) backend_->Kick();
}

// True: there were events.
bool Poller::Harvest(int64_t deadline_ns, bool* was_kicked) {
  Event events[kBatch];
  const int count = backend_->Wait(deadline_ns, events, kBatch, was_kicked);
  for (int i = 0; i < count; ++i) {
    constexpr int kAhead = 4;
    if (i + kAhead < count) __builtin_prefetch(Descriptor::OfTag(events[i + kAhead].tag));
    if (events[i].tag == kCompanionTag) [[unlikely]] {
      Companion* const companion = companion_.load(std::memory_order_acquire);  // order: companion
      if (companion != nullptr) companion->OnNews();  // null: before anybody has used it
      continue;
    }
    Descriptor* descriptor = Descriptor::OfTag(events[i].tag);
    if (descriptor->tag() == events[i].tag) descriptor->OnEvent(events[i].bits);
  }
  return count > 0;
}

absl::Status Poller::Add(Descriptor& descriptor) {
  if (is_stopped() || !is_own_process()) return RuntimeEndedStatus();
  refs_.fetch_add(1, std::memory_order_relaxed);
  try {
    absl::Status status = backend_->Add(descriptor.fd(), descriptor.tag());
    if (!status.ok()) Unref();
    return status;
  } catch (...) {  // no memory for a status
    Unref();
    throw;
  }
}

void Poller::Remove(int fd) {
  if (is_own_process()) backend_->Remove(fd);
  Unref();
}

// Not under a mutex of a worker's for long: it is made once, and those who come meanwhile need it.
Companion* Poller::OfferCompanion(absl::FunctionRef<std::unique_ptr<Companion>()> make) {
  if (!was_companion_offered_.load(std::memory_order_acquire)) {  // order: companion
    std::lock_guard hold(companion_mutex_);
    if (!was_companion_offered_.load(std::memory_order_relaxed)) {
      owned_companion_ = make();
      if (owned_companion_ != nullptr && !backend_->Add(owned_companion_->fd(), kCompanionTag).ok()) {
        owned_companion_ = nullptr;
      }
      companion_.store(owned_companion_.get(), std::memory_order_release);  // order: companion
      was_companion_offered_.store(true, std::memory_order_release);        // order: companion
    }
  }
  return companion_.load(std::memory_order_acquire);  // order: companion
}

void Poller::Stop() {
  if (is_own_process()) {
    {
      std::lock_guard hold(companion_mutex_);
      if (owned_companion_ != nullptr) backend_->Remove(owned_companion_->fd());
      companion_.store(nullptr, std::memory_order_relaxed);  // its workers have ended
      owned_companion_ = nullptr;
    }
    is_stopped_.store(true, std::memory_order_seq_cst);  // order: poll-end
    DescriptorSlab::ForEach([this](Descriptor& descriptor) { descriptor.Orphan(*this); });
  }
  Unref();
}

// order: count — release on every decrement, acquire by the last: what others did with it happens before its end.
void Poller::Unref() {
  if (refs_.fetch_sub(1, std::memory_order_release) == 1) {  // order: count
    (void)refs_.load(std::memory_order_acquire);             // order: count
    delete this;
  }
}

}  // namespace netpoll::internal
