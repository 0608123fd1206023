// SPDX-License-Identifier: Apache-2.0
//
// Other programs, as child processes.
//
//   absl::StatusOr<netpoll::ProcessResult> sorted =
//       netpoll::RunProcess({.arguments = {"sort", "-n"}}, "3\n1\n2\n", absl::Seconds(10));
//   if (!sorted.ok()) return sorted.status();                    // not started, cancelled, not done in time: it is gone then
//   if (!sorted->exit.is_success()) return Failed(sorted->exit.ToString(), sorted->error);
//   Use(sorted->output);                                         // "1\n2\n3\n"
#ifndef WEFT_NETPOLL_PROCESS_H_
#define WEFT_NETPOLL_PROCESS_H_

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "netpoll/stream.h"

namespace netpoll {

struct ProcessOptions;
struct ProcessResult;

// Stdio says what one of a child's standard streams is.
class Stdio {
 public:
  // Never block, all four.
  static Stdio Inherit() { return Stdio(Kind::kInherit, -1); }  // this process's
  static Stdio Null() { return Stdio(Kind::kNull, -1); }        // /dev/null
  static Stdio Pipe() { return Stdio(Kind::kPipe, -1); }        // a pipe, whose other end is the Process's stream
  // A duplicate of `fd`, which stays the caller's and is open until Start() has returned. The child shares its file offset and
  // its flags: one that is non-blocking surprises most programs.
  static Stdio Descriptor(int fd) { return Stdio(Kind::kDescriptor, fd); }

 private:
  friend class Process;
  friend struct ProcessOptions;
  friend absl::StatusOr<ProcessResult> RunProcess(ProcessOptions options, std::string_view input,
                                                  fiber::Deadline deadline);
  enum class Kind { kInherit, kNull, kPipe, kDescriptor };
  Stdio(Kind kind, int fd) : kind_(kind), fd_(fd) {}

  Kind kind_;
  int fd_;
};

// ProcessOptions describes a child process.
struct ProcessOptions {
  // The program and its arguments. A program without a slash is looked for in this process's PATH. No shell is involved.
  std::vector<std::string> arguments = {};
  // "NAME=value" each. None: this process's.
  std::optional<std::vector<std::string>> environment = {};
  // Where it runs; a relative path of a program starts there too. Empty: where this process does.
  std::string directory = {};
  Stdio input = Stdio::Inherit();
  Stdio output = Stdio::Inherit();
  Stdio error = Stdio::Inherit();
  // How long it has to end after SIGTERM when nobody waits for it any more, before it gets SIGKILL. 0: SIGKILL at once.
  absl::Duration grace = absl::Seconds(2);
  // Of RunProcess(): how many bytes it keeps of the output, and of the error output.
  size_t max_output_bytes = size_t{64} << 20;

  // With pipes for what is inherited. Never blocks.
  ProcessOptions WithPipes() &&;
};

// ExitStatus says how a process has ended.
struct ExitStatus {
  int code = 0;    // what it returned; 0 if a signal ended it
  int signal = 0;  // that ended it, 0: none

  // It returned 0. Never blocks.
  bool is_success() const { return code == 0 && signal == 0; }
  // "exit code 3", "ended by signal 9 (Killed)". Never blocks.
  std::string ToString() const;
};

// Process is a child process, from its start until it was waited for.
//
//   auto filter = netpoll::Process::Start({.arguments = {"gzip", "-c"},
//                                          .input = netpoll::Stdio::Pipe(),
//                                          .output = netpoll::Stdio::Descriptor(fd)});
//   if (!filter.ok()) return filter.status();
//   netpoll::IoResult sent = filter->input().Write(text);
//   filter->input().Close();                                    // the end, for which it waits
//   absl::StatusOr<netpoll::ExitStatus> exit = filter->Wait(absl::Seconds(5));
//
// No child is left behind: one that is running still when the Process is destroyed, or when the fiber that waits for it is
// cancelled, gets SIGTERM, after ProcessOptions::grace SIGKILL, and is waited for. Its own children are its own affair. What a
// child must survive is not for this class.
//
// A child starts with no signal blocked and none ignored, whatever this process does, and with the three standard descriptors
// and no others. It has this process's limits, also the soft one on descriptors, which the first runtime raises to the hard one:
// a program that still uses select() may have to be started with a lower one (sh -c 'ulimit -Sn 1024; exec "$@"').
//
// Who reads one of two pipes to its end and then the other may wait for ever, since the child waits for the other to be read:
// read them in two fibers, as RunProcess() does.
//
// Children are waited for by their number. So SIGCHLD must not be ignored, and nobody may wait for just any child (wait(),
// waitpid(-1)): then Wait() says kFailedPrecondition, and how the child has ended is lost.
//
// It belongs to the runtime whose fiber started it, as sockets do (tcp.h).
//
// Thread safety: any fiber, any thread. Moving it is like destroying it: no other call may be under way.
class Process {
 public:
  // Starts a program. Parks the fiber while the system loads it, on a thread of BlockingDetached().
  //
  // kNotFound: there is no such program, or directory; kInvalidArgument: not permitted, not a program, no arguments, a zero
  // byte in one, too many of them: ErrnoOf() says which; kResourceExhausted: processes, descriptors, memory: the message
  // names the limit; kDeadlineExceeded, kCancelled: it was not started, or was killed at once; kFailedPrecondition: called from
  // a plain thread, or by a fiber of a simulation. Throws std::bad_alloc.
  static absl::StatusOr<Process> Start(ProcessOptions options, fiber::Deadline deadline = {});

  Process(Process&&) noexcept;
  // Ends what it had, as the destructor. Parks the fiber; blocks the thread when called from a plain one.
  Process& operator=(Process&&) noexcept;
  // Ends it, as said above, if it has not ended. Parks the fiber; blocks the thread when called from a plain one.
  ~Process();

  // The other ends of its pipes: input() is written, the others are read. Never blocks.
  // REQUIRES: the option was Stdio::Pipe(), else the process ends with a message.
  Stream& input();
  Stream& output();
  Stream& error();

  // Waits until it has ended; then as often as it is called. It may wait for its pipes to be emptied. Parks the fiber; blocks
  // the thread when called from a plain one. kDeadlineExceeded: it runs on (one that has ended is told of whatever the
  // deadline); kCancelled: the caller was, and it was ended, as said above; kFailedPrecondition: somebody else has waited for
  // it.
  absl::StatusOr<ExitStatus> Wait(fiber::Deadline deadline = {});

  // Sends it a signal. Never blocks. kFailedPrecondition: it has ended; kInvalidArgument: no such signal, not permitted.
  absl::Status Kill(int signal);

  // Its number, which may be another's once it has been waited for. Never blocks.
  pid_t pid() const;

 private:
  class Child;

  friend absl::StatusOr<ProcessResult> RunProcess(ProcessOptions options, std::string_view input,
                                                  fiber::Deadline deadline);

  explicit Process(std::unique_ptr<Child> child);
  Stream& Checked(int stream);

  std::unique_ptr<Child> child_;
};

// ProcessResult is what a program that has ended has said.
struct ProcessResult {
  ExitStatus exit = {};
  std::string output = {};
  std::string error = {};
};

// Runs a program to its end: gives it `input`, then the end of it, and collects what it says meanwhile. Streams for which the
// options say Stdio::Inherit() are pipes; what the others say is not collected. Parks the fiber.
//
// However a program ends is a result, one that does not read its input too. Errors as of Start() and Wait(); kDeadlineExceeded,
// kCancelled: it was ended as said at Process, before this returns; kResourceExhausted: it says more than ProcessOptions::max_output_bytes, and
// was ended; kInvalidArgument: there is input, but no pipe for it. It waits until nobody can write to the pipes any more: children that it leaves behind and that keep them are
// waited for.
absl::StatusOr<ProcessResult> RunProcess(ProcessOptions options, std::string_view input = {},
                                         fiber::Deadline deadline = {});

}  // namespace netpoll

#endif  // WEFT_NETPOLL_PROCESS_H_
