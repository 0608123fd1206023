// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_SPAWN_CHILD_H_
#define WEFT_NETPOLL_INTERNAL_SPAWN_CHILD_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "netpoll/internal/scoped_fd.h"

namespace netpoll::internal {

// ChildPlan is all that it takes to start a child.
struct ChildPlan {
  std::vector<std::string> arguments = {};  // at least one
  std::optional<std::vector<std::string>> environment = {};
  std::string directory = {};
  // What become the child's standard descriptors, with numbers above those, or the one would be overwritten by the other.
  // -1: it has ours.
  ScopedFd streams[3] = {};
};

// NewChild is a child that nobody answers for yet: destroyed, it kills it and waits for its end, which is near then.
class NewChild {
 public:
  explicit NewChild(pid_t pid) : pid_(pid) {}
  NewChild(NewChild&& other) noexcept
      : pid_(std::exchange(other.pid_, 0)), pid_fd_(std::move(other.pid_fd_)) {}
  NewChild& operator=(NewChild&& other) noexcept {
    std::swap(pid_, other.pid_);
    std::swap(pid_fd_, other.pid_fd_);
    return *this;
  }
  ~NewChild();

  // Readable once it has ended; none: the system has no such thing.
  ScopedFd& pid_fd() { return pid_fd_; }
  // The caller answers for it from now on.
  pid_t Take() { return std::exchange(pid_, 0); }

 private:
  friend absl::StatusOr<NewChild> SpawnChild(const ChildPlan& plan);

  pid_t pid_;
  ScopedFd pid_fd_;
};

// Blocks the thread until the child runs its program, or could not. Errors as Process::Start().
absl::StatusOr<NewChild> SpawnChild(const ChildPlan& plan);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_SPAWN_CHILD_H_
