// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_BACKEND_EPOLL_H_
#define WEFT_NETPOLL_INTERNAL_BACKEND_EPOLL_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/internal/atomic.h"
#include "netpoll/internal/backend.h"

namespace netpoll::internal {

// EpollBackend keeps the contract with one epoll instance: each descriptor is added once, edge-triggered, for both flows,
// and never changed. A Kick is an edge of an eventfd that nobody reads.
class EpollBackend final : public Backend {
 public:
  // kResourceExhausted: no descriptors, instances or memory left; the message names the limit.
  static absl::StatusOr<std::unique_ptr<Backend>> Create();
  ~EpollBackend() override;

  absl::Status Add(int fd, uint64_t tag) override;
  void Remove(int fd) override;
  int Wait(int64_t deadline_ns, Event* events, int capacity, bool* was_kicked) override;
  void Kick() override;

 private:
  EpollBackend(int epoll_fd, int event_fd) : epoll_fd_(epoll_fd), event_fd_(event_fd) {}

  const int epoll_fd_;
  const int event_fd_;
  // order: added — release before a descriptor is added, acquire after events were collected: what its tag leads to is
  // visible to whoever gets its events. The kernel orders the two anyway, but says so to neither language nor sanitizers.
  fiber::internal::Atomic<uint64_t> added_{0};
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_BACKEND_EPOLL_H_
