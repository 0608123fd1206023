// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_POLLER_H_
#define WEFT_NETPOLL_INTERNAL_POLLER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/internal/atomic.h"
#include "netpoll/internal/backend.h"
#include "sched/event_source.h"

namespace netpoll::internal {

using fiber::internal::Atomic;

class Descriptor;

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
