// SPDX-License-Identifier: Apache-2.0
//
// System calls that fail, one at a time, while connections come and go: that one call reports, or
// recovers where its contract says so; everything else goes on with the right bytes, and nothing is
// left behind.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/netpoll/fault_workload.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"
#include "tests/scale.h"

namespace netpoll_test {
namespace {

using netpoll::ErrnoOf;
using netpoll::TcpListener;

// What of this process a fault may leave behind.
struct Holdings {
  int descriptors = OpenDescriptors();
  size_t descriptor_records = netpoll::internal::DescriptorSlab::CountInUse();
  size_t fibers = fiber::internal::CountRecordsInUse();
  size_t stacks = StacksInUse();

  static size_t StacksInUse() {
    const fiber::internal::StackPoolStats stats = fiber::internal::StackDepot::Get().Stats();
    size_t count = 0;
    for (size_t i = 0; i < std::size(stats.carved); ++i) count += stats.carved[i] - stats.free[i];
    return count;
  }
  friend bool operator==(const Holdings&, const Holdings&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Holdings& h) {
    return out << h.descriptors << " descriptors, " << h.descriptor_records
               << " descriptor records, " << h.fibers << " fibers, " << h.stacks << " stacks";
  }
};

// Of a fault: how many calls it might have been, and whether it was one.
struct Outcome {
  uint64_t count = 0;
  bool is_hit = false;
};

// Without a runtime.
void WaitInAPlainThread(Tally& tally) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  RawSocket reader(ends[0]);
  RawSocket writer(ends[1]);
  writer.Send("x");
  const absl::Status status =
      tally.Try([&] { return netpoll::WaitReadable(reader.fd(), absl::Seconds(30)); });
  if (!status.ok()) tally.Note("a plain thread's wait", status);
}

// Lets a runtime find something to raise.
void LowerDescriptorLimit() {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max - 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

// Runs it all once.
Outcome RunUnder(const Row& row, const Fault& fault) {
  LowerDescriptorLimit();
  const Holdings before;
  Outcome outcome;
  {
    Faults faults(fault, row.throughout);
    Tally tally(row, fault.error);
    {
      sched::Runtime runtime({.workers = row.workers, .max_stack_memory = row.max_stack_memory});
      runtime.Spawn([&] { Workload(tally).Run(); }).Join();
      // Idle workers are woken from outside. Most often they sleep in the poller by now.
      for (int i = 0; i < 3 || (faults.count() == 0 && i < 10'000); ++i) {
        runtime.Spawn([] {}).Join();
      }
    }
    WaitInAPlainThread(tally);
    outcome = {faults.count(), faults.is_hit()};
    tally.Check(outcome.is_hit);
  }
  EXPECT_EQ(Holdings(), before);
  return outcome;
}

// Which of the calls of a workload in which nothing went wrong are to fail: the first, the second,
// one in the middle, any.
std::set<uint64_t> Choices(uint64_t from, uint64_t count) {
  static std::mt19937_64 random{std::random_device{}()};
  const uint64_t any = from + random() % (count - from + 1);
  if (tests::kIsSlow) return {from, any};
  std::set<uint64_t> choices = {from, any};
  for (const uint64_t nth : {from + 1, count / 2}) {
    if (nth >= from && nth <= count) choices.insert(nth);
  }
  return choices;
}

class FaultTest : public testing::TestWithParam<Row> {};

// Breaks if a call forgets to look at its result, gives up what it should try again, keeps what it
// should give back, or takes others along.
TEST_P(FaultTest, OneCallFailsAndEverythingElseGoesOn) {
  const Row& row = GetParam();
  const uint64_t count = RunUnder(row, {row.call, 0, kNone, row.second}).count;
  ASSERT_GE(count, row.from) << "nobody makes this call";
  for (const int error : row.errors) {
    bool is_hit = false;
    for (const uint64_t nth : Choices(row.from, count)) {
      SCOPED_TRACE(
          absl::StrCat(row.name, " number ", nth, " of ", count, ": ", strerrorname_np(error)));
      is_hit |= RunUnder(row, {row.call, error, nth, row.second}).is_hit;
      if (HasFailure()) return;
    }
    EXPECT_TRUE(is_hit) << row.name << ": " << strerrorname_np(error);
  }
}

// What the manual pages name, but for what cannot be: the kernel would be broken, or we would.
std::vector<Row> Rows() {
  constexpr int64_t kFutexWait = FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG;
  constexpr int64_t kFutexWake = FUTEX_WAKE | FUTEX_PRIVATE_FLAG;
  constexpr Fault kConnectsArePending = {Call::connect, EINPROGRESS, kEach};
  return {
      // sched/
      // The others are workers that are missing; without the first there is no runtime.
      {.name = "Thread",
       .call = Call::pthread_create,
       .errors = {EAGAIN, EINVAL, EPERM},
       .workers = 4,
       .from = 2},
      {.name = "Affinity",
       .call = Call::sched_getaffinity,
       .errors = {EINVAL, EPERM, ENOSYS},
       .workers = 0},
      {.name = "CpusOnline",
       .call = Call::sysconf,
       .errors = {EINVAL},
       .throughout = {Call::sched_getaffinity, ENOSYS, kEach},
       .workers = 0},
      {.name = "GetLimit", .call = Call::getrlimit, .errors = {EPERM, ENOSYS}},
      {.name = "SetLimit", .call = Call::setrlimit, .errors = {EPERM, EINVAL}},
      {.name = "OpenCgroupFile",
       .call = Call::open,
       .errors = {EACCES, EINTR, ELOOP, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR},
       .workers = 0},
      {.name = "ReadCgroupFile",
       .call = Call::read,
       .errors = {EAGAIN, EINTR, EINVAL, EIO, EISDIR, ENOMEM},
       .workers = 0},
      {.name = "TimerSlack", .call = Call::prctl, .errors = {EINVAL, EPERM, ENOSYS}},
      {.name = "FutexWait", .call = Call::futex, .errors = {EAGAIN, EINTR}, .second = kFutexWait},
      {.name = "FutexWake", .call = Call::futex, .errors = {EFAULT}, .second = kFutexWake},
      // netpoll/: events
      {.name = "EpollCreate",
       .call = Call::epoll_create1,
       .errors = {EINVAL, EMFILE, ENFILE, ENOMEM, EPERM},
       .says = {"epoll_create1: "}},
      {.name = "EventFd",
       .call = Call::eventfd,
       .errors = {EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM},
       .says = {"eventfd: "}},
      {.name = "EpollAdd",
       .call = Call::epoll_ctl,
       .errors = {EEXIST, EINVAL, ELOOP, ENOENT, EPERM},
       .says = {"epoll_ctl: "},
       .may_lose_a_peer = true,
       .second = EPOLL_CTL_ADD},
      {.name = "EpollAddForWantOfSomething",
       .call = Call::epoll_ctl,
       .errors = {ENOMEM, ENOSPC},
       .says = {"epoll_ctl: "},
       .may_recover = true,  // a listener waits
       .second = EPOLL_CTL_ADD},
      {.name = "EpollWait", .call = Call::epoll_wait, .errors = {EINTR}},
      {.name = "EpollPwait2", .call = Call::epoll_pwait2, .errors = {EINTR}},
      {.name = "Kick", .call = Call::write, .errors = {EAGAIN, EINTR}},
      {.name = "EmptyTheEventFd",
       .call = Call::read,
       .errors = {EAGAIN, EINTR},
       .throughout = {Call::write, EAGAIN, 1},
       .max_stack_memory = size_t{1} << 30},  // no control group is asked for it
      // netpoll/: sockets
      {.name = "Socket",
       .call = Call::socket,
       .errors = {EACCES, EAFNOSUPPORT, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTONOSUPPORT},
       .says = {"socket for 127.0.0.1:", "socket to look up network interface lo"}},
      {.name = "Bind",
       .call = Call::bind,
       .errors = {EACCES, EADDRINUSE, EADDRNOTAVAIL, EBADF, EFAULT, EINVAL, ENOMEM, ENOTSOCK},
       .says = {"listen on 127.0.0.1:"}},
      {.name = "Listen",
       .call = Call::listen,
       .errors = {EADDRINUSE, EBADF, ENOTSOCK, EOPNOTSUPP},
       .says = {"listen on 127.0.0.1:"}},
      {.name = "AcceptNone",
       .call = Call::accept4,
       .errors = {EAGAIN, EINTR, ECONNABORTED, ECONNRESET, EPROTO, ENETDOWN, ENETUNREACH,
                  ENOPROTOOPT, EHOSTDOWN, EHOSTUNREACH, ENONET, EOPNOTSUPP, ETIMEDOUT}},
      {.name = "AcceptForWantOfSomething",
       .call = Call::accept4,
       .errors = {EMFILE, ENFILE, ENOBUFS, ENOMEM}},
      {.name = "Accept",
       .call = Call::accept4,
       .errors = {EBADF, EFAULT, EINVAL, ENOTSOCK, EPERM, ENOSYS},
       .says = {"accept on 127.0.0.1:"}},
      {.name = "ConnectPending", .call = Call::connect, .errors = {EINPROGRESS, EINTR}},
      {.name = "Connect",
       .call = Call::connect,
       .errors = {EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EALREADY, EBADF,
                  ECONNREFUSED, EFAULT, EHOSTUNREACH, EISCONN, ENETUNREACH, ENOBUFS, ENOTSOCK,
                  EPERM, EPROTOTYPE, ETIMEDOUT},
       .says = {"connect to 127.0.0.1:"}},
      {.name = "OutcomeOfConnect",
       .call = Call::getsockopt,
       .errors = {EBADF, EFAULT, EINVAL, ENOMEM, ENOPROTOOPT, ENOTSOCK},
       .says = {"connect to 127.0.0.1:", "adopt a descriptor: "},
       .throughout = kConnectsArePending},
      {.name = "PeerOfPendingConnect",
       .call = Call::getpeername,
       .errors = {ENOTCONN},
       .throughout = kConnectsArePending},
      {.name = "PeerOfConnect",
       .call = Call::getpeername,
       .errors = {EBADF, EINVAL, ENOBUFS, ENOTSOCK},
       .says = {"connect to 127.0.0.1:"},
       .may_recover = true,  // whoever asks for an address has none
       .throughout = kConnectsArePending},
      {.name = "LocalName",
       .call = Call::getsockname,
       .errors = {EBADF, EFAULT, EINVAL, ENOBUFS, ENOTSOCK}},
      {.name = "SetOption",
       .call = Call::setsockopt,
       .errors = {EBADF, EFAULT, EINVAL, ENOBUFS, ENOMEM, ENOPROTOOPT, ENOTSOCK},
       .says = {"set "}},
      {.name = "ReadAgain", .call = Call::recv, .errors = {EAGAIN, EINTR}},
      {.name = "Read",
       .call = Call::recv,
       .errors = {EBADF, ECONNREFUSED, ECONNRESET, EFAULT, EHOSTUNREACH, EINVAL, ENETUNREACH,
                  ENOBUFS, ENOMEM, ENOTCONN, ENOTSOCK, ETIMEDOUT},
       .says = {"read from 127.0.0.1:", "read from the lost peer of this end, 127.0.0.1:",
                "read from a socket: "}},
      {.name = "WriteAgain", .call = Call::send, .errors = {EAGAIN, EINTR}},
      {.name = "Write",
       .call = Call::send,
       .errors = {EACCES, EBADF, ECONNRESET, EFAULT, EHOSTUNREACH, EINVAL, EMSGSIZE, ENETDOWN,
                  ENETUNREACH, ENOBUFS, ENOMEM, ENOTCONN, ENOTSOCK, EPERM, EPIPE, ETIMEDOUT},
       .says = {"write to 127.0.0.1:", "write to a socket: "}},
      {.name = "WritePiecesAgain", .call = Call::sendmsg, .errors = {EAGAIN, EINTR}},
      {.name = "WritePieces",
       .call = Call::sendmsg,
       .errors = {EBADF, ECONNRESET, EFAULT, EINVAL, EMSGSIZE, ENOBUFS, ENOMEM, ENOTSOCK, EPERM,
                  EPIPE},
       .says = {"write to 127.0.0.1:"}},
      {.name = "Shutdown",
       .call = Call::shutdown,
       .errors = {EBADF, EINVAL, ENOTCONN, ENOTSOCK},
       .says = {"shutdown 127.0.0.1:"}},
      {.name = "Close", .call = Call::close, .errors = {EINTR, EIO, ENOSPC, EDQUOT}},
      // netpoll/: descriptors of others
      {.name = "Duplicate",
       .call = Call::fcntl,
       .errors = {EBADF, EINVAL, EMFILE},
       .says = {"wait for a descriptor: "},
       .second = F_DUPFD_CLOEXEC},
      {.name = "GetFlags",
       .call = Call::fcntl,
       .errors = {EBADF, EPERM},
       .says = {"adopt a descriptor: "},
       .second = F_GETFL},
      {.name = "SetFlags",
       .call = Call::fcntl,
       .errors = {EBADF, EPERM},
       .says = {"adopt a descriptor: "},
       .second = F_SETFL},
      {.name = "PollAgain", .call = Call::ppoll, .errors = {EINTR}},
      {.name = "Poll", .call = Call::ppoll, .errors = {EFAULT, EINVAL, ENOMEM}, .says = {"poll: "}},
      {.name = "FindInterface",
       .call = Call::ioctl,
       .errors = {EBADF, EFAULT, ENOMEM, ENOTTY, EPERM},
       .says = {"look up network interface lo: "}},
      // The last one: it is remembered.
      {.name = "NoEpollPwait2", .call = Call::epoll_pwait2, .errors = {ENOSYS}},
  };
}
INSTANTIATE_TEST_SUITE_P(Calls, FaultTest, testing::ValuesIn(Rows()),
                         [](const testing::TestParamInfo<Row>& info) { return info.param.name; });

// The calls that are no workload's, and who makes them fail.
std::map<Call, std::string> FailedElsewhere() {
  const std::pair<std::string, std::vector<Call>> kTests[] = {
      {"FaultDeathTest.WithoutMemoryForARecordThereIsNoSocket", {Call::mmap}},
      {"file_test: WhatTheRingCannotUnmapStaysAndNothingElse", {Call::munmap}},
      {"file_test: WhereTheRingIsRefusedThreadsDoIt",
       {Call::preadv2, Call::io_uring_setup, Call::io_uring_enter, Call::io_uring_register}},
      {"file_test: ASystemCallThatFailsIsToldOfAndOneThatIsInterruptedIsMadeAgain",
       {Call::openat, Call::pread, Call::pwrite, Call::fsync, Call::fdatasync, Call::ftruncate,
        Call::statx, Call::getdents64, Call::renameat, Call::unlinkat, Call::mkdirat}},
      {"pipe_test: RunningOutIsAStatusAndLeavesNothingBehind", {Call::pipe2}},
      {"process_test: RunningOutIsAStatusThatNamesTheLimit", {Call::posix_spawnp}},
      {"process_test: WithoutPidfdsItIsWaitedForAllTheSame", {Call::pidfd_open}},
      {"process_test: ASignalThatIsRefusedIsToldOfAndSigkillIsTriedAllTheSame", {Call::kill}},
      {"process_test: ALookAtItsEndThatIsInterruptedIsTakenAgainAndOneThatFailsLosesIt",
       {Call::waitid}},
      {"resolve_test: ErrorsByTheirMeaning", {Call::getaddrinfo}},
      {"signals_test: RunningOutIsAStatusAndLeavesNothingBehind", {Call::sigaction}},
      {"sched/stall_probe_test: WithoutWhatTheSystemRefusesAStallIsReportedWithLess",
       {Call::tgkill, Call::process_vm_readv}},
  };
  std::map<Call, std::string> tests;
  for (const auto& [test, calls] : kTests) {
    for (const Call call : calls) tests[call] = test;
  }
  return tests;
}

// Breaks if the table has a call that nobody makes fail.
TEST(FaultTableTest, EveryCallFailsHereOrInATestThatIsNamed) {
  std::set<Call> here;
  for (const Row& row : Rows()) here.insert(row.call);
  std::map<Call, std::string> elsewhere = FailedElsewhere();
#define X(name)                                                            \
  EXPECT_TRUE(here.contains(Call::name) || elsewhere.contains(Call::name)) \
      << #name << " fails nowhere: it wants a row, or a test of its own";  \
  EXPECT_FALSE(here.contains(Call::name) && elsewhere.contains(Call::name)) << #name;
  WEFT_EACH_CALL(X)
#undef X
}

// Breaks if a server has to do with the descriptors of its shell where it might have more, or does
// not start because it may not.
TEST(DescriptorLimitTest, ARuntimeRaisesTheSoftLimitToTheHardOneWhereItMay) {
  for (const Call refused : {Call::getrlimit, Call::setrlimit, Call::kCount}) {
    LowerDescriptorLimit();
    const Faults faults({refused, EPERM, kEach}, {Call::kCount});
    const sched::Runtime runtime({.workers = 1});
    rlimit limit;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    EXPECT_EQ(limit.rlim_cur, refused == Call::kCount ? limit.rlim_max : limit.rlim_max - 1);
    EXPECT_EQ(faults.is_hit(), refused != Call::kCount);
  }
}

// What can only be a bug, or leaves nothing to go on with, ends the process and says so.
class FaultDeathTest : public testing::Test {
 protected:
  FaultDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

// Breaks if a descriptor of ours that somebody else has closed goes unnoticed: its number may be
// another's next time.
TEST_F(FaultDeathTest, WhatSomebodyElseHasClosedIsNoticed) {
  const auto close_under = [](const Fault& fault) {
    sched::Run({.workers = 1}, [&fault] {
      StreamPair pair = Connected();
      const Faults faults(fault, {Call::kCount});
      pair.client.Close();
    });
  };
  EXPECT_DEATH(close_under({Call::close, EBADF, 1}),
               "descriptor [0-9]+ of ours was closed by somebody else");
  for (const int error : {EBADF, ENOENT}) {
    EXPECT_DEATH(close_under({Call::epoll_ctl, error, 1, EPOLL_CTL_DEL}),
                 "descriptor [0-9]+ of ours was closed by somebody else: epoll_ctl");
  }
}

// Breaks if a worker spins on a place to sleep that is gone, or a wake-up is lost without a word.
TEST_F(FaultDeathTest, AWorkerThatCannotSleepOrBeWokenSaysSo) {
  const auto run_under = [](const Fault& fault) {
    const Faults faults(fault, {Call::kCount});
    sched::Runtime runtime({.workers = 1});
    runtime.Spawn([] { (void)ListenOnLoopback().Accept(absl::Milliseconds(1)); }).Join();
    for (;;) runtime.Spawn([] {}).Join();
  };
  EXPECT_DEATH(run_under({Call::epoll_pwait2, EBADF, 1}), "epoll_wait: Bad file descriptor");
  EXPECT_DEATH(run_under({Call::epoll_wait, EBADF, 1}), "epoll_wait: Bad file descriptor");
  EXPECT_DEATH(run_under({Call::write, EIO, 1}), "eventfd write: Input/output error");
  EXPECT_DEATH(run_under({Call::futex, ENOSYS, 1, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG}),
               "futex wait failed");
  EXPECT_DEATH(run_under({Call::futex, ENOSYS, 1, FUTEX_WAKE | FUTEX_PRIVATE_FLAG}),
               "futex wake failed");
}

// Breaks if a runtime without a thread is made all the same: what is spawned on it would never run.
TEST(FaultRuntimeTest, ARuntimeWithoutAThreadSaysSo) {
  std::string why = "nothing";
  try {
    const Faults faults({Call::pthread_create, EAGAIN, 1}, {Call::kCount});
    const sched::Runtime runtime({.workers = 2});
  } catch (const std::system_error& error) {
    why = error.what();
  }
  EXPECT_TRUE(why.starts_with("not one worker thread can be had")) << why;
  sched::Run({.workers = 2}, [] {});
}

// Breaks if a record that cannot be had is used, or its socket kept. In a process of its own, since
// records stay.
TEST_F(FaultDeathTest, WithoutMemoryForARecordThereIsNoSocket) {
  const auto listen_twice = [] {
    const int descriptors = OpenDescriptors();
    sched::Run({.workers = 1}, [] {
      const Faults faults({Call::mmap, ENOMEM, 1}, {Call::kCount});
      const absl::Status status = TcpListener::Listen("127.0.0.1:0").status();
      EXPECT_EQ(ErrnoOf(status), ENOMEM);
      EXPECT_TRUE(absl::StartsWith(status.message(), "a descriptor record: ")) << status;
      EXPECT_TRUE(TcpListener::Listen("127.0.0.1:0").ok());
    });
    EXPECT_EQ(OpenDescriptors(), descriptors);
    exit(testing::Test::HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(listen_twice(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace netpoll_test
