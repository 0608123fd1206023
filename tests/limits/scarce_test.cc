// SPDX-License-Identifier: Apache-2.0
//
// Threads and descriptors that run out, and system calls for waiting that are refused, while a runtime is at work.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "netpoll/error.h"
#include "netpoll/wait.h"
#include "sched/run.h"
#include "tests/limits/at_work.h"
#include "tests/netpoll/seccomp.h"

namespace limits_test {
namespace {

using netpoll_test::RefuseSyscall;
using tests::kCannotTest;
using tests::kFine;

constexpr long kSysClone3 = 435;

bool RefuseThreads() {
  return RefuseSyscall(kSysClone3, -1, EAGAIN) && RefuseSyscall(SYS_clone, -1, EAGAIN);
}

// A pids limit reached by others: who already has threads goes on, and whoever cannot have one is told so, by name.
TEST(ScarceTest, WithoutAnotherThreadARuntimeAtWorkGoesOnAndASecondOneIsToldTheLimit) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        at_work.ExpectCrowd();
        if (!RefuseThreads()) {
          fprintf(stderr, "seccomp is refused here: %s\n", strerror(errno));
          return kCannotTest;
        }
        at_work.ExpectEcho();
        at_work.ExpectCrowd(2 * tests::Scaled(3000));
        for (int i = 0; i < 3; ++i) {
          std::string why;
          try {
            sched::Run({.workers = 2}, [] {});
          } catch (const std::system_error& error) {
            EXPECT_EQ(error.code(), std::errc::resource_unavailable_try_again);
            why = error.what();
          }
          EXPECT_TRUE(why.starts_with("not one worker thread can be had: the limit on threads")) << why;
          for (const char* remedy : {"ulimit -u", "pids limit of the control group", "kernel.threads-max",
                                     "raise it or ask for fewer workers"}) {
            EXPECT_NE(why.find(remedy), std::string::npos) << remedy;
          }
        }
        fiber::Go([] {});  // the one that there is
        at_work.ExpectEcho();
        at_work.ExpectCrowd();
        return kFine;
      },
      &said);
  if (IsSkipped()) return;
  EXPECT_EQ(said, "");
}

// Fewer workers than asked for must be as good as if so many had been asked for; and the next runtime has all.
TEST(ScarceTest, ARuntimeWorksWithTheThreadsItGetsAndTheNextOneHasAllAgain) {
  if (tests::kIsSlow) GTEST_SKIP() << "shadow memory needs the address space";
  std::string said;
  InChild(
      [] {
        { AtWork().ExpectCrowd(); }  // whose stacks are there from now on
        pthread_attr_t attributes;
        constexpr size_t kStack = size_t{64} << 20;
        if (pthread_attr_init(&attributes) != 0) return 2;
        if (pthread_attr_setstacksize(&attributes, kStack) != 0) return 3;
        if (pthread_setattr_default_np(&attributes) != 0) return 4;
        rlimit before{};
        if (getrlimit(RLIMIT_AS, &before) != 0) return 5;
        size_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const rlimit tight{pages * 4096 + 3 * kStack, before.rlim_max};
        if (setrlimit(RLIMIT_AS, &tight) != 0) return 6;
        {
          AtWork at_work({.workers = 8});
          EXPECT_EQ(at_work.runtime().stats().workers, 2);
          at_work.ExpectCrowd();
        }
        if (setrlimit(RLIMIT_AS, &before) != 0) return 7;
        AtWork at_work({.workers = 8});
        EXPECT_EQ(at_work.runtime().stats().workers, 8);
        at_work.ExpectCrowd();
        return kFine;
      },
      &said);
  EXPECT_EQ(tests::CountIn(said, "weft:"), 2) << said;
  EXPECT_NE(said.find("only 2 of 8 worker threads can be had"), std::string::npos) << said;
  EXPECT_NE(said.find("no thread for the monitor"), std::string::npos) << said;
}

class NoDescriptors {
 public:
  NoDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    const rlimit none{1, before_.rlim_max};  // 0, and poll(2) would take no descriptor at all
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  ~NoDescriptors() { EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before_), 0); }

 private:
  rlimit before_;
};

void ExpectNamed(const absl::Status& status) {
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(netpoll::ErrnoOf(status), EMFILE) << status;
  EXPECT_NE(status.message().find("RLIMIT_NOFILE"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("raise it with ulimit -n"), absl::string_view::npos) << status;
}

// The poller itself needs descriptors, at the first socket. A runtime that could not have them then must have them later.
TEST(ScarceTest, ARuntimeWhoseFirstSocketFindsNoDescriptorsHasSocketsOnceThereAreSome) {
  std::string said;
  InChild(
      [] {
        return sched::Run({.workers = 2}, [] {
          int fds[2];
          if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) return 2;
          {
            const NoDescriptors none;
            ExpectNamed(netpoll::TcpListener::Listen("127.0.0.1:0").status());
            ExpectNamed(netpoll::TcpStream::Adopt(fds[0]).status());
            ExpectNamed(netpoll::WaitReadable(fds[0], absl::Seconds(60)));
            // Stacks are made and deadlines kept all the same.
            std::vector<fiber::JoinHandle<void>> crowd;
            for (int i = 0; i < tests::Scaled(1000); ++i) {
              crowd.push_back(fiber::Spawn({.stack_bytes = kSmallStack}, [] {
                EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());
              }));
            }
            for (auto& each : crowd) each.Join();
          }
          auto writer = fiber::Spawn([fd = fds[1]] {
            auto stream = netpoll::TcpStream::Adopt(fd);
            EXPECT_TRUE(stream.ok() && stream->Write("x").ok());
          });
          auto stream = netpoll::TcpStream::Adopt(fds[0]);
          char byte[1];
          EXPECT_TRUE(stream.ok() && stream->Read(byte).ok());
          writer.Join();
          return kFine;
        });
      },
      &said);
  EXPECT_EQ(said, "");
}

// Connections that are there must not suffer from those that cannot be had.
TEST(ScarceTest, WithoutDescriptorsARuntimeAtWorkGoesOnWithThoseItHas) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        {
          const NoDescriptors none;
          at_work.runtime().Spawn([] {
            ExpectNamed(netpoll::TcpListener::Listen("127.0.0.1:0").status());
            ExpectNamed(netpoll::TcpStream::Connect("127.0.0.1:1").status());
          }).Join();
          at_work.ExpectEcho();
          at_work.ExpectCrowd();
        }
        at_work.runtime().Spawn([] {
          EXPECT_TRUE(netpoll::TcpListener::Listen("127.0.0.1:0").ok());
        }).Join();
        return kFine;
      },
      &said);
  EXPECT_EQ(said, "");
}

// A process may filter its own calls at any time: what was found out before says nothing.
TEST(ScarceTest, WhereEpollPwait2IsRefusedFromSomeMomentOnDeadlinesAreKeptAllTheSame) {
  for (const int error : {ENOSYS, EPERM}) {
    std::string said;
    InChild(
        [error] {
          AtWork at_work;
          const auto sleep = [] { return fiber::Sleep(absl::Microseconds(1500)); };
          EXPECT_TRUE(at_work.runtime().Spawn(sleep).Join().ok());
          if (!RefuseSyscall(SYS_epoll_pwait2, -1, error)) {
            fprintf(stderr, "seccomp is refused here: %s\n", strerror(errno));
            return kCannotTest;
          }
          for (int i = 0; i < 20; ++i) EXPECT_TRUE(at_work.runtime().Spawn(sleep).Join().ok());
          at_work.ExpectCrowd();
          return kFine;
        },
        &said);
    if (IsSkipped()) return;
    EXPECT_EQ(said, "");
  }
}

}  // namespace
}  // namespace limits_test
