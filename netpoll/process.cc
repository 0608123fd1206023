// SPDX-License-Identifier: Apache-2.0
#include "netpoll/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include <algorithm>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "fiber/blocking_detached.h"
#include "fiber/cancel.h"
#include "fiber/internal/context.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/scope.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/poller.h"
#include "netpoll/internal/scoped_fd.h"
#include "netpoll/internal/spawn_child.h"
#include "netpoll/internal/syscalls.h"
#include "netpoll/pipe.h"

namespace netpoll {

using fiber::Deadline;
using fiber::internal::Fatal;
using fiber::internal::SpinLock;
using fiber::internal::SpinLockHolder;
using internal::ChildPlan;
using internal::Descriptor;
using internal::Direction;
using internal::ErrnoStatus;
using internal::FlowLock;
using internal::NewChild;
using internal::Poller;
using internal::ScopedFd;

// The child that has been started. It is running until somebody has looked at its end (reaped it), which is done once and
// under the lock: from then on its number may be another's, and gets no signal.
class Process::Child {
 public:
  explicit Child(absl::Duration grace)
      : grace_(grace), fork_generation_(fiber::internal::ForkGeneration()) {}
  ~Child() {
    // What a child of fork() has is a copy: the process is its parent's.
    if (pid_ != 0 && fork_generation_ == fiber::internal::ForkGeneration()) Stop();
    if (news_ != nullptr) news_->Drop();
  }

  void TakeOver(NewChild started, Poller& poller) {
    pid_ = started.Take();
    ScopedFd pid_fd = std::move(started.pid_fd());
    if (pid_fd.get() < 0) return;
    absl::StatusOr<Descriptor*> news = Descriptor::Create(poller, pid_fd.get(), false);
    if (!news.ok()) return;  // no epoll watch is left, say: it is waited for in another way
    (void)pid_fd.Take();
    news_ = *news;
  }

  pid_t pid() const { return pid_; }
  // Null: it is no pipe.
  PipeStream* stream(int i) { return streams_[i].has_value() ? &*streams_[i] : nullptr; }
  void SetStream(int i, PipeStream stream) { streams_[i] = std::move(stream); }

  absl::StatusOr<ExitStatus> Wait(Deadline deadline) {
    if (absl::Status status = AwaitEnd(deadline); !status.ok()) {
      if (absl::IsCancelled(status)) Stop();
      return status;
    }
    SpinLockHolder hold(lock_);
    if (is_lost_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "how process ", pid_, " has ended is lost: SIGCHLD is ignored, or somebody waits for just any child"));
    }
    return exit_;
  }

  absl::Status Kill(int signal) {
    SpinLockHolder hold(lock_);
    if (HasEndedLocked()) {
      return absl::FailedPreconditionError(absl::StrCat("process ", pid_, " has ended"));
    }
    const int error = internal::SendSignal(pid_, signal);
    if (error < 0) return ErrnoStatus(-error, "signal process", absl::StrCat(pid_));
    return absl::OkStatus();
  }

 private:
  bool HasEnded() {
    SpinLockHolder hold(lock_);
    return HasEndedLocked();
  }
  bool HasEndedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_) {
    if (has_ended_) return true;
    siginfo_t info;
    const int error = internal::WaitForChild(pid_, WNOHANG, &info);
    if (error == 0 && info.si_pid == 0) return false;
    has_ended_ = true;
    is_lost_ = error < 0;
    if (is_lost_) return true;
    (info.si_code == CLD_EXITED ? exit_.code : exit_.signal) = info.si_status;
    return true;
  }

  // A wait without patience is a question.
  bool IsLateButEnded(const absl::Status& status) { return absl::IsDeadlineExceeded(status) && HasEnded(); }

  // OK: it has ended.
  absl::Status AwaitEnd(Deadline deadline) {
    if (news_ != nullptr) {
      FlowLock lock(*news_, Direction::kRead, fiber::WaitReason::kProcess, deadline);
      if (!lock.status().ok()) return IsLateButEnded(lock.status()) ? absl::OkStatus() : lock.status();
      for (;;) {
        lock.flow().slot.ClearReady();
        if (HasEnded()) return absl::OkStatus();
        absl::Status status = lock.Await();
        if (absl::IsFailedPrecondition(status)) break;  // the runtime has ended, and brings no news
        if (!status.ok()) return IsLateButEnded(status) ? absl::OkStatus() : status;
      }
    }
    // Looks now and then: less and less often, so that it costs nothing, but often enough.
    constexpr absl::Duration kLongest = absl::Milliseconds(20);
    if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) {
      return IsLateButEnded(status) ? absl::OkStatus() : status;
    }
    for (absl::Duration pause = absl::Milliseconds(1); !HasEnded(); pause = std::min(2 * pause, kLongest)) {
      absl::Status status = fiber::Sleep(Deadline::Earlier(pause, deadline));
      if (!status.ok()) return status;
      if (deadline.is_past() && !HasEnded()) return absl::DeadlineExceededError("deadline exceeded");
    }
    return absl::OkStatus();
  }

  void Stop() {
    if (HasEnded()) return;
    fiber::CancelShield shield;
    if (grace_ > absl::ZeroDuration()) {
      Kill(SIGTERM).IgnoreError();  // it has ended meanwhile, or does not listen to us: it is waited for
      if (AwaitEnd(grace_).ok()) return;
    }
    Kill(SIGKILL).IgnoreError();
    AwaitEnd(Deadline::Never()).IgnoreError();  // shielded and without a deadline it does not fail
  }

  pid_t pid_ = 0;  // const once it has been started
  const absl::Duration grace_;
  const uint64_t fork_generation_;
  std::optional<PipeStream> streams_[3];
  Descriptor* news_ = nullptr;  // of its end; null: there is none
  SpinLock lock_;
  bool has_ended_ ABSL_GUARDED_BY(lock_) = false;
  bool is_lost_ ABSL_GUARDED_BY(lock_) = false;  // somebody else has seen how
  ExitStatus exit_ ABSL_GUARDED_BY(lock_);
};

namespace {

constexpr int kFirstOther = 3;  // after the standard descriptors

absl::StatusOr<ScopedFd> DuplicateAbove(int fd) {
  ScopedFd duplicate(internal::Duplicate(fd, kFirstOther));
  if (duplicate.get() < 0) return ErrnoStatus(-duplicate.get(), "duplicate a descriptor");
  return duplicate;
}

// A pipe, one end of which is for the child, with a number above the standard ones: the first, if it is the input.
absl::StatusOr<ScopedFd> MakePipeFor(int stream, PipeStream& ours) {
  int fds[2];
  if (const int error = internal::MakePipe(fds); error < 0) return ErrnoStatus(-error, "pipe");
  ScopedFd ends[2] = {ScopedFd(fds[0]), ScopedFd(fds[1])};
  const int theirs = stream == 0 ? 0 : 1;
  absl::StatusOr<PipeStream> adopted = PipeStream::Adopt(ends[1 - theirs].get());
  if (!adopted.ok()) return adopted.status();
  (void)ends[1 - theirs].Take();
  ours = *std::move(adopted);
  if (ends[theirs].get() >= kFirstOther) return std::move(ends[theirs]);
  return DuplicateAbove(ends[theirs].get());
}

absl::StatusOr<ScopedFd> OpenNull() {
  ScopedFd null(internal::Open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null.get() < 0) return ErrnoStatus(-null.get(), "open", "/dev/null");
  if (null.get() >= kFirstOther) return null;
  return DuplicateAbove(null.get());
}

bool HasZero(const std::vector<std::string>& texts) {
  return std::any_of(texts.begin(), texts.end(), [](const std::string& text) {
    return text.find('\0') != std::string::npos;
  });
}

absl::Status CheckOptions(const ProcessOptions& options) {
  if (options.arguments.empty()) return absl::InvalidArgumentError("a process without arguments: the first is the program");
  if (HasZero(options.arguments) || HasZero({options.directory}) ||
      (options.environment.has_value() && HasZero(*options.environment))) {
    return absl::InvalidArgumentError("a zero byte in the arguments, the environment or the directory of a process");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Process> Process::Start(ProcessOptions options, Deadline deadline) {
  absl::StatusOr<Poller*> poller = Poller::OfCaller();
  if (!poller.ok()) return poller.status();
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  ChildPlan plan{.arguments = std::move(options.arguments),
                 .environment = std::move(options.environment),
                 .directory = std::move(options.directory)};
  auto child = std::make_unique<Child>(options.grace);  // before there is a process that nobody answers for
  const Stdio streams[3] = {options.input, options.output, options.error};
  for (int i = 0; i < 3; ++i) {
    if (streams[i].kind_ == Stdio::Kind::kInherit) continue;
    PipeStream ours;
    absl::StatusOr<ScopedFd> fd = streams[i].kind_ == Stdio::Kind::kNull   ? OpenNull()
                                  : streams[i].kind_ == Stdio::Kind::kPipe ? MakePipeFor(i, ours)
                                                                           : DuplicateAbove(streams[i].fd_);
    if (!fd.ok()) return fd.status();
    plan.streams[i] = *std::move(fd);
    if (streams[i].kind_ == Stdio::Kind::kPipe) child->SetStream(i, std::move(ours));
  }
  absl::StatusOr<NewChild> started = fiber::BlockingDetached(
      [plan = std::move(plan)] { return internal::SpawnChild(plan); }, deadline);
  if (!started.ok()) return started.status();
  child->TakeOver(*std::move(started), **poller);
  return Process(std::move(child));
}

Process::Process(std::unique_ptr<Child> child) : child_(std::move(child)) {}
Process::Process(Process&&) noexcept = default;
Process& Process::operator=(Process&&) noexcept = default;
Process::~Process() = default;

Stream& Process::Checked(int stream) {
  static constexpr const char* kNames[] = {"input", "output", "error output"};
  if (child_->stream(stream) == nullptr) {
    Fatal("netpoll::Process: its %s is no pipe (ProcessOptions, Stdio::Pipe())", kNames[stream]);
  }
  return *child_->stream(stream);
}

Stream& Process::input() { return Checked(0); }
Stream& Process::output() { return Checked(1); }
Stream& Process::error() { return Checked(2); }

absl::StatusOr<ExitStatus> Process::Wait(Deadline deadline) { return child_->Wait(deadline); }
absl::Status Process::Kill(int signal) { return child_->Kill(signal); }
pid_t Process::pid() const { return child_->pid(); }

std::string ExitStatus::ToString() const {
  if (signal == 0) return absl::StrCat("exit code ", code);
  const char* description = sigdescr_np(signal);
  return description == nullptr ? absl::StrCat("ended by signal ", signal)
                                : absl::StrCat("ended by signal ", signal, " (", description, ")");
}

ProcessOptions ProcessOptions::WithPipes() && {
  for (Stdio* stream : {&input, &output, &error}) {
    if (stream->kind_ == Stdio::Kind::kInherit) *stream = Stdio::Pipe();
  }
  return std::move(*this);
}

namespace {

absl::Status Give(Stream& stream, std::string_view input) {
  netpoll::IoResult sent = stream.Write(input);
  stream.Close();
  // Not reading to the end is up to the program.
  return absl::IsUnavailable(sent.status) ? absl::OkStatus() : sent.status;
}

absl::Status Collect(Stream& stream, size_t most, std::string& text) {
  char buffer[16 << 10];
  for (;;) {
    absl::StatusOr<size_t> n = stream.Read(buffer);
    if (absl::IsOutOfRange(n.status())) return absl::OkStatus();
    if (!n.ok()) return n.status();
    if (*n > most - text.size()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "a process says more than ", most, " bytes (ProcessOptions::max_output_bytes; raise it, or read its pipes yourself)"));
    }
    text.append(buffer, *n);
  }
}

}  // namespace

absl::StatusOr<ProcessResult> RunProcess(ProcessOptions options, std::string_view input, Deadline deadline) {
  if (options.input.kind_ != Stdio::Kind::kPipe && options.input.kind_ != Stdio::Kind::kInherit && !input.empty()) {
    return absl::InvalidArgumentError("input for a process whose input is no pipe (ProcessOptions::input)");
  }
  const size_t most = options.max_output_bytes;
  absl::StatusOr<Process> process = Process::Start(std::move(options).WithPipes(), deadline);
  if (!process.ok()) return process.status();
  PipeStream* const in = process->child_->stream(0);
  PipeStream* const out = process->child_->stream(1);
  PipeStream* const error = process->child_->stream(2);
  ProcessResult result;
  {
    fiber::Scope pumps({.deadline = deadline, .name = "netpoll::RunProcess"});
    if (in != nullptr) pumps.Go([&] { return Give(*in, input); });
    if (out != nullptr) pumps.Go([&] { return Collect(*out, most, result.output); });
    if (error != nullptr) pumps.Go([&] { return Collect(*error, most, result.error); });
    if (absl::Status status = pumps.Wait(); !status.ok()) return status;
  }
  absl::StatusOr<ExitStatus> exit = process->Wait(deadline);
  if (!exit.ok()) return exit.status();
  result.exit = *exit;
  return result;
}

}  // namespace netpoll
