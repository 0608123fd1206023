// SPDX-License-Identifier: Apache-2.0
#include "netpoll/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/pipe.h"
#include "netpoll/stream.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using netpoll::ErrnoOf;
using netpoll::ExitStatus;
using netpoll::Process;
using netpoll::ProcessOptions;
using netpoll::ProcessResult;
using netpoll::RunProcess;
using netpoll::Stdio;

// Every test leaves no child of this process, running or dead.
class ProcessTest : public SocketTest {
 protected:
  ~ProcessTest() override {
    siginfo_t info;
    EXPECT_EQ(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT), -1);
    EXPECT_EQ(errno, ECHILD);
  }
};
INSTANTIATE_SOCKET_TEST(ProcessTest);

std::vector<std::string> Shell(std::string script) { return {"/bin/sh", "-c", std::move(script)}; }

// What a script says and how it ends.
ProcessResult RunShell(std::string script, std::string_view input = {}) {
  auto result = RunProcess({.arguments = Shell(std::move(script))}, input);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.value_or(ProcessResult{.exit = {.code = -1}});
}

Process StartOrFail(ProcessOptions options) {
  auto process = Process::Start(std::move(options));
  EXPECT_TRUE(process.ok()) << process.status();
  return *std::move(process);
}

// A child that says when it is ready to be sent signals.
Process StartReady(std::string script, absl::Duration grace = absl::Seconds(30)) {
  Process process =
      StartOrFail({.arguments = Shell(std::move(script)), .output = Stdio::Pipe(), .grace = grace});
  char byte;
  EXPECT_TRUE(process.output().Read({&byte, 1}).ok());
  return process;
}

TEST_P(ProcessTest, AMegabyteGoesThroughCatAndComesBack) {
  Run([] {
    std::string data;
    for (int i = 0; data.size() < (1 << 20); ++i) data += std::to_string(i);
    auto result = RunProcess({.arguments = {"cat"}}, data);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->exit.is_success()) << result->exit.ToString();
    EXPECT_EQ(result->output, data);
    EXPECT_EQ(result->error, "");
  });
}

TEST_P(ProcessTest, OutputAndErrorOutputAreToldApartWhoeverIsFirst) {
  Run([] {
    const ProcessResult result = RunShell("head -c 300000 /dev/zero >&2; echo one; head -c 300000 /dev/zero; exit 3");
    EXPECT_EQ(result.exit.code, 3);
    EXPECT_EQ(result.exit.signal, 0);
    EXPECT_FALSE(result.exit.is_success());
    EXPECT_EQ(result.exit.ToString(), "exit code 3");
    EXPECT_EQ(result.output.size(), 300004u);
    EXPECT_EQ(result.error.size(), 300000u);
  });
}

TEST_P(ProcessTest, AProgramNeedNotReadItsInput) {
  Run([] {
    const ProcessResult result = RunShell("exec <&-; echo done", MoreThanFits());
    EXPECT_TRUE(result.exit.is_success()) << result.exit.ToString();
    EXPECT_EQ(result.output, "done\n");
  });
}

// The examples of process.h.
TEST_P(ProcessTest, NumbersAreSortedAndTextIsPacked) {
  Run([] {
    absl::StatusOr<ProcessResult> sorted = RunProcess({.arguments = {"sort", "-n"}}, "3\n1\n2\n", absl::Seconds(30));
    ASSERT_TRUE(sorted.ok()) << sorted.status();
    ASSERT_TRUE(sorted->exit.is_success()) << sorted->exit.ToString() << ": " << sorted->error;
    EXPECT_EQ(sorted->output, "1\n2\n3\n");

    const int fd = memfd_create("packed", MFD_CLOEXEC);
    auto filter = Process::Start({.arguments = {"gzip", "-c"}, .input = Stdio::Pipe(), .output = Stdio::Descriptor(fd)});
    ASSERT_TRUE(filter.ok()) << filter.status();
    EXPECT_TRUE(filter->input().Write("text").ok());
    filter->input().Close();
    EXPECT_TRUE(filter->Wait(absl::Seconds(30))->is_success());
    char head[2] = {};
    EXPECT_EQ(pread(fd, head, sizeof head, 0), 2);
    EXPECT_EQ(std::string(head, 2), "\x1f\x8b");
    close(fd);
  });
}

TEST_P(ProcessTest, AProcessIsTalkedTo) {
  Run([] {
    Process cat = StartOrFail({.arguments = {"/bin/cat"}, .input = Stdio::Pipe(), .output = Stdio::Pipe()});
    char buffer[16];
    for (int i = 0; i < 50; ++i) {
      EXPECT_TRUE(cat.input().Write("hello").ok());
      EXPECT_TRUE(netpoll::ReadFull(cat.output(), {buffer, 5}).ok());
    }
    EXPECT_TRUE(absl::IsDeadlineExceeded(cat.Wait(absl::Milliseconds(1)).status()));
    cat.input().Close();
    EXPECT_TRUE(absl::IsOutOfRange(cat.output().Read(buffer).status()));
    for (int i = 0; i < 2; ++i) {
      auto exit = cat.Wait();
      ASSERT_TRUE(exit.ok()) << exit.status();
      EXPECT_TRUE(exit->is_success());
    }
    EXPECT_TRUE(absl::IsFailedPrecondition(cat.Kill(SIGTERM)));
  });
}

TEST_P(ProcessTest, AWaitWithoutPatienceAsksWhetherItHasEnded) {
  Run([] {
    Process sleeper = StartOrFail({.arguments = {"sleep", "1000"}});
    EXPECT_TRUE(absl::IsDeadlineExceeded(sleeper.Wait(absl::ZeroDuration()).status()));
    EXPECT_TRUE(sleeper.Kill(SIGKILL).ok());
    absl::StatusOr<ExitStatus> exit;
    while (absl::IsDeadlineExceeded((exit = sleeper.Wait(absl::ZeroDuration())).status())) fiber::Yield();
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->signal, SIGKILL);
    EXPECT_TRUE(sleeper.Wait(absl::ZeroDuration()).ok());
  });
}

TEST_P(ProcessTest, HowASignalEndsIt) {
  Run([] {
    const ProcessResult result = RunShell("kill -9 $$");
    EXPECT_EQ(result.exit.signal, SIGKILL);
    EXPECT_EQ(result.exit.ToString(), "ended by signal 9 (Killed)");
    Process sleeper = StartOrFail({.arguments = {"sleep", "1000"}});
    EXPECT_TRUE(absl::IsInvalidArgument(sleeper.Kill(12345)));
    EXPECT_TRUE(sleeper.Kill(SIGUSR1).ok());
    EXPECT_EQ(sleeper.Wait()->signal, SIGUSR1);
  });
}

TEST_P(ProcessTest, SeveralMayWait) {
  Run([] {
    Process process = StartReady("echo; while :; do sleep 0.01; done");
    std::vector<fiber::JoinHandle<int>> waiters;
    for (int i = 0; i < 5; ++i) {
      waiters.push_back(fiber::Spawn([&] { return process.Wait().value_or(ExitStatus{}).code; }));
    }
    WaitUntilParked(waiters[0]);
    EXPECT_TRUE(process.Kill(SIGTERM).ok());
    EXPECT_EQ(process.Wait()->signal, SIGTERM);
    for (auto& waiter : waiters) EXPECT_EQ(waiter.Join(), 0);
  });
}

TEST_P(ProcessTest, WhoeverWaitsAndIsCancelledEndsIt) {
  Run([] {
    Process process = StartReady("trap 'exit 5' TERM; echo; while :; do sleep 0.01; done");
    auto waiter = fiber::Spawn([&] { return process.Wait().status(); });
    WaitUntilParked(waiter);
    waiter.Cancel();
    EXPECT_TRUE(absl::IsCancelled(waiter.Join()));
    auto exit = process.Wait(absl::Seconds(20));
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->code, 5) << exit->ToString();
  });
}

TEST_P(ProcessTest, OneThatIgnoresSigtermIsKilled) {
  Run([] {
    Process process = StartReady("trap '' TERM; echo; while :; do sleep 0.01; done", absl::Milliseconds(20));
    auto waiter = fiber::Spawn([&] { return process.Wait().status(); });
    WaitUntilParked(waiter);
    waiter.Cancel();
    EXPECT_TRUE(absl::IsCancelled(waiter.Join()));
    EXPECT_EQ(process.Wait()->signal, SIGKILL);
  });
}

TEST_P(ProcessTest, OneThatIsDestroyedHasEnded) {
  Run([] {
    const pid_t polite = StartOrFail({.arguments = {"sleep", "1000"}}).pid();
    EXPECT_EQ(kill(polite, 0), -1);
    EXPECT_EQ(errno, ESRCH);
    const pid_t killed = StartOrFail({.arguments = {"sleep", "1000"}, .grace = absl::ZeroDuration()}).pid();
    EXPECT_EQ(kill(killed, 0), -1);
    Process moved = StartOrFail({.arguments = {"sleep", "1000"}});
    const pid_t first = moved.pid();
    moved = StartOrFail({.arguments = {"sleep", "1000"}});
    EXPECT_EQ(kill(first, 0), -1);
    EXPECT_EQ(kill(moved.pid(), 0), 0);
  });
}

TEST_P(ProcessTest, RunProcessInTimeOrNotAtAll) {
  Run([] {
    auto late = RunProcess({.arguments = {"sleep", "1000"}}, {}, absl::Milliseconds(50));
    EXPECT_TRUE(absl::IsDeadlineExceeded(late.status())) << late.status();
    auto cancelled = fiber::Spawn([] { return RunProcess({.arguments = {"sleep", "1000"}}).status(); });
    WaitUntilParked(cancelled);
    cancelled.Cancel();
    EXPECT_TRUE(absl::IsCancelled(cancelled.Join()));
    AwaitDetachedCalls();
    auto past = RunProcess({.arguments = {"/bin/true"}}, {}, absl::ZeroDuration());
    EXPECT_TRUE(absl::IsDeadlineExceeded(past.status())) << past.status();
    auto loud = RunProcess({.arguments = {"yes"}, .max_output_bytes = 1000});
    EXPECT_TRUE(absl::IsResourceExhausted(loud.status())) << loud.status();
    EXPECT_TRUE(absl::StrContains(loud.status().message(), "max_output_bytes"));
  });
}

TEST_P(ProcessTest, WhatCannotBeStarted) {
  Run([] {
    auto start = [](ProcessOptions options) { return Process::Start(std::move(options)).status(); };
    start({.arguments = {"/bin/true"}, .input = Stdio::Null()}).IgnoreError();
    const int before = OpenDescriptors();
    const absl::Status missing = start({.arguments = {"no-such-program-anywhere", "x"}, .input = Stdio::Pipe()});
    EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
    EXPECT_EQ(ErrnoOf(missing), ENOENT);
    EXPECT_TRUE(absl::StrContains(missing.message(), "no-such-program-anywhere")) << missing;
    EXPECT_TRUE(absl::IsNotFound(start({.arguments = {"/bin/true"}, .directory = "/no/such/directory"})));
    EXPECT_EQ(ErrnoOf(start({.arguments = {"/etc/passwd"}})), EACCES);
    EXPECT_EQ(ErrnoOf(start({.arguments = {"/tmp/"}})), EACCES);
    EXPECT_TRUE(absl::IsInvalidArgument(start({})));
    EXPECT_TRUE(absl::IsInvalidArgument(RunProcess({.arguments = {"cat"}, .input = Stdio::Null()}, "lost").status()));
    EXPECT_TRUE(absl::IsInvalidArgument(start({.arguments = {std::string("a\0b", 3)}})));
    EXPECT_EQ(ErrnoOf(start({.arguments = {"/bin/true", std::string(1 << 20, 'x')}})), E2BIG);
    EXPECT_EQ(ErrnoOf(start({.arguments = {"/bin/true"}, .output = Stdio::Descriptor(12345)})), EBADF);
    EXPECT_EQ(OpenDescriptors(), before);
  });
  EXPECT_TRUE(absl::IsFailedPrecondition(Process::Start({.arguments = {"/bin/true"}}).status()));
}

TEST_P(ProcessTest, EnvironmentAndDirectory) {
  Run([] {
    auto result = RunProcess({.arguments = Shell("echo $GREETING in $(pwd); env | wc -l"),
                              .environment = {{"GREETING=hello", "PATH=/usr/bin:/bin"}},
                              .directory = "/proc"});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(absl::StartsWith(result->output, "hello in /proc\n")) << result->output;
    ASSERT_EQ(setenv("WEFT_PROCESS_TEST", "inherited", 1), 0);
    EXPECT_EQ(RunShell("echo $WEFT_PROCESS_TEST").output, "inherited\n");
    unsetenv("WEFT_PROCESS_TEST");
  });
}

TEST_P(ProcessTest, AChildHasNoSignalBlockedOrIgnored) {
  signal(SIGUSR2, SIG_IGN);
  Run([] {
    EXPECT_EQ(RunShell("grep SigBlk /proc/self/status").output, "SigBlk:\t0000000000000000\n");
    const std::string ignored = RunShell("grep SigIgn /proc/self/status").output;
    ASSERT_TRUE(absl::StartsWith(ignored, "SigIgn:\t")) << ignored;
    // glibc has children ignore 32 and 33, which are its own.
    constexpr uint64_t kOfTheCLibrary = uint64_t{3} << 31;
    EXPECT_EQ(std::stoull(ignored.substr(8), nullptr, 16) & ~kOfTheCLibrary, 0u) << ignored;
  });
  signal(SIGUSR2, SIG_DFL);
}

TEST_P(ProcessTest, AChildHasThreeDescriptorsAndNoOther) {
  Run([] {
    const int leaky = open("/dev/null", O_RDONLY);  // not close-on-exec
    auto result = RunProcess({.arguments = {"ls", "/proc/self/fd"}, .error = Stdio::Null()});
    close(leaky);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->output, "0\n1\n2\n3\n") << "the last is the directory's";
  });
}

TEST_P(ProcessTest, StreamsThatAreOthersDescriptorsMayBeExchanged) {
  Run([] {
    auto pipe = netpoll::Pipe::Create();
    ASSERT_TRUE(pipe.ok());
    // Error output to where our output goes, which is not where the child's goes.
    Process process = StartOrFail({.arguments = Shell("echo out; readlink /proc/self/fd/2 >&1"),
                                   .input = Stdio::Null(),
                                   .output = Stdio::Descriptor(pipe->writer.fd()),
                                   .error = Stdio::Descriptor(STDOUT_FILENO)});
    pipe->writer.Close();
    char buffer[256];
    std::string said;
    for (;;) {
      auto n = pipe->reader.Read(buffer);
      if (!n.ok()) break;
      said.append(buffer, *n);
    }
    EXPECT_TRUE(process.Wait()->is_success());
    char ours[256] = {};
    ASSERT_GT(readlink("/proc/self/fd/1", ours, sizeof ours - 1), 0);
    EXPECT_EQ(said, "out\n" + std::string(ours) + "\n");
  });
}

TEST_P(ProcessTest, NoDescriptorIsLeftBehind) {
  Run([] {
    RunShell("exit 0");
    const int before = OpenDescriptors();
    for (int i = 0; i < 20; ++i) RunShell("exit 0");
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST_P(ProcessTest, ManyAtOnce) {
  Run([] {
    std::vector<fiber::JoinHandle<int>> fibers;
    for (int i = 0; i < 20; ++i) {
      fibers.push_back(fiber::Spawn([i] { return RunShell("exit " + std::to_string(i)).exit.code; }));
    }
    for (int i = 0; i < 20; ++i) EXPECT_EQ(fibers[i].Join(), i);
  });
}

TEST_P(ProcessTest, WithoutPidfdsItIsWaitedForAllTheSame) {
  Run([] {
    const Faults faults({Call::pidfd_open, ENOSYS, kEach}, {Call::kCount});
    EXPECT_EQ(RunShell("exit 4").exit.code, 4);
    Process process = StartReady("echo; while :; do sleep 0.01; done");
    EXPECT_TRUE(absl::IsDeadlineExceeded(process.Wait(absl::Milliseconds(2)).status()));
    auto waiter = fiber::Spawn([&] { return process.Wait().status(); });
    WaitUntilParked(waiter);
    waiter.Cancel();
    EXPECT_TRUE(absl::IsCancelled(waiter.Join()));
    EXPECT_EQ(process.Wait()->signal, SIGTERM);
  });
}

TEST_P(ProcessTest, RunningOutIsAStatusThatNamesTheLimit) {
  Run([] {
    RunShell("exit 0");
    const int before = OpenDescriptors();
    const auto start_under = [](const Fault& fault) {
      const Faults faults(fault, {Call::kCount});
      return Process::Start({.arguments = {"/bin/true"}, .input = Stdio::Null(), .output = Stdio::Pipe()}).status();
    };
    for (const Fault& fault : {Fault{Call::posix_spawnp, EAGAIN, 1}, Fault{Call::posix_spawnp, ENOMEM, 1},
                               Fault{Call::pipe2, EMFILE, 1}, Fault{Call::open, EMFILE, 1},
                               Fault{Call::epoll_ctl, ENOSPC, 1, EPOLL_CTL_ADD}}) {
      const absl::Status status = start_under(fault);
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_EQ(ErrnoOf(status), fault.error);
      EXPECT_TRUE(absl::StrContains(status.message(), "(")) << status;
    }
    EXPECT_TRUE(absl::StrContains(start_under({Call::posix_spawnp, EAGAIN, 1}).message(), "RLIMIT_NPROC"));
    // No watch is left for its end: it runs, and is waited for in another way.
    const Faults faults({Call::epoll_ctl, ENOSPC, 1, EPOLL_CTL_ADD}, {Call::kCount});
    auto process = Process::Start({.arguments = Shell("exit 6")});
    ASSERT_TRUE(process.ok()) << process.status();
    EXPECT_EQ(process->Wait()->code, 6);
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST_P(ProcessTest, ASignalThatIsRefusedIsToldOfAndSigkillIsTriedAllTheSame) {
  Run([] {
    Process process = StartReady("echo; while :; do sleep 0.01; done", absl::Milliseconds(20));
    for (const int error : {EPERM, EINVAL, ESRCH}) {
      const Faults faults({Call::kill, error, 1}, {Call::kCount});
      const absl::Status status = process.Kill(SIGTERM);
      EXPECT_TRUE(faults.is_hit());
      EXPECT_EQ(ErrnoOf(status), error) << status;
      EXPECT_TRUE(absl::StartsWith(status.message(), absl::StrCat("signal process ", process.pid()))) << status;
    }
    const Faults faults({Call::kill, EPERM, 1}, {Call::kCount});
    auto waiter = fiber::Spawn([&] { return process.Wait().status(); });
    WaitUntilParked(waiter);
    waiter.Cancel();
    EXPECT_TRUE(absl::IsCancelled(waiter.Join()));
    EXPECT_TRUE(faults.is_hit());
    EXPECT_EQ(process.Wait()->signal, SIGKILL) << "there was no SIGTERM";
  });
}

TEST_P(ProcessTest, ALookAtItsEndThatIsInterruptedIsTakenAgainAndOneThatFailsLosesIt) {
  Run([] {
    {
      const Faults faults({Call::waitid, EINTR, 1}, {Call::kCount});
      EXPECT_EQ(RunShell("exit 7").exit.code, 7);
      EXPECT_TRUE(faults.is_hit());
    }
    for (const int error : {ECHILD, EINVAL}) {
      Process process = StartReady("echo; exit 0");
      const Faults faults({Call::waitid, error, 1}, {Call::kCount});
      EXPECT_TRUE(absl::IsFailedPrecondition(process.Wait().status()));
      EXPECT_TRUE(faults.is_hit());
      EXPECT_TRUE(absl::IsFailedPrecondition(process.Kill(SIGTERM))) << "its number may be another's";
      int status;  // it is still there, since the call was not made
      EXPECT_EQ(waitpid(process.pid(), &status, 0), process.pid());
    }
  });
}

TEST_P(ProcessTest, HowItEndsIsLostIfSomebodyElseWaits) {
  Run([] {
    Process process = StartReady("echo; exit 0");
    int status;
    EXPECT_EQ(waitpid(process.pid(), &status, 0), process.pid());
    EXPECT_TRUE(absl::IsFailedPrecondition(process.Wait().status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(process.Kill(SIGTERM)));
  });
}

TEST_P(ProcessTest, APlainThreadMayWaitAndOneThatOutlivesItsRuntimeIsEndedToo) {
  std::optional<Process> process;
  {
    sched::Runtime runtime({.workers = GetParam()});
    runtime.Spawn([&] { process.emplace(StartOrFail({.arguments = {"sleep", "1000"}})); }).Join();
    EXPECT_TRUE(absl::IsDeadlineExceeded(process->Wait(absl::Milliseconds(1)).status()));
    EXPECT_TRUE(process->Kill(SIGUSR1).ok());
    EXPECT_EQ(process->Wait()->signal, SIGUSR1);
    runtime.Spawn([&] { process.emplace(StartOrFail({.arguments = {"sleep", "1000"}})); }).Join();
    EXPECT_TRUE(runtime.Shutdown(absl::Seconds(20)).ok());
  }
  const pid_t pid = process->pid();
  process.reset();
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST_P(ProcessTest, AStartThatNobodyWaitsForLeavesNothing) {
  Run([] {
    for (int i = 0; i < 20; ++i) {
      auto starter = fiber::Spawn([] { return Process::Start({.arguments = {"sleep", "1000"}}).status(); });
      if (i % 2 == 0) WaitUntilParked(starter);
      starter.Cancel();
      starter.Join().IgnoreError();  // it may have been too late
    }
    AwaitDetachedCalls();
  });
}

TEST(ProcessDeathTest, AStreamThatIsNoPipe) {
  EXPECT_DEATH(sched::Run({.workers = 1},
                          [] {
                            auto process = Process::Start({.arguments = {"/bin/true"}});
                            process->output();
                          }),
               "its output is no pipe");
}

}  // namespace
}  // namespace netpoll_test
