// SPDX-License-Identifier: Apache-2.0
//
// posix_spawn, not fork: a child of fork() copies the page tables of a process that may be large, runs handlers of fork in a
// process with threads, and between fork and exec may do next to nothing. glibc's posix_spawn shares memory with the child
// until exec, on a stack of its own, with all signals blocked, and hands back why exec failed.
#include "netpoll/internal/spawn_child.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "fiber/internal/system_calls.h"
#include "netpoll/internal/errno_status.h"

namespace netpoll::internal {
namespace {

using fiber::internal::System;

absl::Status SpawnStatus(int error, const ChildPlan& plan) {
  const std::string subject =
      plan.directory.empty() ? plan.arguments[0]
                             : absl::StrCat(plan.arguments[0], " in ", plan.directory);
  switch (error) {
    case ENOENT:
    case ENOTDIR: return ErrnoStatus(absl::StatusCode::kNotFound, error, "start", subject, "");
    case EAGAIN:
      return ErrnoStatus(absl::StatusCode::kResourceExhausted, error, "start", subject,
                         " (RLIMIT_NPROC, the control group's pids.max or kernel.pid_max: no process is left; raise it "
                         "with ulimit -u, TasksMax= or sysctl)");
    case E2BIG:
      return ErrnoStatus(absl::StatusCode::kInvalidArgument, error, "start", subject,
                         " (arguments and environment: a quarter of the stack limit (ulimit -s) for all, 128 KiB for each)");
    case ENOEXEC:
    case EIO:
    case EISDIR:
    case ELIBBAD: return ErrnoStatus(absl::StatusCode::kInvalidArgument, error, "start", subject, "");
    default: return ErrnoStatus(error, "start", subject);
  }
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  pointers.reserve(texts.size() + 1);
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// What the C library wants to know; the first error stays.
class SpawnRequest {
 public:
  SpawnRequest() : error_(posix_spawn_file_actions_init(&actions_)) {
    if (error_ == 0 && (error_ = posix_spawnattr_init(&attributes_)) != 0) {
      posix_spawn_file_actions_destroy(&actions_);
    }
    is_made_ = error_ == 0;
  }
  SpawnRequest(const SpawnRequest&) = delete;
  SpawnRequest& operator=(const SpawnRequest&) = delete;
  ~SpawnRequest() {
    if (!is_made_) return;
    posix_spawnattr_destroy(&attributes_);
    posix_spawn_file_actions_destroy(&actions_);
  }

  void Fill(const ChildPlan& plan) {
    for (int i = 0; i < 3; ++i) {
      const int fd = plan.streams[i].get();
      if (fd >= 0) Note(posix_spawn_file_actions_adddup2(&actions_, fd, i));
    }
    // Ours are close-on-exec; those that others have made may not be.
    Note(posix_spawn_file_actions_addclosefrom_np(&actions_, 3));
    if (!plan.directory.empty()) {
      Note(posix_spawn_file_actions_addchdir_np(&actions_, plan.directory.c_str()));
    }
    // Exec keeps the mask of the thread, on ours nearly full, and what is ignored.
    sigset_t signals;
    sigemptyset(&signals);
    Note(posix_spawnattr_setsigmask(&attributes_, &signals));
    sigfillset(&signals);
    Note(posix_spawnattr_setsigdefault(&attributes_, &signals));
    Note(posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
  }

  // The error, or 0.
  int Run(const ChildPlan& plan, pid_t* pid) {
    if (is_made_) Fill(plan);
    if (error_ != 0) return error_;
    const std::vector<char*> arguments = Pointers(plan.arguments);
    std::vector<char*> environment;
    if (plan.environment.has_value()) environment = Pointers(*plan.environment);
    return System().posix_spawnp(pid, arguments[0], &actions_, &attributes_, arguments.data(),
                                 plan.environment.has_value() ? environment.data() : environ);
  }

 private:
  void Note(int error) {
    if (error_ == 0) error_ = error;
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  int error_;
  bool is_made_ = false;
};

}  // namespace

NewChild::~NewChild() {
  if (pid_ == 0) return;
  pid_fd_ = ScopedFd();
  (void)SendSignal(pid_, SIGKILL);
  siginfo_t info;
  (void)WaitForChild(pid_, 0, &info);  // ECHILD: somebody else has
}

absl::StatusOr<NewChild> SpawnChild(const ChildPlan& plan) {
  pid_t pid = 0;
  if (const int error = SpawnRequest().Run(plan, &pid); error != 0) return SpawnStatus(error, plan);
  NewChild child(pid);
  // None left, or too old a kernel: it is waited for in another way.
  child.pid_fd_ = ScopedFd(OpenPidFd(pid));
  return child;
}

}  // namespace netpoll::internal
