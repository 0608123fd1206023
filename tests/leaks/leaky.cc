// SPDX-License-Identifier: Apache-2.0
//
// Tests that leave something behind, each of another kind, and some that do not: leaks_test.py sees which of them fail.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/stack_pool.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace {

// Kept where LeakSanitizer finds it, and ended by nobody: the process exits under them.
struct Kept {
  fiber::JoinHandle<int> ended;
  std::optional<sched::Runtime> runtime;
  fiber::Event never;
  std::thread thread;
};
Kept& kept = *new Kept;

TEST(LeakyTest, Nothing) {
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  void* page = mmap(nullptr, 12345, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  std::thread([] {}).join();
  sched::Run({.workers = 2}, [] { fiber::Spawn([] { fiber::Yield(); }).Join(); });
  munmap(page, 12345);
  close(fd);
}

TEST(LeakyTest, Descriptor) { EXPECT_GE(open("/dev/zero", O_RDONLY | O_CLOEXEC), 0); }

TEST(LeakyTest, NothingMore) {}

TEST(LeakyTest, AnothersDescriptor) { EXPECT_EQ(close(STDIN_FILENO), 0); }

TEST(LeakyTest, Mapping) {
  EXPECT_NE(mmap(nullptr, 12345, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), MAP_FAILED);
}

TEST(LeakyTest, Record) {
  sched::Runtime runtime({.workers = 1});
  kept.ended = runtime.Spawn({.name = "ended"}, [] { return 1; });
}

TEST(LeakyTest, Stack) {
  absl::Status why;
  EXPECT_NE(fiber::internal::StackDepot::Get().Take(fiber::internal::StackClass::k64KiB, 1, &why), nullptr) << why;
}

TEST(LeakyTest, Thread) {
  std::atomic<bool> is_running{false};
  kept.thread = std::thread([&is_running] {
    is_running.store(true);
    for (;;) pause();
  });
  while (!is_running.load()) std::this_thread::yield();
}

TEST(LeakyTest, FiberThatIsParked) {
  kept.runtime.emplace(sched::RuntimeOptions{.workers = 1});
  std::atomic<bool> is_running{false};
  kept.runtime->Go({.name = "parked"}, [&is_running] {
    is_running.store(true);
    (void)kept.never.Wait();
  });
  while (!is_running.load()) std::this_thread::yield();
}

TEST(LeakyTest, NothingInTheEnd) {}

}  // namespace
