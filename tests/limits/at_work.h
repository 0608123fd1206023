// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_LIMITS_AT_WORK_H_
#define WEFT_TESTS_LIMITS_AT_WORK_H_

#include <sys/socket.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_pool.h"
#include "gtest/gtest.h"
#include "netpoll/tcp.h"
#include "sched/runtime.h"
#include "tests/child.h"
#include "tests/leaks/census.h"
#include "tests/netpoll/sockets.h"  // which adds descriptor records to the census
#include "tests/scale.h"

namespace limits_test {

using fiber::internal::GuardMode;
using fiber::internal::StackDepot;

inline constexpr size_t kSmallStack = 64 << 10;

// As tests::InChild, and a body that leaves something behind fails: of what a child has, the parent's listener sees nothing.
template <class F>
void InChild(F body, std::string* said = nullptr) {
  const auto counted = [&body] {
    std::thread([] {}).join();  // with the first of a child, ThreadSanitizer starts one of its own
    const tests::Census before = tests::Census::Take();
    const int result = body();
    if (result != tests::kFine || testing::Test::HasFailure()) return result;
    std::string changes;
    // Who was joined may have yet to end.
    const absl::Time enough = absl::Now() + absl::Seconds(1);
    do {
      changes = tests::Census::Take().ChangesSince(before);
    } while (changes.find("left behind: thread") != std::string::npos && absl::Now() < enough);
    if (!changes.empty()) ADD_FAILURE() << "leaks:" << changes;
    return result;
  };
  tests::InChild(counted, said);
}

// Fibers that are all there at the same time, unless a limit is in the way.
class Crowd {
 public:
  Crowd(sched::Runtime& runtime, int count, size_t stack_bytes = kSmallStack) : count_(count) {
    for (int i = 0; i < count; ++i) {
      fibers_.push_back(runtime.Spawn({.stack_bytes = stack_bytes}, [this] {
        arrived_.fetch_add(1);
        EXPECT_TRUE(may_leave_.Wait().ok());
      }));
    }
  }
  ~Crowd() { Leave(); }

  void AwaitAll() const {
    while (arrived() < count_) std::this_thread::yield();
  }
  int arrived() const { return arrived_.load(); }
  // Lets all go, also those yet to come.
  void Leave() {
    may_leave_.Set();
    for (auto& each : fibers_) each.Join();
    fibers_.clear();
    EXPECT_EQ(arrived(), count_);
  }

 private:
  const int count_;
  std::atomic<int> arrived_{0};
  fiber::Event may_leave_;
  std::vector<fiber::JoinHandle<void>> fibers_;
};

inline void AwaitFibersInLine() {
  while (StackDepot::Get().Stats().waiting == 0) std::this_thread::yield();
}

// AtWork is a runtime in which two fibers echo to each other over a pair of sockets, for as long as it exists.
class AtWork {
 public:
  // Without spare workers, so that what limits say is about what each test is about.
  explicit AtWork(sched::RuntimeOptions options = {.workers = 2}) : runtime_(WithoutSpares(options)) {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    asker_ = runtime_.Spawn({.stack_bytes = kSmallStack}, [this, fd = fds[0]] {
      auto stream = netpoll::TcpStream::Adopt(fd);
      ASSERT_TRUE(stream.ok()) << stream.status();
      for (char sent = 0; !may_end_.load(); sent = static_cast<char>(sent + 1)) {
        char got[1] = {};
        ASSERT_TRUE(stream->Write({&sent, 1}).ok());
        ASSERT_TRUE(stream->Read(got).ok());
        ASSERT_EQ(got[0], sent);
        rounds_.fetch_add(1);
      }
    });
    echoer_ = runtime_.Spawn({.stack_bytes = kSmallStack}, [fd = fds[1]] {
      auto stream = netpoll::TcpStream::Adopt(fd);
      ASSERT_TRUE(stream.ok()) << stream.status();
      char byte[1];
      while (stream->Read(byte).ok()) ASSERT_TRUE(stream->Write({byte, 1}).ok());
    });
    ExpectEcho();
  }
  ~AtWork() {
    ExpectEcho();
    may_end_.store(true);
    asker_.Join();
    echoer_.Join();
    EXPECT_TRUE(runtime_.Shutdown(absl::Seconds(30)).ok());
    EXPECT_EQ(fiber::internal::CountRecordsInUse(), 0u) << "leaked fibers";
    EXPECT_EQ(StackDepot::Get().Stats().waiting, 0u);
  }

  sched::Runtime& runtime() { return runtime_; }

  // The echo goes on.
  void ExpectEcho() {
    const int until = rounds_.load() + 50;
    while (rounds_.load() < until && !asker_.is_done()) std::this_thread::yield();
    EXPECT_FALSE(asker_.is_done());
  }

  // `count` fibers can be there at the same time.
  void ExpectCrowd(int count = tests::Scaled(3000), size_t stack_bytes = kSmallStack) {
    Crowd crowd(runtime_, count, stack_bytes);
    crowd.AwaitAll();
  }

 private:
  static sched::RuntimeOptions WithoutSpares(sched::RuntimeOptions options) {
    options.max_threads = options.workers;
    return options;
  }

  sched::Runtime runtime_;
  std::atomic<bool> may_end_{false};
  std::atomic<int> rounds_{0};
  fiber::JoinHandle<void> asker_;
  fiber::JoinHandle<void> echoer_;
};

}  // namespace limits_test

#endif  // WEFT_TESTS_LIMITS_AT_WORK_H_
