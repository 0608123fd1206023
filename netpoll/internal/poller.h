// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_POLLER_H_
#define WEFT_NETPOLL_INTERNAL_POLLER_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"
#include "netpoll/internal/backend.h"
#include "sched/event_source.h"

namespace netpoll::internal {

using fiber::internal::Atomic;

class Descriptor;

// Companion is something else that brings news to fibers of a poller's runtime, by a descriptor of its own.
class Companion {
 public:
  virtual ~Companion() = default;
  // Watched as long as it exists.
  virtual int fd() const = 0;
  // There may be news. Any worker, any number at once.
  virtual void OnNews() = 0;
};

// Poller brings the news of a runtime's descriptors to the fibers that wait for it. It outlives its runtime for as long
// as there are descriptors; they then are orphans.
//
// Interrupts are permits, as the contract of sched::EventSource wants it: each makes one Poll that waits return, or the
// next one that would wait. A Kick of the backend cannot be that, since any Wait may take it, one that does not wait
// included, and two may count as one. So the permits are counted here, and a kick only makes somebody look:
//
//   Interrupt                                       a Poll that waits
//   permits + 1, in one step with reading how       waiting + 1, in one step with taking a permit if there is one: then
//     many wait                                       it does not wait
//   some: kicks                                     waits; comes back: waiting − 1, and takes a permit if it was kicked
//
//   any Poll that took a kick: if there are permits and somebody waits, kicks again.
//
// Whoever sleeps found no permit when he was counted, so the Interrupt that made one since saw him and kicked; whoever
// takes that kick and leaves a permit behind kicks again. So while a permit and a sleeper meet, a kick is under way.
//
// order: poll-permit — seq_cst read-modify-writes of one word.
class Poller {
 public:
  static absl::StatusOr<Poller*> Create();

  // The poller of the runtime whose fiber calls; installs one on first use. kFailedPrecondition: a plain thread, or a
  // scheduler without descriptors (simulation); kResourceExhausted.
  static absl::StatusOr<Poller*> OfCaller();

  // The two functions of sched::EventSource. Poll does not read the clock for a deadline <= 0.
  void Poll(int64_t deadline_ns);
  void Interrupt();

  // Watches `descriptor`, which keeps the poller from now on. Errors as Backend::Add, and kFailedPrecondition: the
  // runtime has ended.
  absl::Status Add(Descriptor& descriptor);
  // Stops watching, and lets go of the poller.
  void Remove(int fd);

  // The companion of its runtime's fibers, made by `make` on the first call; null if it could not be made then, or watched.
  Companion* OfferCompanion(absl::FunctionRef<std::unique_ptr<Companion>()> make);

  // Its runtime has ended: orphans the descriptors, and lets go of the poller.
  void Stop();

  // False in a child of the process that made it: there it must not be touched, the parent's epoll would be.
  bool is_own_process() const;
  bool is_stopped() const {
    return is_stopped_.load(std::memory_order_seq_cst);  // order: poll-end
  }

 private:
  static constexpr uint64_t kPermit = 1;
  static constexpr uint64_t kWaiting = uint64_t{1} << 32;
  static uint64_t PermitsOf(uint64_t word) { return word % kWaiting; }
  static uint64_t WaitingOf(uint64_t word) { return word / kWaiting; }

  explicit Poller(std::unique_ptr<Backend> backend);

  bool Harvest(int64_t deadline_ns, bool* was_kicked);
  [[nodiscard]] bool BeginWait();
  [[nodiscard]] bool EndWait(bool was_kicked);
  void Unref();

  const std::unique_ptr<Backend> backend_;
  const uint64_t fork_generation_;
  Atomic<uint64_t> permits_{0};  // order: poll-permit
  Atomic<uint64_t> refs_{1};     // the event source's and the descriptors'; order: count
  Atomic<bool> is_stopped_{false};

  // Its tag: less than that of any descriptor.
  static constexpr uint64_t kCompanionTag = 1;
  fiber::internal::BlockingMutex companion_mutex_;
  std::unique_ptr<Companion> owned_companion_;  // guarded by companion_mutex_
  // order: companion — release once it is watched and complete, acquire by who uses it.
  Atomic<Companion*> companion_{nullptr};
  Atomic<bool> was_companion_offered_{false};  // whatever came of it; written after companion_; order: companion
};

// PollerSource is the runtime's handle on its poller.
class PollerSource final : public sched::EventSource {
 public:
  explicit PollerSource(Poller& poller) : poller_(poller) {}
  ~PollerSource() override { poller_.Stop(); }

  void Poll(int64_t deadline_ns) override { poller_.Poll(deadline_ns); }
  void Interrupt() override { poller_.Interrupt(); }
  Poller& poller() const { return poller_; }

 private:
  Poller& poller_;
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_POLLER_H_
