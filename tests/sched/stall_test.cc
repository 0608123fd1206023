// SPDX-License-Identifier: Apache-2.0
//
// Fibers that keep their worker to themselves, and the others that go on: by counts, since no clock is judged. A stall that
// nobody relieves makes these tests hang.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "sched/stall.h"
#include "tests/child.h"
#include "tests/scale.h"

namespace {

// What stalls tell, and a way to wait for one.
class Stalls {
 public:
  std::function<void(const sched::Stall&)> hook() {
    return [this](const sched::Stall& stall) {
      std::lock_guard hold(mutex_);
      all_.push_back(stall);
    };
  }
  std::vector<sched::Stall> all() {
    std::lock_guard hold(mutex_);
    return all_;
  }

 private:
  std::mutex mutex_;
  std::vector<sched::Stall> all_;
};

// Goes on when the sleeper has come by so many times more: it cannot while everybody is held up.
class Heartbeat {
 public:
  explicit Heartbeat(sched::Runtime& runtime)
      : fiber_(runtime.Spawn({.name = "heartbeat"}, [this] {
          while (fiber::Sleep(absl::Milliseconds(1)).ok()) beats_.fetch_add(1);
        })) {}
  void AwaitSpinning(int count) {
    const int until = beats_.load() + count;
    while (beats_.load() < until) {
    }
  }

 private:
  std::atomic<int> beats_{0};
  fiber::JoinHandle<void> fiber_;
};

class StallTest : public testing::TestWithParam<int> {};

TEST_P(StallTest, FibersThatComputeOnEveryWorkerLeaveTheOthersTheirTurn) {
  Stalls stalls;
  sched::Runtime runtime({.workers = GetParam(), .on_stall = stalls.hook()});
  {
    Heartbeat heartbeat(runtime);
    std::vector<fiber::JoinHandle<void>> hogs;
    for (int i = 0; i < GetParam(); ++i) {
      hogs.push_back(runtime.Spawn({.name = "hog"}, [&] { heartbeat.AwaitSpinning(3); }));
    }
    for (auto& hog : hogs) hog.Join();
  }
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
  // A thread for each that held up others, and one that is prepared for the next. On a busy machine any thread may have held
  // them up; those that seem to block may get several.
  const auto stats = runtime.stats();
  if (stats.stalls_blocked == 0) {
    EXPECT_LE(stats.threads, GetParam() + static_cast<int>(stats.stalls_spinning) + 1);
  }
}

TEST_P(StallTest, FibersThatBlockOnEveryWorkerLeaveTheOthersTheirTurn) {
  constexpr int kBlockers = 64;
  sched::Runtime runtime({.workers = GetParam()});
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  std::vector<fiber::JoinHandle<void>> blockers;
  for (int i = 0; i < kBlockers; ++i) {
    blockers.push_back(runtime.Spawn([&] {
      char byte;
      EXPECT_EQ(read(ends[0], &byte, 1), 1);
    }));
  }
  // Behind all of them.
  runtime.Spawn([&] { EXPECT_EQ(write(ends[1], std::string(kBlockers, 'x').data(), kBlockers), kBlockers); }).Join();
  for (auto& blocker : blockers) blocker.Join();
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
  close(ends[0]);
  close(ends[1]);
}

TEST_P(StallTest, AMutexOfThreadsThatIsHeldByABlockedFiberIsWaitedForWithoutHoldingUpItsHolder) {
  sched::Runtime runtime({.workers = GetParam()});
  std::mutex mutex;
  fiber::Event is_held;
  std::atomic<bool> may_go{false};
  auto holder = runtime.Spawn([&] {
    std::lock_guard hold(mutex);
    is_held.Set();
    while (!may_go.load()) {
      const timespec nap{.tv_sec = 0, .tv_nsec = 1'000'000};
      nanosleep(&nap, nullptr);
    }
  });
  std::vector<fiber::JoinHandle<void>> waiters;
  for (int i = 0; i < GetParam() + 2; ++i) {
    waiters.push_back(runtime.Spawn([&] {
      EXPECT_TRUE(is_held.Wait().ok());
      std::lock_guard hold(mutex);
    }));
  }
  runtime.Spawn([&] { may_go.store(true); }).Join();
  holder.Join();
  for (auto& waiter : waiters) waiter.Join();
}

TEST_P(StallTest, WhatAFiberUnparksBeforeItComputesIsRunMeanwhile) {
  sched::Runtime runtime({.workers = GetParam()});
  fiber::Event unparked;
  std::atomic<bool> has_run{false};
  auto waiter = runtime.Spawn([&] {
    EXPECT_TRUE(unparked.Wait().ok());
    has_run.store(true);
  });
  runtime
      .Spawn([&] {
        fiber::Yield();
        unparked.Set();
        while (!has_run.load()) {
        }
        fiber::Go([&] { has_run.store(false); });  // and what it starts
        while (has_run.load()) {
        }
      })
      .Join();
  waiter.Join();
}

TEST_P(StallTest, TimersThatFallDueWhileAllComputeAreExpired) {
  sched::Runtime runtime({.workers = GetParam()});
  std::atomic<int> woken{0};
  std::vector<fiber::JoinHandle<void>> fibers;
  for (int i = 0; i < 100; ++i) {
    fibers.push_back(runtime.Spawn([&, i] {
      EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100 * i)).ok());
      woken.fetch_add(1);
    }));
  }
  for (int i = 0; i < GetParam(); ++i) {
    fibers.push_back(runtime.Spawn([&] {
      while (woken.load() < 100) {
      }
    }));
  }
  for (auto& fiber : fibers) fiber.Join();
}

// Whatever a fiber does, and whoever stands, rests or is called meanwhile, each message comes once.
TEST_P(StallTest, FibersThatComputeAndBlockAtRandomLoseNothing) {
  constexpr int kFibers = 24;
  const int rounds = tests::Scaled(60);
  sched::Runtime runtime({.workers = GetParam(), .stall_after = absl::Milliseconds(1), .on_stall = [](const sched::Stall&) {}});
  fiber::Channel<int> messages(4);
  std::atomic<int64_t> received{0};
  std::vector<fiber::JoinHandle<void>> fibers;
  for (int i = 0; i < kFibers; ++i) {
    fibers.push_back(runtime.Spawn([&, i] {
      std::minstd_rand random(static_cast<unsigned>(i + 1));
      for (int round = 0; round < rounds; ++round) {
        const auto length = std::chrono::microseconds(random() % 1500);
        switch (random() % 8) {
          case 0: {
            const auto end = std::chrono::steady_clock::now() + length;
            while (std::chrono::steady_clock::now() < end) fiber::MaybeYield();
            break;
          }
          case 1: {
            const auto end = std::chrono::steady_clock::now() + length;
            while (std::chrono::steady_clock::now() < end) {
            }
            break;
          }
          case 2:
            std::this_thread::sleep_for(length);
            break;
          case 3:
            fiber::Blocking([&] { std::this_thread::sleep_for(length / 4); });
            break;
          case 4: {
            fiber::NoMigrate stay;
            EXPECT_TRUE(fiber::Sleep(length / 8).ok());
            break;
          }
          case 5:
            EXPECT_TRUE(fiber::Sleep(length / 8).ok());
            break;
          case 6:
            fiber::Spawn([] { fiber::Yield(); }).Join();
            break;
          default:
            fiber::Yield();
        }
        if (i % 2 == 0) {
          EXPECT_TRUE(messages.Send(1).ok());
        } else {
          received.fetch_add(messages.Receive().value());
        }
      }
    }));
  }
  for (auto& fiber : fibers) fiber.Join();
  EXPECT_EQ(received.load(), int64_t{kFibers} / 2 * rounds);
  EXPECT_TRUE(runtime.Shutdown(absl::Seconds(60)).ok());
}

INSTANTIATE_TEST_SUITE_P(Workers, StallTest, testing::Values(1, 2, 3));

void Nap(std::chrono::milliseconds length) { std::this_thread::sleep_for(length); }

// Who has been seen to block is given way to beforehand from then on.
TEST_P(StallTest, AFiberThatBlocksAgainAndAgainIsMadeToStandOnce) {
  constexpr int kRounds = 30;
  sched::Runtime runtime({.workers = GetParam(), .stall_after = absl::Seconds(100)});
  std::atomic<int> others{0};
  std::atomic<bool> has_ended{false};
  auto busy = runtime.Spawn([&] {
    while (!has_ended) {
      ++others;
      fiber::Yield();
    }
  });
  std::vector<fiber::JoinHandle<void>> blockers;
  for (int i = 0; i < GetParam(); ++i) {
    blockers.push_back(runtime.Spawn([&] {
      for (int round = 0; round < kRounds; ++round) {
        // By a timer, so not as one that another fiber unparks.
        EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());
        const int until = others + 2;
        while (others < until) Nap(std::chrono::milliseconds(1));
      }
    }));
  }
  for (auto& blocker : blockers) blocker.Join();
  has_ended = true;
  busy.Join();
  // Each once, and again if it had just gone on when it was to be remembered.
  EXPECT_LE(runtime.stats().stalls_blocked, static_cast<uint64_t>(GetParam()) * kRounds / 3);
}

// The first time it is made to stand; the next times it is given way to, and seen by how long that lasts.
TEST(StallReportTest, ABlockerThatBlocksForLongIsToldOfThoughItHoldsUpNobody) {
  Stalls stalls;
  sched::Runtime runtime({.workers = 1, .on_stall = stalls.hook()});
  std::atomic<bool> has_ended{false};
  auto busy = runtime.Spawn([&] {
    while (!has_ended) fiber::Yield();
  });
  runtime.Spawn({.name = "blocker"}, [&] {
    while (runtime.stats().stalls_blocked < 3 || stalls.all().empty()) {  // it may go on before it is told of
      EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());
      const uint64_t before = runtime.stats().stalls_blocked;
      while (runtime.stats().stalls_blocked == before) Nap(std::chrono::milliseconds(20));
    }
  }).Join();
  has_ended = true;
  busy.Join();
  ASSERT_GE(stalls.all().size(), 1u);
  EXPECT_EQ(stalls.all()[0].name, "blocker");
}

TEST(StallReportTest, AFiberThatBlockedAndNowComputesIsNoBlockerAnyMore) {
  sched::Runtime runtime({.workers = 1});
  std::atomic<bool> has_ended{false};
  auto busy = runtime.Spawn([&] {
    while (!has_ended) fiber::Yield();
  });
  runtime
      .Spawn([&] {
        const fiber::internal::Record& self = *fiber::internal::ThisThread().current;
        while (!self.is_blocker()) {
          Nap(std::chrono::milliseconds(20));
          fiber::Yield();
        }
        while (self.is_blocker()) {  // for ever, if its turns count as blocked
          const int64_t enough = fiber::internal::ThreadCpuNs() + 1'000'000;
          while (fiber::internal::ThreadCpuNs() < enough) {
          }
          fiber::Yield();
        }
      })
      .Join();
  has_ended = true;
  busy.Join();
}

// What the child has said until now.
std::string SaidHere() {
  std::string said(size_t{1} << 16, '\0');
  const ssize_t n = pread(STDERR_FILENO, said.data(), said.size(), 0);
  said.resize(n < 0 ? 0 : static_cast<size_t>(n));
  return said;
}

TEST(StallReportTest, WithoutAHookTheLogTellsOfASpawnSiteOnceAndOfNoneIfItIsNotToBe) {
#ifdef WEFT_TSAN
  GTEST_SKIP() << "ThreadSanitizer takes a child's threads for its parent's";
#endif
  for (const bool is_wanted : {true, false}) {
    std::string said;
    tests::InChild(
        [is_wanted] {
          setenv("WEFT_STALL_LOG", is_wanted ? "1" : "0", 1);
          sched::Runtime runtime({.workers = 1});
          Heartbeat heartbeat(runtime);
          for (int hog = 0; hog < 2; ++hog) {
            runtime
                .Spawn({.name = "hog"},
                       [&] {
                         const uint64_t before = runtime.stats().stalls_spinning;
                         if (is_wanted && hog == 0) {
                           while (SaidHere().find("has kept its worker") == std::string::npos) {
                           }
                         } else {
                           while (runtime.stats().stalls_spinning == before) {
                           }
                           const int64_t enough = fiber::internal::ThreadCpuNs() + 20'000'000;
                           while (fiber::internal::ThreadCpuNs() < enough) {
                           }
                         }
                       })
                .Join();
          }
          return tests::kFine;
        },
        &said);
    EXPECT_EQ(tests::CountIn(said, "has kept its worker"), is_wanted ? 1 : 0) << said;
    if (is_wanted) EXPECT_NE(said.find("'hog' (spawned at"), std::string::npos) << said;
  }
}

TEST(StallReportTest, SaysWhichFiberComputesAndWhere) {
  Stalls stalls;
  {
    sched::Runtime runtime({.workers = 1, .on_stall = stalls.hook()});
    Heartbeat heartbeat(runtime);
    runtime
        .Spawn({.name = "digest"},
               [&] {
                 while (stalls.all().empty()) {
                 }
               })
        .Join();
  }
  ASSERT_FALSE(stalls.all().empty());
  const sched::Stall stall = stalls.all()[0];
  EXPECT_EQ(stall.kind, sched::Stall::Kind::kSpinning);
  EXPECT_EQ(stall.name, "digest");
  EXPECT_NE(std::string(stall.site.file_name()).find("stall_test.cc"), std::string::npos);
  EXPECT_GE(stall.duration, absl::Milliseconds(10));
  std::string said;  // in a child, since whoever looks up symbols keeps the program open
  tests::InChild(
      [&] {
        fputs(stall.ToString().c_str(), stderr);
        return tests::kFine;
      },
      &said);
  EXPECT_NE(said.find("it computes"), std::string::npos) << said;
}

TEST(StallReportTest, SaysWhichFiberBlocksWithoutEndingItsSystemCall) {
  Stalls stalls;
  {
    sched::Runtime runtime({.workers = 1, .on_stall = stalls.hook()});
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    auto blocked = runtime.Spawn({.name = "reader"}, [&] {
      pollfd polled{.fd = ends[0], .events = POLLIN, .revents = 0};
      EXPECT_EQ(poll(&polled, 1, -1), 1);  // not EINTR
    });
    runtime
        .Spawn([&] {
          while (stalls.all().empty()) EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
          EXPECT_EQ(write(ends[1], "x", 1), 1);
        })
        .Join();
    blocked.Join();
    close(ends[0]);
    close(ends[1]);
  }
  ASSERT_FALSE(stalls.all().empty());
  EXPECT_EQ(stalls.all()[0].kind, sched::Stall::Kind::kBlocked);
  EXPECT_EQ(stalls.all()[0].name, "reader");
}

TEST(StallReportTest, ParkedYieldingAndAnnouncedFibersAreNoStalls) {
  Stalls stalls;
  {
    sched::Runtime runtime({.workers = 1, .on_stall = stalls.hook()});
    std::atomic<bool> has_ended{false};
    auto announced = runtime.Spawn({.name = "announced"}, [&] {
      fiber::Blocking([&] {
        Nap(std::chrono::milliseconds(100));
        has_ended.store(true);
      });
    });
    auto parked = runtime.Spawn({.name = "parked"}, [&] { announced.Join(); });
    auto yields = runtime.Spawn({.name = "yields"}, [&] {
      while (!has_ended.load()) fiber::Yield();
    });
    yields.Join();
    parked.Join();
  }
  for (const sched::Stall& stall : stalls.all()) {
    EXPECT_EQ(stall.name, "yields") << "which may lose its CPU for as long as a stall takes";
  }
}

TEST(StallLimitTest, WithoutSpareThreadsTheOthersWait) {
  sched::Runtime runtime({.workers = 1, .max_threads = 1});
  std::atomic<int> beats{0};
  auto sleeper = runtime.Spawn([&] {
    while (fiber::Sleep(absl::Microseconds(100)).ok()) beats.fetch_add(1);
  });
  runtime
      .Spawn([&] {
        fiber::Yield();
        const int before = beats.load();
        const fiber::Deadline end = absl::Milliseconds(30);
        while (!end.is_past()) {
        }
        EXPECT_EQ(beats.load(), before);
      })
      .Join();
  sleeper.Cancel();
  sleeper.Join();
  EXPECT_EQ(runtime.stats().threads, 1);
}

TEST(StallLimitTest, WithoutSpareThreadsWhoHoldsUpAllOthersIsToldOf) {
  Stalls stalls;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const auto tell = stalls.hook();
  const auto hook = [&](const sched::Stall& stall) {
    tell(stall);
    if (stall.name == "reader") EXPECT_EQ(write(ends[1], "x", 1), 1);
  };
  {
    sched::Runtime runtime({.workers = 1, .max_threads = 1, .on_stall = hook});
    Heartbeat heartbeat(runtime);
    runtime.Spawn({.name = "hog"}, [&] {
      while (stalls.all().empty()) {
      }
    }).Join();
    runtime.Spawn({.name = "reader"}, [&] {
      char byte;
      EXPECT_EQ(read(ends[0], &byte, 1), 1);
    }).Join();
    EXPECT_EQ(runtime.stats().threads, 1);
  }
  bool is_reader_told_of = false;
  for (const sched::Stall& stall : stalls.all()) {
    if (stall.name != "reader") continue;
    is_reader_told_of = true;
    EXPECT_EQ(stall.kind, sched::Stall::Kind::kBlocked);
  }
  EXPECT_TRUE(is_reader_told_of);
  close(ends[0]);
  close(ends[1]);
}

TEST(StallLimitTest, WithoutSpareThreadsThoseWhoGoOnTakeWhatWaitsBehindOneWhoStays) {
  sched::Runtime runtime({.workers = 2, .max_threads = 2});
  std::atomic<bool> is_over{false};
  std::atomic<int> turns[2] = {};
  std::vector<fiber::JoinHandle<void>> yielders;
  for (std::atomic<int>& mine : turns) {
    yielders.push_back(runtime.Spawn([&] {
      for (; !is_over; fiber::Yield()) mine.fetch_add(1);
    }));
  }
  std::atomic<bool> has_run{false};
  runtime
      .Spawn([&] {
        // Until both are on the other worker, which is never idle then, so it looks for nobody.
        auto go_on = [&](int before0, int before1) {
          for (const fiber::Deadline end = absl::Milliseconds(2); !end.is_past();) {
          }
          return turns[0] > before0 && turns[1] > before1;
        };
        while (!go_on(turns[0], turns[1])) fiber::Yield();
        auto waits = fiber::Spawn([&] { has_run = true; });
        const fiber::Deadline end = absl::Seconds(20);
        while (!has_run && !end.is_past()) {
        }
        EXPECT_TRUE(has_run);
        waits.Join();
      })
      .Join();
  is_over = true;
  for (auto& yielder : yielders) yielder.Join();
}

std::atomic<bool> are_threads_refused{false};

int CreateThreadUnlessRefused(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  return are_threads_refused.load() ? EAGAIN : pthread_create(thread, attributes, run, argument);
}

// The only worker is held up by a fiber that waits for another, and no thread can be had for some time.
TEST(StallLimitTest, TheOthersGoOnWhenThreadsCanBeHadAgain) {
  fiber::internal::SystemCalls calls = fiber::internal::kKernel;
  calls.pthread_create = &CreateThreadUnlessRefused;
  fiber::internal::system_calls.store(&calls, std::memory_order_release);
  {
    sched::Runtime runtime({.workers = 1});
    are_threads_refused.store(true);
    std::atomic<bool> is_held_up{false};
    std::atomic<bool> has_run{false};
    auto blocked = runtime.Spawn([&] {
      fiber::Blocking([&] {
        is_held_up.store(true);
        while (!has_run.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      });
    });
    while (!is_held_up.load()) std::this_thread::yield();
    auto other = runtime.Spawn([&] { has_run.store(true); });
    // Longer than the monitor looks on before it sleeps.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    are_threads_refused.store(false);
    other.Join();
    blocked.Join();
  }
  fiber::internal::system_calls.store(&fiber::internal::kKernel, std::memory_order_release);
}

// As where the process has no descriptor left. Else any thread that lost its CPU would count as blocked. Told of it is all the same.
TEST(StallLimitTest, WithoutProcAFiberThatBlocksIsTakenForOneThatComputes) {
  fiber::internal::SystemCalls calls = fiber::internal::kKernel;
  calls.open = [](const char*, int) {
    errno = EMFILE;
    return -1;
  };
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  {
    std::atomic<bool> is_told{false};
    sched::Runtime runtime({.workers = 1, .on_stall = [&](const sched::Stall& stall) {
                              EXPECT_EQ(stall.name, "reader");
                              EXPECT_TRUE(stall.stack.empty());
                              is_told = true;
                            }});
    fiber::internal::system_calls.store(&calls, std::memory_order_release);
    runtime.Spawn({.name = "reader"}, [&] {
      auto other = fiber::Spawn([&] {
        for (int i = 0; i < 5'000 && !is_told; ++i) EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(1)).ok());
        EXPECT_TRUE(is_told);
        EXPECT_EQ(write(ends[1], "x", 1), 1);
      });
      char byte;
      EXPECT_EQ(read(ends[0], &byte, 1), 1);
      other.Join();
    }).Join();
    EXPECT_EQ(runtime.stats().stalls_blocked, 0u);
    EXPECT_GE(runtime.stats().stalls_spinning, 1u);
  }
  fiber::internal::system_calls.store(&fiber::internal::kKernel, std::memory_order_release);
  close(ends[0]);
  close(ends[1]);
}

std::atomic<bool> are_all_runnable{false};

// As a thread looks that waits for a CPU.
int OpenOrSayRunnable(const char* path, int flags) {
  if (!are_all_runnable.load() || std::string_view(path).find("/stat") == std::string_view::npos) return open(path, flags);
  const int fd = memfd_create("stat", MFD_CLOEXEC);
  EXPECT_EQ(pwrite(fd, "1 (x) R 1", 9, 0), 9);
  return fd;
}

// It blocks for good, so that what was taken for want of CPU must not be the last word.
TEST(StallLimitTest, AFiberThatSeemedToComputeIsToldOfWhenItIsFoundToBlock) {
  fiber::internal::SystemCalls calls = fiber::internal::kKernel;
  calls.open = &OpenOrSayRunnable;
  Stalls stalls;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  {
    sched::Runtime runtime({.workers = 1, .on_stall = stalls.hook()});
    are_all_runnable = true;
    fiber::internal::system_calls.store(&calls, std::memory_order_release);
    auto blocked = runtime.Spawn({.name = "reader"}, [&] {
      char byte;
      EXPECT_EQ(read(ends[0], &byte, 1), 1);
    });
    runtime
        .Spawn([&] {
          while (runtime.stats().stalls_spinning == 0) EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
          EXPECT_EQ(runtime.stats().stalls_blocked, 0u);
          are_all_runnable = false;
          while (stalls.all().empty()) EXPECT_TRUE(fiber::Sleep(absl::Microseconds(100)).ok());
          EXPECT_EQ(write(ends[1], "x", 1), 1);
        })
        .Join();
    blocked.Join();
    EXPECT_GE(runtime.stats().stalls_blocked, 1u);
  }
  fiber::internal::system_calls.store(&fiber::internal::kKernel, std::memory_order_release);
  close(ends[0]);
  close(ends[1]);
  EXPECT_EQ(stalls.all()[0].kind, sched::Stall::Kind::kBlocked);
  EXPECT_EQ(stalls.all()[0].name, "reader");
}

#if !defined(WEFT_TSAN)  // which, in a child of a process with threads, does not know what came before the fork
TEST(StallLimitTest, MoreBlockedFibersThanThreadsAreSaidOnceAndAllEnd) {
  std::string said;
  tests::InChild(
      [] {
        sched::Runtime runtime({.workers = 1, .max_threads = 4});
        int ends[2];
        if (pipe(ends) != 0) return 1;
        std::vector<fiber::JoinHandle<void>> blockers;
        std::atomic<int> begun{0};
        for (int i = 0; i < 16; ++i) {
          blockers.push_back(runtime.Spawn([&] {
            fiber::Blocking([&] {
              begun.fetch_add(1);
              char byte;
              if (read(ends[0], &byte, 1) != 1) abort();
            });
          }));
        }
        while (begun.load() < 4) std::this_thread::yield();
        if (write(ends[1], "xxxxxxxxxxxxxxxx", 16) != 16) return 2;
        for (auto& blocker : blockers) blocker.Join();
        return runtime.Shutdown(absl::Seconds(60)).ok() && begun.load() == 16 ? tests::kFine : 3;
      },
      &said);
  EXPECT_NE(said.find("RuntimeOptions::max_threads is reached"), std::string::npos) << said;
}
#endif

TEST(MaybeYieldTest, YieldsToThoseWhoWaitWhenTheSliceIsUsedUpAndNotBefore) {
  sched::Runtime runtime({.workers = 1, .max_threads = 1});
  std::atomic<bool> has_run{false};
  runtime
      .Spawn([&] {
        fiber::Go([&] { has_run.store(true); });
        fiber::MaybeYield();
        while (!has_run.load()) fiber::MaybeYield();  // ends because the monitor says so
      })
      .Join();
}

}  // namespace
