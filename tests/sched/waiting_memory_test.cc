// SPDX-License-Identifier: Apache-2.0
//
// Waiting allocates nothing, and a hundred thousand waits leave nothing behind.
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/atomic.h"
#include "fiber/mutex.h"
#include "fiber/scope.h"
#include "fiber/select.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "tests/scale.h"

namespace {
fiber::internal::Atomic<int64_t> allocations{0};
fiber::internal::Atomic<int64_t> in_use{0};

void* Allocate(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  in_use.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = malloc(size); memory != nullptr) return memory;
  throw std::bad_alloc();
}
void Free(void* memory) {
  if (memory != nullptr) in_use.fetch_sub(1, std::memory_order_relaxed);
  free(memory);
}
}  // namespace

// Not inlined, or g++ sees malloc and free where it expects new and delete.
__attribute__((noinline)) void* operator new(size_t size) { return Allocate(size); }
__attribute__((noinline)) void* operator new[](size_t size) { return Allocate(size); }
__attribute__((noinline)) void operator delete(void* memory) noexcept { Free(memory); }
__attribute__((noinline)) void operator delete[](void* memory) noexcept { Free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { Free(memory); }
__attribute__((noinline)) void operator delete[](void* memory, size_t) noexcept { Free(memory); }

namespace sched_test {
namespace {

using fiber::Channel;
using fiber::Event;
using fiber::OnCancel;
using fiber::OnDeadline;
using fiber::OnEvent;
using fiber::OnReceive;
using fiber::OnSend;
using fiber::Select;

int64_t Allocations() { return allocations.load(std::memory_order_relaxed); }
int64_t InUse() { return in_use.load(std::memory_order_relaxed); }

// How often `round` allocates in a thousand, once it has warmed up. Not never: the arrays of the timer wheel may grow.
// `what`, and no SCOPED_TRACE: that is the thread's, which a fiber may leave.
template <class F>
void ExpectNextToNoAllocation(const char* what, F round) {
  for (int i = 0; i < 100; ++i) round();
  const int64_t before = Allocations();
  for (int i = 0; i < 1000; ++i) round();
  EXPECT_LT(Allocations() - before, 20) << what;
}

TEST(WaitingMemoryTest, WaitingAllocatesNothing) {
  for (const int workers : {1, 2}) {
    // No spare workers: one allocates when it is made, on a busy machine in the middle.
    sched::Run({.workers = workers, .max_threads = workers}, [] {
      Channel<int> there;
      Channel<int> back;
      Channel<int> never;
      Event no_event;
      fiber::CancelSource no_cancel;
      const fiber::CancelToken token = no_cancel.token();
      auto echo = fiber::Spawn([&] {
        for (int n : there) {
          if (!back.Send(n).ok()) return;
        }
      });
      {
        ExpectNextToNoAllocation("a rendezvous", [&] {
          ASSERT_TRUE(there.Send(1).ok());
          ASSERT_TRUE(back.Receive().ok());
        });
      }
      {
        ExpectNextToNoAllocation("a select of everything, with a timeout", [&] {
          ASSERT_TRUE(Select(OnSend(there, 2, [] {})).ok());
          ASSERT_TRUE(Select(OnReceive(back, [](int) {}), OnReceive(never, [](int) {}),
                             OnSend(never, 3, [] {}), OnEvent(no_event, [] {}),
                             OnDeadline(absl::Hours(1), [] {}), OnCancel(token, [] {}))
                          .ok());
        });
      }
      {
        fiber::Mutex mutex;
        fiber::Semaphore turns(0);
        fiber::Event stop;
        auto rival = fiber::Spawn([&] {
          while (turns.Acquire().ok() && !stop.is_set()) {
            mutex.lock();
            fiber::Yield();
            mutex.unlock();
          }
        });
        ExpectNextToNoAllocation("a lock that is held", [&] {
          turns.Release();
          fiber::Yield();
          mutex.lock();
          mutex.unlock();
        });
        stop.Set();
        turns.Release();
        rival.Join();
      }
      there.Close();
      echo.Join();
    });
  }
}

// Go's test of this is called select2: each select that leaves a waiter behind would show in memory.
TEST(WaitingMemoryTest, AHundredThousandSelectsTimeoutsAndCancelsLeaveMemoryWhereItWas) {
  static constexpr int kRounds = tests::Scaled(100'000);
  sched::Run({.workers = 2}, [] {
    Channel<int> busy;
    Channel<int> idle;
    Channel<int> never;
    Event no_event;
    std::optional<int64_t> before;
    const auto all = [&] {
      auto feeder = fiber::Spawn([&] {
        for (int i = 0; i < kRounds; ++i) ASSERT_TRUE(busy.Send(i).ok());
      });
      for (int i = 0; i < kRounds; ++i) {
        ASSERT_TRUE(Select(OnReceive(busy, [](int) {}), OnReceive(idle, [](int) {}),
                           OnSend(never, 1, [] {}), OnEvent(no_event, [] {}))
                        .ok());
      }
      feeder.Join();
      for (int i = 0; i < kRounds; ++i) {
        ASSERT_TRUE(absl::IsDeadlineExceeded(idle.Receive(absl::Nanoseconds(100)).status()));
      }
      fiber::Event gone;
      auto waits = fiber::Spawn([&] {
        for (int i = 0; i < kRounds / 10; ++i) {
          fiber::Scope scope;
          auto child = scope.Spawn([&] { return idle.Receive().status(); });
          fiber::Yield();
          scope.Cancel();
          ASSERT_TRUE(absl::IsCancelled(child.Join()));
          ASSERT_TRUE(scope.Wait().ok());
        }
        fiber::CancelSource stop;
        for (int i = 0; i < kRounds / 10; ++i) {
          ASSERT_TRUE(Select(OnCancel(stop.token(), [] {}), OnReceive(idle, [](int) {}),
                             OnDeadline(absl::Nanoseconds(100), [] {}))
                          .ok());
        }
      });
      waits.Join();
    };
    all();  // the wheel's arrays, records and stacks are there now
    before = InUse();
    all();
    // The first round has grown all that grows with the load; beyond it only what the schedule may need once more.
    EXPECT_LT(InUse() - *before, 100);
  });
}

}  // namespace
}  // namespace sched_test
