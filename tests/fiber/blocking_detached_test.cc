// SPDX-License-Identifier: Apache-2.0
#include "fiber/blocking_detached.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/fiber_local.h"
#include "fiber/go.h"
#include "fiber/inherited.h"
#include "fiber/internal/thread_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/sim/gtest.h"
#include "fiber/this_fiber.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "sched/run.h"
#include "tests/netpoll/faults.h"
#include "tests/parked.h"
#include "tests/scale.h"

namespace fiber {
namespace {

using ::testing::HasSubstr;
using internal::ThreadPool;

// Tracked counts the ends of what was captured; one that was moved from has none.
class Tracked {
 public:
  explicit Tracked(std::atomic<int>& ends) : ends_(&ends) {}
  Tracked(Tracked&& other) noexcept : ends_(std::exchange(other.ends_, nullptr)) {}
  Tracked& operator=(Tracked&&) = delete;
  ~Tracked() {
    if (ends_ != nullptr) ends_->fetch_add(1, std::memory_order_release);
  }

 private:
  std::atomic<int>* ends_;
};

// Until `count` is `wanted`, which somebody is about to make it.
void Await(const std::atomic<int>& count, int wanted) {
  while (count.load(std::memory_order_acquire) != wanted) Yield();
}

// From here on there is an idle thread, so that the next call is begun at once.
void WarmUp() { ASSERT_TRUE(BlockingDetached([] {}).ok()); }

// A pool of another size for as long as it exists.
class PoolOf {
 public:
  explicit PoolOf(int threads) {
    ThreadPool::Get().EndIdle();
    SetMaxDetachedThreads(threads);
  }
  ~PoolOf() { SetMaxDetachedThreads(ThreadPool::kDefaultMaxThreads); }
};

FIBER_TEST_ON(BlockingDetachedTest, ReturnsWhatTheFunctionReturns, 1, 2) {
  absl::StatusOr<int> number = BlockingDetached([] { return 42; });
  EXPECT_EQ(number.value(), 42);
  absl::Status nothing = BlockingDetached([] {});
  EXPECT_TRUE(nothing.ok());
  absl::StatusOr<std::string> text = BlockingDetached([word = std::string(100, 'x')] { return word; });
  EXPECT_EQ(text.value(), std::string(100, 'x'));
  absl::StatusOr<std::unique_ptr<int>> moved =
      BlockingDetached([box = std::make_unique<int>(7)]() mutable { return std::move(box); });
  EXPECT_EQ(**moved, 7);
}

FIBER_TEST(BlockingDetachedTest, AStatusIsReturnedAsItIs) {
  absl::Status status = BlockingDetached([] { return absl::NotFoundError("no such thing"); });
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_TRUE(BlockingDetached([] { return absl::OkStatus(); }).ok());
  absl::StatusOr<int> failed =
      BlockingDetached([]() -> absl::StatusOr<int> { return absl::DataLossError("half of it"); });
  EXPECT_TRUE(absl::IsDataLoss(failed.status()));
  absl::StatusOr<int> fine = BlockingDetached([]() -> absl::StatusOr<int> { return 1; });
  EXPECT_EQ(fine.value(), 1);
}

FIBER_TEST(BlockingDetachedTest, AnExceptionIsRethrownToTheCaller) {
  std::atomic<int> ends{0};
  try {
    (void)BlockingDetached([mine = Tracked(ends)]() -> int { throw std::runtime_error("torn"); });
    ADD_FAILURE() << "it was lost";
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(), "torn");
  }
  EXPECT_EQ(ends.load(), 1);
}

FIBER_TEST(BlockingDetachedTest, WhatItCapturedIsGoneWhenItReturns) {
  std::atomic<int> ends{0};
  EXPECT_TRUE(BlockingDetached([mine = Tracked(ends)] {}).ok());
  EXPECT_EQ(ends.load(), 1);
}

FIBER_TEST(BlockingDetachedTest, TheFunctionIsOnAPlainThreadWithAStackOfItsOwn) {
  Inherited<int> inherited;
  const Bind bind(inherited, 5);
  EXPECT_TRUE(BlockingDetached([&inherited] {
                char name[16];
                pthread_getname_np(pthread_self(), name, sizeof name);
                EXPECT_STREQ(name, "weft-blocking");
                EXPECT_EQ(internal::ThisThread().current, nullptr);
                EXPECT_EQ(internal::ThisThread().scheduler, nullptr);
                EXPECT_EQ(inherited.get(), 0);
                volatile char wide[1 << 20];
                for (size_t i = 0; i < sizeof wide; i += 1024) wide[i] = 1;
                sigset_t blocked;
                pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
                EXPECT_TRUE(sigismember(&blocked, SIGTERM));
                EXPECT_TRUE(sigismember(&blocked, SIGALRM));
                EXPECT_FALSE(sigismember(&blocked, SIGSEGV));
                EXPECT_FALSE(sigismember(&blocked, SIGPROF));
              }).ok());
}

TEST(BlockingDetachedTest, OtherFibersGoOnMeanwhile) {
  sched::Run({.workers = 1}, [] {
    Event released;
    auto call = Spawn([&] { return BlockingDetached([&] { return released.Wait(); }); });
    tests::WaitUntilParked(call);
    released.Set();
    EXPECT_TRUE(call.Join().ok());
  });
}

TEST(BlockingDetachedTest, OneFromAPlainThreadBlocksItAndMayHaveADeadline) {
  EXPECT_EQ(BlockingDetached([] { return 3; }).value(), 3);
  WarmUp();
  Event released;
  std::atomic<int> ends{0};
  const absl::Status status = BlockingDetached(
      [&released, mine = Tracked(ends)] { released.Wait().IgnoreError(); }, absl::Milliseconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_EQ(ends.load(), 0);
  released.Set();
  while (ends.load(std::memory_order_acquire) == 0) std::this_thread::yield();
}

FIBER_TEST(BlockingDetachedTest, ADeadlineThatHasPassedKeepsItFromBeingCalled) {
  bool was_called = false;
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      BlockingDetached([&] { was_called = true; }, absl::ZeroDuration())));
  const DeadlineScope scope(absl::ZeroDuration());
  EXPECT_TRUE(absl::IsDeadlineExceeded(BlockingDetached([&] { was_called = true; })));
  EXPECT_FALSE(was_called);
}

FIBER_TEST_ON(BlockingDetachedTest, AtItsDeadlineTheWaitEndsAndTheCallRunsOn, 1, 2) {
  WarmUp();
  struct Shared {
    Event released;
    std::atomic<int> captured_ends{0};
    std::atomic<int> result_ends{0};
    std::atomic<int> result_thread_is_the_callers{0};
  } shared;
  const absl::Status status =
      BlockingDetached(
          [&shared, mine = Tracked(shared.captured_ends)] {
            EXPECT_TRUE(shared.released.Wait().ok());
            return Tracked(shared.result_ends);
          },
          absl::Milliseconds(1))
          .status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_EQ(shared.captured_ends.load(), 0);
  shared.released.Set();
  Await(shared.captured_ends, 1);
  Await(shared.result_ends, 1);
  WarmUp();
  EXPECT_EQ(shared.captured_ends.load(), 1);
  EXPECT_EQ(shared.result_ends.load(), 1);
}

FIBER_TEST_ON(BlockingDetachedTest, CancellationEndsTheWaitAndTheCallRunsOn, 1, 2) {
  WarmUp();
  Event begun;
  Event released;
  std::atomic<int> ends{0};
  auto call = Spawn([&] {
    return BlockingDetached([&begun, &released, mine = Tracked(ends)] {
      begun.Set();
      EXPECT_TRUE(released.Wait().ok());
    });
  });
  EXPECT_TRUE(begun.Wait().ok());
  call.Cancel(absl::CancelledError("no longer wanted"));
  const absl::Status status = call.Join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(status.message(), "no longer wanted");
  EXPECT_EQ(ends.load(), 0);
  released.Set();
  Await(ends, 1);
}

FIBER_TEST_ON(BlockingDetachedTest, WhenAllThreadsAreBusyCallsWaitInOrderOfComing, 1, 2) {
  const PoolOf pool(1);
  Event begun;
  Event released;
  auto busy = Spawn([&] {
    return BlockingDetached([&] {
      begun.Set();
      EXPECT_TRUE(released.Wait().ok());
    });
  });
  EXPECT_TRUE(begun.Wait().ok());
  std::vector<int> order;  // by the one thread
  std::vector<JoinHandle<absl::Status>> later;
  for (int i = 0; i < 5; ++i) {
    later.push_back(Spawn([&order, i] { return BlockingDetached([&order, i] { order.push_back(i); }); }));
    tests::WaitUntilParked(later.back());
  }
  // Who gives up is never called, and holds nobody up.
  std::atomic<int> ends{0};
  bool was_called = false;
  EXPECT_TRUE(absl::IsDeadlineExceeded(BlockingDetached(
      [&was_called, mine = Tracked(ends)] { was_called = true; }, absl::Milliseconds(1))));
  EXPECT_EQ(ends.load(), 1);
  later[2].Cancel();
  EXPECT_TRUE(absl::IsCancelled(later[2].Join()));
  EXPECT_EQ(ThreadPool::Get().threads(), 1);
  released.Set();
  EXPECT_TRUE(busy.Join().ok());
  for (JoinHandle<absl::Status>& each : later) {
    if (each.is_valid()) {
      EXPECT_TRUE(each.Join().ok());
    }
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 3, 4}));
  EXPECT_FALSE(was_called);
}

FIBER_TEST(BlockingDetachedTest, NoMoreThreadsThanTheBoundAndRaisingItLetsWaitersGoAhead) {
  const PoolOf pool(2);
  std::atomic<int> running{0};
  Event released;
  std::vector<JoinHandle<absl::Status>> calls;
  for (int i = 0; i < 5; ++i) {
    calls.push_back(Spawn([&] {
      return BlockingDetached([&] {
        running.fetch_add(1);
        EXPECT_TRUE(released.Wait().ok());
      });
    }));
    tests::WaitUntilParked(calls.back());
  }
  Await(running, 2);
  EXPECT_EQ(ThreadPool::Get().threads(), 2);
  SetMaxDetachedThreads(4);
  Await(running, 4);
  SetMaxDetachedThreads(1);  // nobody is thrown out
  released.Set();
  for (JoinHandle<absl::Status>& each : calls) EXPECT_TRUE(each.Join().ok());
  EXPECT_EQ(running.load(), 5);
  while (ThreadPool::Get().threads() > 1) Yield();
}

TEST(BlockingDetachedTest, IdleThreadsEnd) {
  ThreadPool& pool = ThreadPool::Get();
  pool.SetIdleNs(1'000'000);
  WarmUp();
  while (pool.threads() > 0) std::this_thread::yield();
  pool.SetIdleNs(ThreadPool::kDefaultIdleNs);
  WarmUp();
  EXPECT_EQ(pool.threads(), 1);
  pool.EndIdle();
  EXPECT_EQ(pool.threads(), 0);
}

TEST(BlockingDetachedTest, WhereNoThreadCanBeHadTheLimitIsNamed) {
  using netpoll_test::Call;
  using netpoll_test::Faults;
  sched::Run({.workers = 2}, [] {
    ThreadPool::Get().EndIdle();
    std::atomic<int> ends{0};
    bool was_called = false;
    {
      const Faults faults({Call::pthread_create, EAGAIN, netpoll_test::kEach}, {Call::kCount});
      std::vector<JoinHandle<absl::Status>> calls;
      for (int i = 0; i < 10; ++i) {
        calls.push_back(Spawn([&] {
          return BlockingDetached([&was_called, mine = Tracked(ends)] { was_called = true; });
        }));
      }
      for (JoinHandle<absl::Status>& each : calls) {
        const absl::Status status = each.Join();
        EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr("ulimit -u"));
        EXPECT_THAT(std::string(status.message()), HasSubstr("; raise it "));
      }
    }
    EXPECT_FALSE(was_called);
    EXPECT_EQ(ends.load(), 10);
    EXPECT_TRUE(BlockingDetached([] {}).ok());  // and it goes on
  });
}

TEST(BlockingDetachedTest, WhereNoFurtherThreadCanBeHadTheOneThereIsMakesAllCalls) {
  using netpoll_test::Call;
  using netpoll_test::Faults;
  sched::Run({.workers = 2}, [] {
    ThreadPool::Get().EndIdle();
    WarmUp();
    Event released;
    auto busy = Spawn([&] { return BlockingDetached([&] { return released.Wait(); }); });
    tests::WaitUntilParked(busy);
    const Faults faults({Call::pthread_create, EAGAIN, netpoll_test::kEach}, {Call::kCount});
    std::vector<JoinHandle<absl::StatusOr<int>>> calls;
    for (int i = 0; i < 10; ++i) {
      calls.push_back(Spawn([i] { return BlockingDetached([i] { return i; }); }));
      tests::WaitUntilParked(calls.back());
    }
    EXPECT_TRUE(faults.is_hit());
    EXPECT_EQ(ThreadPool::Get().threads(), 1);
    released.Set();
    for (int i = 0; i < 10; ++i) EXPECT_EQ(calls[static_cast<size_t>(i)].Join().value(), i);
    EXPECT_TRUE(busy.Join().ok());
  });
}

FIBER_TEST(BlockingDetachedTest, WhatACallLeavesInFiberLocalsIsGoneWithIt) {
  const PoolOf pool(1);
  static FiberLocal<int> local;
  EXPECT_EQ(BlockingDetached([] { return ++*local; }).value(), 1);
  EXPECT_EQ(BlockingDetached([] { return ++*local; }).value(), 1);
}

// Destroyed on the thread, since nobody waits for it any more.
FIBER_TEST(BlockingDetachedTest, NorIsWhatTheEndOfAnUnwantedResultLeavesThere) {
  const PoolOf pool(1);
  WarmUp();
  static FiberLocal<int> local;
  struct Result {
    ~Result() { ++*local; }
  };
  Event released;
  EXPECT_TRUE(absl::IsDeadlineExceeded(BlockingDetached(
                                           [&released] {
                                             released.Wait().IgnoreError();
                                             return std::make_unique<Result>();
                                           },
                                           absl::Milliseconds(1))
                                           .status()));
  released.Set();
  EXPECT_EQ(BlockingDetached([] { return *local; }).value(), 0);
}

TEST(BlockingDetachedTest, TenThousandCallsOfManyFibers) {
  constexpr int kFibers = tests::kHasFewFibers ? 50 : 200;
  constexpr int kCalls = tests::Scaled(10'000) / kFibers;
  sched::Run({.workers = 2}, [] {
    std::atomic<int> ends{0};
    std::vector<JoinHandle<int>> fibers;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(Spawn([&ends] {
        int sum = 0;
        for (int call = 0; call < kCalls; ++call) {
          sum += BlockingDetached([call, mine = Tracked(ends)] { return call; }).value();
        }
        return sum;
      }));
    }
    for (JoinHandle<int>& each : fibers) EXPECT_EQ(each.Join(), kCalls * (kCalls - 1) / 2);
    EXPECT_EQ(ends.load(), kFibers * kCalls);
    EXPECT_LE(ThreadPool::Get().threads(), ThreadPool::kDefaultMaxThreads);
  });
}

// Deadlines from none to about what a call takes: every call is made or not, told or not, and what it captured ends once.
TEST(BlockingDetachedTest, WaitsThatEndAtAnyMomentLoseNothing) {
  const PoolOf pool(2);
  constexpr int kFibers = 20;
  constexpr int kCalls = tests::Scaled(200);
  std::atomic<int> ends{0};
  std::atomic<int> told{0};
  std::atomic<int> made{0};
  sched::Run({.workers = 2}, [&] {
    std::vector<JoinHandle<void>> fibers;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(Spawn([&, i] {
        for (int call = 0; call < kCalls; ++call) {
          const absl::Status status = BlockingDetached(
              [&made, mine = Tracked(ends)] { made.fetch_add(1); },
              absl::Microseconds((call * 7 + i) % 100));
          if (status.ok()) {
            told.fetch_add(1);
          } else {
            EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
          }
        }
      }));
    }
    for (JoinHandle<void>& each : fibers) each.Join();
  });
  while (ThreadPool::Get().threads() > 0) ThreadPool::Get().EndIdle();
  EXPECT_EQ(ends.load(), kFibers * kCalls);
  EXPECT_GE(made.load(), told.load());
}

FIBER_SIM_TEST(BlockingDetachedTest, InSimulationItIsCalledAtOnceByTheCaller) {
  const absl::Duration before = Now();
  const uint64_t self = static_cast<uint64_t>(CurrentId());
  EXPECT_EQ(BlockingDetached([] { return static_cast<uint64_t>(CurrentId()); }).value(), self);
  EXPECT_TRUE(BlockingDetached([] {}).ok());
  EXPECT_TRUE(absl::IsNotFound(BlockingDetached([] { return absl::NotFoundError("gone"); })));
  EXPECT_THROW((void)BlockingDetached([] { throw std::runtime_error("torn"); }), std::runtime_error);
  EXPECT_TRUE(absl::IsDeadlineExceeded(BlockingDetached([] {}, absl::ZeroDuration())));
  EXPECT_EQ(Now(), before);
  EXPECT_EQ(ThreadPool::Get().threads(), 0);
}

}  // namespace
}  // namespace fiber
