// SPDX-License-Identifier: Apache-2.0
//
// Reading and writing do not allocate.
#include <cstdlib>
#include <new>

#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/internal/atomic.h"
#include "gtest/gtest.h"
#include "netpoll/tcp.h"
#include "tests/netpoll/sockets.h"

namespace {
fiber::internal::Atomic<size_t> allocations{0};

void* Allocate(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = malloc(size); memory != nullptr) return memory;
  throw std::bad_alloc();
}
}  // namespace

// Not inlined, or g++ sees malloc and free where it expects new and delete.
__attribute__((noinline)) void* operator new(size_t size) { return Allocate(size); }
__attribute__((noinline)) void* operator new[](size_t size) { return Allocate(size); }
__attribute__((noinline)) void operator delete(void* memory) noexcept { free(memory); }
__attribute__((noinline)) void operator delete[](void* memory) noexcept { free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { free(memory); }
__attribute__((noinline)) void operator delete[](void* memory, size_t) noexcept { free(memory); }

namespace netpoll_test {
namespace {

TEST(AllocationTest, AThousandEchoesAllocateNextToNothing) {
  for (const int workers : {1, 2}) {
    // A spare worker, on a busy machine, is no echo's.
    sched::Run({.workers = workers, .max_threads = workers}, [] {
      StreamPair pair = Connected();
      auto echo = fiber::Spawn([&] {
        char buffer[64];
        for (;;) {
          const auto n = pair.server.Read(buffer);
          if (!n.ok() || !pair.server.Write({buffer, *n}).ok()) return;
        }
      });
      const auto round = [&] {
        char buffer[64] = {};
        ASSERT_TRUE(pair.client.Write({buffer, sizeof buffer}).ok());
        ASSERT_TRUE(netpoll::ReadFull(pair.client, buffer).ok());
        pair.client.SetReadDeadline(absl::Hours(1));
        iovec piece{buffer, sizeof buffer};
        ASSERT_TRUE(pair.client.Writev({&piece, 1}).ok());
        ASSERT_TRUE(netpoll::ReadFull(pair.client, buffer, absl::Hours(1)).ok());
      };
      for (int i = 0; i < 100; ++i) round();
      const size_t before = allocations.load(std::memory_order_relaxed);
      for (int i = 0; i < 1000; ++i) round();
      // Not each time: the arrays of the timer wheel may grow.
      EXPECT_LT(allocations.load(std::memory_order_relaxed) - before, 20u);
      pair.client.Close();
      echo.Join();
    });
  }
}

}  // namespace
}  // namespace netpoll_test
