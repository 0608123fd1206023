// SPDX-License-Identifier: Apache-2.0
//
// fork() with live runtimes: what the child may do, and that the parent does not notice.
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/channel.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/mutex.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/timer.h"
#include "gtest/gtest.h"
#include "netpoll/file.h"
#include "netpoll/tcp.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/child.h"
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

// Whatever generation it is of: what a fork does to the library must leave it fit for the next.
TEST_P(ForkTest, AChildsFiberMayForkAgain) {
  Run([] {
    EXPECT_EQ(StatusOfChild([] {
                int status = -1;
                sched::Run({.workers = 2}, [&] {
                  status = StatusOfChild([] {
                    int grandchilds = -1;
                    sched::Run({.workers = 1}, [&] { grandchilds = StatusOfChild(&RunSomething); });
                    return grandchilds == 0 && RunSomething();
                  });
                });
                return status == 0 && RunSomething();
              }),
              0);
  });
}

// It is no fiber any more, and stands on the stack of one: calls of the library block the thread.
TEST_P(ForkTest, AFibersChildIsAPlainThread) {
  Run([] {
    EXPECT_EQ(StatusOfChild([] {
                fiber::Mutex mutex;
                fiber::MutexLock hold(mutex);
                fiber::Channel<int> channel;
                return fiber::CurrentId() == 0 && fiber::Sleep(absl::Milliseconds(1)).ok() &&
                       absl::IsDeadlineExceeded(channel.Receive(absl::Milliseconds(1)).status());
              }),
              0);
  });
}

// What is due goes off in the parent alone, however long the child's runtimes live. A copy of it would be run in both.
TEST_P(ForkTest, TimersOfTheParentDoNotGoOffInAChild) {
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* calls = new (memory) std::atomic<int>{0};
  auto* wakes = new (static_cast<char*>(memory) + 64) std::atomic<int>{0};
  Run([&] {
    fiber::Channel<int> rung(1);
    fiber::Timer timer(absl::Milliseconds(20), [&] {
      calls->fetch_add(1);
      EXPECT_TRUE(rung.Send(1).ok());
    });
    auto sleeper = fiber::Spawn([&] {
      EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(20)).ok());
      wakes->fetch_add(1);
    });
    WaitUntilParked(sleeper);
    EXPECT_EQ(StatusOfChild([] {
                sched::Run({.workers = 2}, [] { EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(40)).ok()); });
                return RunSomething();
              }),
              0);
    EXPECT_TRUE(rung.Receive().ok());
    sleeper.Join();
  });
  EXPECT_EQ(calls->load(), 1);
  EXPECT_EQ(wakes->load(), 1);
  munmap(memory, 4096);
}

TEST_P(ForkTest, AFibersChildHasTheSignalMaskOfWhoeverMadeTheRuntime) {
  sigset_t mine;
  sigemptyset(&mine);
  sigaddset(&mine, SIGUSR2);
  sigset_t before;
  ASSERT_EQ(pthread_sigmask(SIG_SETMASK, &mine, &before), 0);
  Run([&] {
    EXPECT_EQ(StatusOfChild([&] {
                sigset_t childs;
                if (pthread_sigmask(SIG_BLOCK, nullptr, &childs) != 0) return false;
                for (int signal = 1; signal <= SIGRTMAX; ++signal) {
                  if (sigismember(&childs, signal) != sigismember(&mine, signal)) return false;
                }
                return true;
              }),
              0);
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// Spare threads are started by threads of the library, which block nearly all signals: that is not the program's mask.
TEST_P(ForkTest, AChildOfAFiberOnASpareThreadHasThatMaskToo) {
  const auto is_term_blocked = [] {
    sigset_t signals;
    return pthread_sigmask(SIG_BLOCK, nullptr, &signals) != 0 || sigismember(&signals, SIGTERM) != 0;
  };
  for (const bool is_told : {true, false}) {  // by a worker, or by the monitor
    sched::Run({.workers = 1}, [&] {
      std::atomic<bool> has_forked{false};
      auto other = fiber::Spawn([&] {
        EXPECT_EQ(StatusOfChild([&] { return !is_term_blocked(); }), 0) << is_told;
        sigset_t mine;
        EXPECT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &mine), 0);
        for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPROF}) {
          EXPECT_EQ(sigismember(&mine, signal), 0) << signal;
        }
        has_forked = true;
      });
      const auto wait = [&] {
        while (!has_forked) usleep(1000);
      };
      if (is_told) {
        fiber::Blocking(wait);
      } else {
        wait();
      }
      other.Join();
    });
  }
}

// Whom it wakes does not run there. The lock of the queue that he would come to may be held, in the child for ever, by a thread
// that was unparking somebody when it was forked.
TEST_P(ForkTest, AChildMayReleaseWhatAFiberOfTheParentWaitsFor) {
  sched::Runtime runtime({.workers = GetParam()});
  std::atomic<bool> is_stopping{false};
  fiber::Channel<int> busy;
  auto receiver = runtime.Spawn([&] {
    for (int value : busy) (void)value;
  });
  std::thread sender([&] {  // it unparks the receiver from outside all the time
    while (!is_stopping.load(std::memory_order_relaxed)) EXPECT_TRUE(busy.Send(1).ok());
    busy.Close();
  });
  runtime
      .Spawn([] {
        fiber::Semaphore permits(0);
        auto waiter = fiber::Spawn([&] { EXPECT_TRUE(permits.Acquire().ok()); });
        WaitUntilParked(waiter);
        for (int i = 0; i < 100; ++i) {
          ASSERT_EQ(StatusOfChild([&] {
                      permits.Release();
                      return true;
                    }),
                    0)
              << "child " << i;
        }
        permits.Release();
        waiter.Join();
      })
      .Join();
  is_stopping = true;
  sender.join();
  receiver.Join();
}

// The worker's mask goes to the program, unless it is said otherwise.
TEST_P(ForkTest, AFiberMaySpawnAProgramThatSignalsReach) {
  Run([] {
    posix_spawnattr_t attributes;
    ASSERT_EQ(posix_spawnattr_init(&attributes), 0);
    sigset_t none;
    sigemptyset(&none);
    EXPECT_EQ(posix_spawnattr_setsigmask(&attributes, &none), 0);
    EXPECT_EQ(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK), 0);
    char shell[] = "sh";
    char option[] = "-c";
    char command[] = "kill -TERM $$; exit 7";
    char* const arguments[] = {shell, option, command, nullptr};
    pid_t child = -1;
    EXPECT_EQ(posix_spawn(&child, "/bin/sh", nullptr, &attributes, arguments, environ), 0);
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM) << status;
    posix_spawnattr_destroy(&attributes);
  });
}

std::unique_ptr<sched::Runtime> of_the_program;  // destroyed by exit(), in a child too

// Also what is destroyed at exit, after main(): runtimes that are not there, and whatever uses them.
TEST_P(ForkTest, AChildMayExitWhoeverForks) {
  of_the_program = std::make_unique<sched::Runtime>(sched::RuntimeOptions{.workers = GetParam()});
  auto sleeper = of_the_program->Spawn([] { return fiber::Sleep(absl::InfiniteDuration()); });
  fflush(nullptr);  // or the child writes it once more
  const auto exits = [] {
    std::exit(7);
    return false;
  };
  const int by_thread = StatusOfChild(exits);
  EXPECT_TRUE(WIFEXITED(by_thread) && WEXITSTATUS(by_thread) == 7) << by_thread;
  Run([&] {
    const int by_fiber = StatusOfChild(exits);
    EXPECT_TRUE(WIFEXITED(by_fiber) && WEXITSTATUS(by_fiber) == 7) << by_fiber;
  });
  sleeper.Cancel();
  EXPECT_TRUE(absl::IsCancelled(sleeper.Join()));
  of_the_program.reset();
}

// Its fibers would wait for ever for workers that are not there.
TEST_P(ForkTest, ASpawnOnACopyOfARuntimeEndsTheChildWithAMessage) {
  sched::Runtime runtime({.workers = GetParam()});
  const tests::ChildEnd end = tests::RunChild([&] {
    runtime.Go([] {});
    return tests::kFine;
  });
  EXPECT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGABRT) << end.status;
  EXPECT_NE(end.said.find("spawned in a child of fork(), on a runtime of the parent's"), std::string::npos) << end.said;
}

// There is nobody to go on with on its worker.
TEST_P(ForkTest, AFiberThatReturnsInAChildEndsItWithAMessage) {
  const int said = memfd_create("stderr of a child", MFD_CLOEXEC);
  ASSERT_GE(said, 0);
  const pid_t parent = getpid();
  std::atomic<int> status{-1};
  Run([&] {
    fiber::Spawn([&] {
      const pid_t child = fork();
      if (child == 0) {
        alarm(kPatienceSeconds);
        dup2(said, STDERR_FILENO);
        return;
      }
      int childs = -1;
      EXPECT_EQ(waitpid(child, &childs, 0), child);
      status = childs;
    }).Join();
  });
  ASSERT_EQ(getpid(), parent);
  EXPECT_TRUE(WIFSIGNALED(status.load()) && WTERMSIG(status.load()) == SIGABRT) << status.load();
  char text[512] = {};
  EXPECT_GT(pread(said, text, sizeof text - 1, 0), 0);
  EXPECT_NE(strstr(text, "a fiber returns in a child of fork()"), nullptr) << text;
  close(said);
}

// A child that used the parent's ring would take its completions, and the parent's fiber wait for ever.
TEST_P(ForkTest, AChildReadsFilesBesideTheParent) {
  std::string name = testing::TempDir() + "/fork_testXXXXXX";
  const int fd = mkstemp(name.data());
  ASSERT_GE(fd, 0);
  close(fd);
  const auto use = [](const netpoll::File& file) {
    const std::string data(5000, 'x');
    std::string back(5000, ' ');
    return file.Pwrite(data, 0).ok() && file.Fsync().ok() && file.Pread(back, 0).value_or(0) == data.size() &&
           back == data;
  };
  Run([&] {
    const netpoll::File file = netpoll::File::Open(name, {.write = true}).value();
    EXPECT_TRUE(use(file));
    auto other = fiber::Spawn([&] {
      for (int i = 0; i < 50; ++i) EXPECT_TRUE(use(file));
    });
    EXPECT_EQ(StatusOfChild([&] {
                return use(file) && sched::Run({.workers = 2}, [&] { return use(file); }) &&
                       netpoll::ReadFile(name, 10'000).value().size() == 5000;
              }),
              0);
    EXPECT_TRUE(use(file));
    other.Join();
  });
  unlink(name.c_str());
}

}  // namespace
}  // namespace netpoll_test
