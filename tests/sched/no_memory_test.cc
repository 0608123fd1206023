// SPDX-License-Identifier: Apache-2.0
//
// Waiting and parking when the heap is exhausted. A process of its own: it has its own operator new.
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/blocking_detached.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/condition.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/ambient.h"
#include "fiber/mutex.h"
#include "fiber/rate_limiter.h"
#include "fiber/scope.h"
#include "fiber/select.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/scale.h"

namespace {

std::atomic<bool> is_exhausted{false};

std::atomic<bool> is_everything_refused{false};
std::atomic<int> still_granted{0};  // of everything, before it is refused

// What timers are kept in comes in powers of two from 64 bytes on; what else is allocated here does not.
bool IsRefused(size_t size) {
  if (is_everything_refused.load(std::memory_order_relaxed)) {
    return still_granted.fetch_sub(1, std::memory_order_relaxed) <= 0;
  }
  return is_exhausted.load(std::memory_order_relaxed) && size >= 64 && (size & (size - 1)) == 0;
}

}  // namespace

// Not inlined, or g++ sees malloc and free where it expects new and delete.
__attribute__((noinline)) void* operator new(size_t size) {
  void* memory = IsRefused(size) ? nullptr : malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { free(memory); }

namespace {

TEST(NoMemoryTest, AWaitWhoseDeadlineCannotBeKeptFailsAndNothingElseChanges) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    const absl::Duration kLong = absl::Hours(1);
    fiber::Event event;
    fiber::Semaphore semaphore(0);
    fiber::WaitGroup group;
    fiber::Mutex mutex;
    fiber::Event release;
    group.Add(1);
    auto holder = fiber::Spawn([&] {
      mutex.lock();
      EXPECT_TRUE(release.Wait().ok());
      mutex.unlock();
    });
    fiber::Yield();

    is_exhausted = true;
    EXPECT_TRUE(absl::IsResourceExhausted(fiber::Sleep(kLong)));
    EXPECT_TRUE(absl::IsResourceExhausted(event.Wait(kLong)));
    EXPECT_TRUE(absl::IsResourceExhausted(semaphore.Acquire(1, kLong)));
    EXPECT_TRUE(absl::IsResourceExhausted(group.Wait(kLong)));
    EXPECT_TRUE(absl::IsResourceExhausted(mutex.Lock(kLong)));
    EXPECT_TRUE(absl::IsResourceExhausted(holder.Wait(kLong)));
    const absl::Status status = fiber::Sleep(kLong);
    EXPECT_NE(status.message().find("memory"), absl::string_view::npos) << status;
    is_exhausted = false;

    // Nobody is left behind in a queue, and the same waits work.
    EXPECT_TRUE(absl::IsDeadlineExceeded(event.Wait(absl::Milliseconds(1))));
    EXPECT_TRUE(absl::IsDeadlineExceeded(mutex.Lock(absl::Milliseconds(1))));
    semaphore.Release(1);
    EXPECT_TRUE(semaphore.TryAcquire(1));
    auto waiter = fiber::Spawn([&] { return event.Wait(kLong); });
    fiber::Yield();
    event.Set();
    EXPECT_TRUE(waiter.Join().ok());
    group.Done();
    EXPECT_TRUE(group.Wait(kLong).ok());
    release.Set();
    holder.Join();
    EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());
  });
}

TEST(NoMemoryTest, AChannelWhoseNextItemCannotBeWaitedForHasNotEnded) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Channel<int> numbers(1);
    EXPECT_TRUE(numbers.Send(1).ok());
    const fiber::DeadlineScope bound(absl::Hours(1));
    int received = 0;
    is_exhausted = true;
    EXPECT_THROW(
        for (const int number : numbers) received += number,
        std::bad_alloc);
    is_exhausted = false;
    EXPECT_EQ(received, 1);
  });
}

// Whoever parks runs its successor's start on its own stack: that must not need the heap.
TEST(NoMemoryTest, ANamedFiberStartsWhereAnotherParksOrYields) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Event event;
    auto setter = fiber::Spawn({.name = "a name of more than the few bytes that a string holds"}, [&] {
      EXPECT_EQ(fiber::CurrentName().substr(0, 6), "a name");
      event.Set();
    });
    auto other = fiber::Spawn({.name = "another"}, [] {});
    is_everything_refused = true;
    const bool is_woken = event.Wait().ok();
    fiber::Yield();
    is_everything_refused = false;
    EXPECT_TRUE(is_woken);
    setter.Join();
    other.Join();
  });
}

// Not even for the status that says why the wait has ended: what a thread of the pool is using is not destroyed for that.
TEST(NoMemoryTest, ACallThatIsUnderWayKeepsWhatItCaptured) {
  const auto use = [] {
    EXPECT_TRUE(fiber::BlockingDetached([] {}).ok());  // there is a thread
    EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());  // what timers need once, they have
    struct Call {
      std::atomic<bool> is_under_way{false};
      std::atomic<bool> is_destroyed{false};
      std::atomic<bool> was_destroyed_early{false};
    } call;
    struct Captured {
      explicit Captured(Call& call) : call(&call) {}
      Captured(Captured&& other) noexcept : call(std::exchange(other.call, nullptr)) {}
      ~Captured() {
        if (call == nullptr) return;
        if (call->is_under_way) call->was_destroyed_early = true;
        call->is_destroyed = true;
      }
      Call* call;
    };
    bool is_late = false;
    try {
      is_late = !fiber::BlockingDetached(
                     [&call, mine = Captured(call)] {
                       call.is_under_way = true;
                       is_everything_refused = true;
                       usleep(30'000);
                       is_everything_refused = false;
                       call.is_under_way = false;
                     },
                     absl::Milliseconds(10))
                     .ok();
    } catch (const std::bad_alloc&) {
    }
    while (call.is_under_way || !call.is_destroyed) usleep(1000);
    EXPECT_TRUE(is_late);
    EXPECT_FALSE(call.was_destroyed_early);
  };
  use();
  sched::Run({.workers = 1, .max_threads = 1}, use);
  std::thread(use).join();
}

// The thread that makes the call has told nobody of anything before.
TEST(NoMemoryTest, TheFirstCallOfAThreadOfThePoolEndsWithoutMemory) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    auto result = fiber::BlockingDetached([] {
      is_everything_refused = true;
      return 7;
    });
    is_everything_refused = false;
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(*result, 7);
  });
}

TEST(NoMemoryTest, AFiberThatFindsNoStackWaitsInLineAllTheSame) {
  sched::Run({.workers = 1, .max_stack_memory = 2 * 4096}, [] {
    fiber::Event release;
    auto holder = fiber::Spawn([&] { EXPECT_TRUE(release.Wait().ok()); });
    fiber::Yield();
    auto waiting = fiber::Spawn([] {});
    is_everything_refused = true;
    fiber::Yield();
    is_everything_refused = false;
    release.Set();
    holder.Join();
    waiting.Join();
  });
}

// What a thread that is no worker waits with it has from its spawn on. Each is new, and so many that none finds what ended ones left.
TEST(NoMemoryTest, AThreadThatHasSpawnedCanWaitForItsFiber) {
  sched::Runtime runtime({.workers = 1, .max_threads = 1});
  for (const bool is_joined : {true, false}) {
    constexpr int kThreads = 16;
    std::atomic<int> spawned{0};
    std::atomic<int> thrown{0};
    std::atomic<int> ended{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        auto fiber = runtime.Spawn([&] {
          while (spawned < kThreads) fiber::Yield();
          // Not before the others wait, if they can.
          for (int turn = 0; turn < 1000; ++turn) fiber::Yield();
          if (++ended == kThreads) is_everything_refused = false;
        });
        if (++spawned == kThreads) is_everything_refused = true;
        while (!is_everything_refused && ended == 0) std::this_thread::yield();
        try {
          if (is_joined) {
            fiber.Join();
          } else {
            { const auto dropped = std::move(fiber); }
          }
        } catch (const std::bad_alloc&) {
          ++thrown;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(thrown, 0);
  }
}

// Nor is there memory to say which limit it was. Sanitizers take address space as they like.
TEST(NoMemoryTest, AFiberWhoseStackCannotBeMadeWaitsInLineAllTheSame) {
  if (tests::kIsSlow) return;
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    bool has_run = false;
    auto other = fiber::Spawn([&] { has_run = true; });
    auto waiting = fiber::Spawn({.stack_bytes = 8 << 20}, [] {});  // the newest begins first
    rlimit before;
    ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
    const rlimit none = {.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_AS, &none), 0);
    is_everything_refused = true;
    fiber::Yield();
    is_everything_refused = false;
    EXPECT_TRUE(has_run) << "it is kept out by one that has no stack";
    ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
    waiting.Join();
    other.Join();
  });
}

// The calls below are cancelled without memory for the status that says so.
class CancelledWithoutMemory {
 public:
  template <class F>
  explicit CancelledWithoutMemory(F call)
      : fiber_(fiber::Spawn([call = std::move(call)]() mutable {
          try {
            (void)call();
          } catch (const std::bad_alloc&) {
            is_everything_refused = false;
            return true;
          }
          is_everything_refused = false;
          return false;
        })) {
    for (int i = 0; i < 3; ++i) fiber::Yield();  // it waits
  }
  // Whether it has thrown.
  bool End() {
    fiber_.Cancel(absl::InternalError("why, in a status of its own"));
    is_everything_refused = true;
    return fiber_.Join();
  }

 private:
  fiber::JoinHandle<bool> fiber_;
};

TEST(NoMemoryTest, WhoWaitsForAConditionHasTheMutexHoweverThatEnds) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Mutex mutex;
    fiber::Condition condition;
    CancelledWithoutMemory waiter([&] {
      fiber::MutexLock hold(mutex);
      return condition.Wait(mutex);
    });
    EXPECT_TRUE(waiter.End());
    const bool is_free = mutex.try_lock();
    EXPECT_TRUE(is_free);
    if (is_free) mutex.unlock();
  });
}

TEST(NoMemoryTest, WhoGivesUpHisTurnAtARateLimiterLeavesItToOthers) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::RateLimiter limiter(1, 1);
    EXPECT_TRUE(limiter.TryAcquire());
    CancelledWithoutMemory first([&] { return limiter.Acquire(); });
    CancelledWithoutMemory second([&] { return limiter.Acquire(); });
    EXPECT_TRUE(first.End());
    EXPECT_TRUE(second.End());
    EXPECT_TRUE(limiter.Acquire(1, absl::Seconds(5)).ok());
  });
}

TEST(NoMemoryTest, TheClausesOfASelectThatHasThrownAreFree) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Channel<int> numbers;
    auto receive = fiber::OnReceive(numbers, [](int) {});
    CancelledWithoutMemory waiter([&] { return fiber::Select(receive).status(); });
    EXPECT_TRUE(waiter.End());
    auto sender = fiber::Spawn([&] { EXPECT_TRUE(numbers.Send(1).ok()); });
    EXPECT_EQ(fiber::Select(receive).value(), 0u);
    sender.Join();
  });
}

// Waits for what does not come. Whether it was ended, with or without memory to say why.
bool IsEnded(fiber::Event& never) {
  try {
    return !never.Wait().ok();
  } catch (const std::bad_alloc&) {
    return true;
  }
}

TEST(NoMemoryTest, ScopesAndHandlesThatABadAllocPassesThroughCancelAndJoin) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Event never;
    for (const bool is_owner_cancelled : {false, true}) {
      int ended = 0;
      bool is_caught = false;
      auto owner = fiber::Spawn([&] {
        try {
          fiber::Scope outer;
          fiber::Scope scope;
          scope.Go([&] { ended += IsEnded(never); });
          auto handle = fiber::Spawn([&] { ended += IsEnded(never); });
          if (is_owner_cancelled) ended += IsEnded(never);
          fiber::Yield();
          is_everything_refused = true;
          throw std::bad_alloc();
        } catch (const std::bad_alloc&) {
          is_everything_refused = false;
          is_caught = true;
        }
      });
      for (int i = 0; i < 3; ++i) fiber::Yield();
      if (is_owner_cancelled) owner.Cancel(absl::InternalError("why, in a status of its own"));
      owner.Join();
      EXPECT_TRUE(is_caught);
      EXPECT_EQ(ended, is_owner_cancelled ? 3 : 2);
    }
  });
}

TEST(NoMemoryTest, AChildThatFailsForWantOfMemoryFailsItsScope) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Event never;
    bool is_sibling_ended = false;
    bool is_rethrown = false;
    {
      fiber::Scope scope;
      scope.Go([&] { is_sibling_ended = IsEnded(never); });
      fiber::Yield();
      scope.Go([] {
        is_everything_refused = true;
        throw std::bad_alloc();
      });
      try {
        scope.Wait().IgnoreError();
      } catch (const std::bad_alloc&) {
        is_rethrown = true;
      }
      is_everything_refused = false;
    }
    EXPECT_TRUE(is_rethrown);
    EXPECT_TRUE(is_sibling_ended);

    const absl::Status failure = absl::NotFoundError("what the child was looking for");
    fiber::Scope scope;
    scope.Go([&] {
      is_everything_refused = true;
      return failure;
    });
    const absl::Status status = scope.Wait();
    is_everything_refused = false;
    EXPECT_EQ(status, failure);
    EXPECT_TRUE(scope.failures().empty());
  });
}

TEST(NoMemoryTest, AScopeThatCouldNotBeMadeIsNotFoundThroughItsOwner) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    fiber::Event never;
    auto owner = fiber::Spawn([&] {
      EXPECT_TRUE(absl::IsCancelled(never.Wait()));
      int made = 0;
      for (int granted = 0; granted < 10; ++granted) {
        still_granted = granted;
        is_everything_refused = true;
        try {
          fiber::Scope scope;
          ++made;
        } catch (const std::bad_alloc&) {
        }
        is_everything_refused = false;
        EXPECT_EQ(fiber::internal::CallersBlock().node, nullptr) << granted;
      }
      EXPECT_GT(made, 0);
      still_granted = 0;
    });
    fiber::Yield();
    owner.Cancel(absl::InternalError("why, in a status of its own"));
    owner.Join();
  });
}

}  // namespace
