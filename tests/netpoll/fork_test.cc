// SPDX-License-Identifier: Apache-2.0
//
// fork() with live runtimes: what the child may do, and that the parent does not notice.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/tcp.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

class ForkTest : public SocketTest {};
INSTANTIATE_SOCKET_TEST(ForkTest);

constexpr unsigned kPatienceSeconds = 20;  // then a child that hangs is killed

// What waitpid() says of a child that runs `body` and ends by its result: 0 if it was true.
int StatusOfChild(absl::FunctionRef<bool()> body) {
  const bool had_failure = testing::Test::HasFailure();
  const pid_t child = fork();
  if (child == 0) {
    alarm(kPatienceSeconds);  // whose signal a fiber's child no longer blocks
    _exit(body() && testing::Test::HasFailure() == had_failure ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

// A runtime as any other: threads, parks, timers, spawns without a name of the runtime, sockets.
bool RunSomething() {
  sched::Run({.workers = 2}, [] {
    fiber::Mutex mutex;
    int count = 0;
    std::vector<fiber::JoinHandle<void>> fibers;
    for (int i = 0; i < 200; ++i) {
      fibers.push_back(fiber::Spawn({.name = "child's"}, [&] {
        EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
        mutex.lock();
        ++count;
        mutex.unlock();
      }));
    }
    for (auto& fiber : fibers) fiber.Join();
    EXPECT_EQ(count, 200);
    StreamPair pair = Connected();
    auto echo = fiber::Spawn([&] { return Drain(pair.server); });
    EXPECT_TRUE(pair.client.Write("hello").ok());
    pair.client.Close();
    EXPECT_EQ(echo.Join(), 5u);
  });
  sched::Runtime runtime({.workers = 1});
  int answer = 0;
  std::atomic<bool> is_done{false};
  fiber::Go([&] {  // the one runtime there is
    answer = 42;
    is_done.store(true, std::memory_order_release);
  });
  while (!is_done.load(std::memory_order_acquire)) std::this_thread::yield();
  return answer == 42;
}

// Without its place in the parent's runtime given up, a park in the child runs the parent's fibers there a second time, and
// takes events from the epoll instance they share.
TEST_P(ForkTest, AFibersChildHasARuntimeOfItsOwnAndRunsNoneOfTheParentsFibers) {
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* runs = new (memory) std::atomic<int>{0};
  constexpr int kFibers = 20;
  Run([&] {
    StreamPair pair = Connected();
    auto reader = fiber::Spawn([&] { return Drain(pair.server); });
    std::vector<fiber::JoinHandle<void>> fibers;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(fiber::Spawn([&] {
        for (int round = 0; round < 10; ++round) fiber::Yield();
        runs->fetch_add(1);
      }));
    }
    EXPECT_EQ(StatusOfChild(&RunSomething), 0);
    for (auto& fiber : fibers) fiber.Join();
    EXPECT_TRUE(pair.client.Write("still here").ok());
    pair.client.Close();
    EXPECT_EQ(reader.Join(), 10u);
  });
  EXPECT_EQ(runs->load(), kFibers);
  munmap(memory, 4096);
}

// A lock that another thread holds at that moment is held for ever in the child, unless the fork waits for it.
TEST_P(ForkTest, AThreadsChildHasARuntimeOfItsOwnWhateverTheOthersWereDoing) {
  sched::Runtime runtime({.workers = GetParam()});
  std::atomic<bool> is_stopping{false};
  std::vector<fiber::JoinHandle<void>> spawners;
  for (int i = 0; i < 4; ++i) {
    spawners.push_back(runtime.Spawn([&is_stopping] {
      while (!is_stopping.load(std::memory_order_relaxed)) {
        std::vector<fiber::JoinHandle<int>> children;
        for (int k = 0; k < 300; ++k) children.push_back(fiber::Spawn({.name = "busy"}, [k] { return k; }));
        for (int k = 0; k < 300; ++k) EXPECT_EQ(children[static_cast<size_t>(k)].Join(), k);
      }
    }));
  }
  std::thread walker([&] {  // of one record at a time: it has the lock of the slab most of the time
    while (!is_stopping.load(std::memory_order_relaxed)) {
      (void)fiber::internal::VisitRecords(0, 1, [](fiber::internal::Record&) { return true; });
    }
  });
  for (int i = 0; i < 5; ++i) EXPECT_EQ(StatusOfChild(&RunSomething), 0) << "child " << i;
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(StatusOfChild([] { return fiber::internal::CountRecordsInUse() > 0; }), 0) << "child " << i;
  }
  is_stopping.store(true, std::memory_order_relaxed);
  walker.join();
  for (auto& each : spawners) each.Join();
}

// Workers block the signals that are meant for threads of the program's own: a program that a child becomes would never see
// a SIGTERM.
TEST_P(ForkTest, AFibersChildMayBecomeAnotherProgramThatSignalsReach) {
  Run([] {
    const int status = StatusOfChild([] {
      execl("/bin/sh", "sh", "-c", "kill -TERM $$; exit 7", nullptr);
      return false;
    });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
    EXPECT_EQ(StatusOfChild([] { return true; }), 0);
  });
}

// The workers that would end its fibers are not there: without a look at the process, a child that destroys its copy waits
// until the drain deadline, and then aborts.
TEST_P(ForkTest, AChildMayDestroyItsCopyOfARuntime) {
  auto runtime = std::make_unique<sched::Runtime>(sched::RuntimeOptions{.workers = GetParam()});
  auto sleeper = runtime->Spawn([] { return fiber::Sleep(absl::InfiniteDuration()); });
  EXPECT_EQ(StatusOfChild([&] {
              const bool is_refused = absl::IsFailedPrecondition(runtime->Shutdown(fiber::Deadline::Never()));
              runtime.reset();
              return is_refused;
            }),
            0);
  EXPECT_FALSE(sleeper.is_done());
  sleeper.Cancel();
  EXPECT_TRUE(absl::IsCancelled(sleeper.Join()));
}

}  // namespace
}  // namespace netpoll_test
