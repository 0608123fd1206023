// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/stall_probe.h"

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <source_location>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/internal/stall_log.h"
#include "sched/runtime.h"
#include "sched/stall.h"
#include "tests/child.h"
#include "tests/scale.h"

// With names that a symbol table has, and frames of their own.
#define WEFT_FRAME extern "C" __attribute__((noinline))

std::atomic<bool> stall_test_go_on{true};
std::atomic<uint64_t> stall_test_turns{0};

WEFT_FRAME void StallTestSpin() {
  while (stall_test_go_on.load()) stall_test_turns.fetch_add(1);
  asm volatile("" ::: "memory");
}
WEFT_FRAME void StallTestSpinCaller() {
  [[maybe_unused]] volatile char local[100] = {};
  StallTestSpin();
  local[0] = 1;
  asm volatile("" ::: "memory");
}
WEFT_FRAME void StallTestBlock(const std::function<void()>* block) {
  [[maybe_unused]] volatile char local[100] = {};
  (*block)();
  local[0] = 1;
  asm volatile("" ::: "memory");
}
WEFT_FRAME void StallTestBlockCaller(const std::function<void()>* block) {
  StallTestBlock(block);
  asm volatile("" ::: "memory");
}

namespace sched::internal {
namespace {

using fiber::internal::Record;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

// Generous where the machine is busy: an answer ends it at once.
constexpr absl::Duration kPatience = absl::Seconds(5);

class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe(ends_), 0); }
  ~Pipe() {
    close(ends_[0]);
    close(ends_[1]);
  }
  int read_end() const { return ends_[0]; }
  void Write() { EXPECT_EQ(write(ends_[1], "x", 1), 1); }

 private:
  int ends_[2];
};

// A thread that runs `body` as if it were a worker in a fiber.
class StandIn {
 public:
  explicit StandIn(std::function<void()> body, std::source_location site = std::source_location::current()) {
    record_->id.store(7);
    record_->site = site;
    record_->block.store(block_.get());
    block_->fiber.store(record_.get());
    thread_ = std::thread([this, body = std::move(body)] {
      pthread_attr_t attributes;
      ASSERT_EQ(pthread_getattr_np(pthread_self(), &attributes), 0);
      void* low = nullptr;
      size_t size = 0;
      pthread_attr_getstack(&attributes, &low, &size);
      pthread_attr_destroy(&attributes);
      block_->stack_low = static_cast<char*>(low);
      block_->stack_high = static_cast<char*>(low) + size;
      state_->current = record_.get();
      tid_.store(gettid());
      body();
    });
    while (tid_.load() == 0) std::this_thread::yield();
  }
  ~StandIn() { thread_.join(); }

  pthread_t thread() { return thread_.native_handle(); }
  ThreadProbe Probe() { return ThreadProbe(thread(), tid_.load(), *state_); }

 private:
  std::unique_ptr<Record> record_ = std::make_unique<Record>();
  std::unique_ptr<WaitBlock> block_ = std::make_unique<WaitBlock>();
  std::unique_ptr<ThreadState> state_ = std::make_unique<ThreadState>();
  std::atomic<pid_t> tid_{0};
  std::thread thread_;
};

// Tries until the thread is found doing that, with a stack.
Stall DescribeWith(ThreadProbe& probe, Stall::Kind kind) {
  for (;;) {
    std::optional<Stall> stall = probe.Describe(kind, absl::Seconds(1), kPatience);
    if (stall.has_value() && stall->kind == kind && !stall->stack.empty()) return *stall;
    std::this_thread::yield();
  }
}

void WaitUntilSleeping(const ThreadProbe& probe) {
  while (probe.State() != 'S') std::this_thread::yield();
}

// The frames in this order, others between them or not.
void ExpectFrames(const Stall& stall, const std::vector<std::string>& names) {
  const std::string text = stall.ToString() + "\n";
  size_t at = 0;
  for (const std::string& name : names) {
    at = text.find("  " + name + "\n", at);
    ASSERT_NE(at, std::string::npos) << name << " is not in\n" << text;
    at += name.size();
  }
}

class StallProbeTest : public testing::Test {
 protected:
  void SetUp() override { stall_test_go_on = true; }
};

TEST_F(StallProbeTest, ASpinningThreadTellsWhereItIs) {
  StandIn worker([] { StallTestSpinCaller(); });
  ThreadProbe probe = worker.Probe();
  const Stall stall = DescribeWith(probe, Stall::Kind::kSpinning);
  stall_test_go_on = false;
  EXPECT_EQ(stall.fiber_id, 7u);
  ExpectFrames(stall, {"StallTestSpinCaller"});
}

// In every kind of call: the C library's frames, which have no frame pointers, are between.
TEST_F(StallProbeTest, ABlockedThreadIsFoundWithoutASignal) {
  Pipe pipe;
  std::atomic<uint32_t> word{0};
  const std::function<void()> read_pipe = [&] {
    char byte;
    EXPECT_EQ(read(pipe.read_end(), &byte, 1), 1);
  };
  const std::function<void()> sleep_long = [&] {
    const timespec until{.tv_sec = 1'000'000'000, .tv_nsec = 0};
    // Ended by a signal, at the end of the test.
    EXPECT_EQ(clock_nanosleep(CLOCK_MONOTONIC, 0, &until, nullptr), EINTR);
  };
  const std::function<void()> wait_futex = [&] {
    EXPECT_EQ(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0), 0);
  };
  struct sigaction ignored {};
  ignored.sa_handler = [](int) {};
  struct sigaction before {};
  ASSERT_EQ(sigaction(SIGUSR1, &ignored, &before), 0);
  for (const auto* block : {&read_pipe, &sleep_long, &wait_futex}) {
    StandIn worker([block] { StallTestBlockCaller(block); });
    ThreadProbe probe = worker.Probe();
    WaitUntilSleeping(probe);
    const Stall stall = DescribeWith(probe, Stall::Kind::kBlocked);
    ExpectFrames(stall, {"StallTestBlock", "StallTestBlockCaller"});
    if (block == &read_pipe) pipe.Write();
    if (block == &sleep_long) {
      EXPECT_EQ(pthread_kill(worker.thread(), SIGUSR1), 0);
    }
    while (block == &wait_futex && syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0) == 0) {
    }
  }
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(StallProbeTest, ABlockedThreadsSystemCallsAreNotInterrupted) {
  Pipe pipe;
  StandIn worker([&] {
    pollfd polled{.fd = pipe.read_end(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(poll(&polled, 1, -1), 1) << errno;
  });
  ThreadProbe probe = worker.Probe();
  WaitUntilSleeping(probe);
  for (int i = 0; i < 100; ++i) {
    const std::optional<Stall> stall = probe.Describe(Stall::Kind::kSpinning, absl::Seconds(1));
    if (stall.has_value()) {
      EXPECT_EQ(stall->kind, Stall::Kind::kBlocked);
    }
  }
  pipe.Write();
}

TEST_F(StallProbeTest, AThreadThatBlocksSignalsIsReportedWithoutAStack) {
  std::atomic<bool> is_blocked{false};
  StandIn worker([&] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    is_blocked = true;
    StallTestSpinCaller();
  });
  while (!is_blocked) std::this_thread::yield();
  ThreadProbe probe = worker.Probe();
  std::optional<Stall> stall;
  while (!stall.has_value()) stall = probe.Describe(Stall::Kind::kSpinning, absl::Seconds(1), absl::Milliseconds(1));
  stall_test_go_on = false;
  EXPECT_EQ(stall->fiber_id, 7u);
  EXPECT_TRUE(stall->stack.empty());
  EXPECT_TRUE(absl::StrContains(stall->ToString(), "where is not known"));
}

// The default of the signal ends the process.
TEST_F(StallProbeTest, ASignalWhoseHandlerWasReplacedIsNotSent) {
  tests::InChild([] {
    ThreadProbe* const probe = [] {
      const int signal = InstallProbeSignal();
      EXPECT_NE(signal, 0);
      struct sigaction none {};
      none.sa_handler = SIG_DFL;
      sigaction(signal, &none, nullptr);
      static StandIn* const worker = new StandIn([] { StallTestSpinCaller(); });
      return new ThreadProbe(worker->Probe());
    }();
    std::optional<Stall> stall;
    while (!stall.has_value()) stall = probe->Describe(Stall::Kind::kSpinning, absl::Seconds(1), kPatience);
    EXPECT_TRUE(stall->stack.empty());
    return tests::kFine;
  });
}

TEST_F(StallProbeTest, ThreadsOfAForkedChildAreAskedToo) {
  {
    StandIn worker([] { StallTestSpinCaller(); });
    ThreadProbe probe = worker.Probe();
    DescribeWith(probe, Stall::Kind::kSpinning);
    stall_test_go_on = false;
  }
  stall_test_go_on = true;
  tests::InChild([] {
    StandIn worker([] { StallTestSpinCaller(); });
    ThreadProbe probe = worker.Probe();
    const Stall stall = DescribeWith(probe, Stall::Kind::kSpinning);
    stall_test_go_on = false;
    ExpectFrames(stall, {"StallTestSpinCaller"});
    return tests::kFine;
  });
}

// Makes calls fail while it exists.
class Refusal {
 public:
  explicit Refusal(const fiber::internal::SystemCalls& table) : table_(table) {
    fiber::internal::system_calls.store(&table_, std::memory_order_release);  // order: system-calls
  }
  ~Refusal() {
    fiber::internal::system_calls.store(&fiber::internal::kKernel, std::memory_order_release);  // order: system-calls
  }

 private:
  const fiber::internal::SystemCalls table_;
};

TEST_F(StallProbeTest, WithoutWhatTheSystemRefusesAStallIsReportedWithLess) {
  Pipe pipe;
  StandIn blocked([&] {
    char byte;
    EXPECT_EQ(read(pipe.read_end(), &byte, 1), 1);
  });
  StandIn spinning([] { StallTestSpinCaller(); });
  ThreadProbe blocked_probe = blocked.Probe();
  ThreadProbe spinning_probe = spinning.Probe();
  WaitUntilSleeping(blocked_probe);
  fiber::internal::SystemCalls table = fiber::internal::kKernel;
  table.process_vm_readv = [](void*, const void*, size_t) -> ssize_t {
    errno = EPERM;
    return -1;
  };
  {
    Refusal refusal(table);
    const Stall stall = DescribeWith(blocked_probe, Stall::Kind::kBlocked);
    EXPECT_EQ(stall.stack.size(), 1u) << "the kernel says that much";
  }
  table.open = [](const char*, int) {
    errno = EMFILE;
    return -1;
  };
  table.tgkill = [](pid_t, pid_t, int) {
    errno = EAGAIN;
    return -1;
  };
  {
    Refusal refusal(table);
    EXPECT_EQ(blocked_probe.State(), '?');
    for (ThreadProbe* probe : {&blocked_probe, &spinning_probe}) {
      const auto kind = probe == &blocked_probe ? Stall::Kind::kBlocked : Stall::Kind::kSpinning;
      const std::optional<Stall> stall = probe->Describe(kind, absl::Seconds(1), kPatience);
      ASSERT_TRUE(stall.has_value());
      EXPECT_EQ(stall->fiber_id, 7u);
      EXPECT_TRUE(stall->stack.empty());
    }
  }
  stall_test_go_on = false;
  pipe.Write();
}

// What a fiber says of the thread that it is on.
struct Place {
  pthread_t thread;
  pid_t tid;
  ThreadState* state;
  static Place Here() { return {pthread_self(), gettid(), &fiber::internal::ThisThread()}; }
  ThreadProbe Probe() const { return ThreadProbe(thread, tid, *state); }
};

TEST_F(StallProbeTest, ASpinningFiberIsNamedWithItsStackToTheEntry) {
  Runtime runtime({.workers = 1});
  std::atomic<Place*> place{nullptr};
  Place here;
  const uint32_t line = std::source_location::current().line() + 1;
  auto spinner = runtime.Spawn({.name = "spinner"}, [&] {
    here = Place::Here();
    place = &here;
    StallTestSpinCaller();
  });
  while (place == nullptr) std::this_thread::yield();
  ThreadProbe probe = place.load()->Probe();
  const Stall stall = DescribeWith(probe, Stall::Kind::kSpinning);
  stall_test_go_on = false;
  EXPECT_EQ(stall.fiber_id, spinner.id());
  EXPECT_EQ(stall.name, "spinner");
  EXPECT_EQ(stall.site.line(), line);
  ExpectFrames(stall, {"StallTestSpinCaller", "weft_run_fibers"});
  EXPECT_LT(stall.stack.size(), 64u);
  spinner.Join();
}

TEST_F(StallProbeTest, ABlockedFiberIsNamedWithItsStackToTheEntry) {
  Pipe pipe;
  Runtime runtime({.workers = 1});
  std::atomic<Place*> place{nullptr};
  Place here;
  const std::function<void()> block = [&] {
    char byte;
    EXPECT_EQ(read(pipe.read_end(), &byte, 1), 1);
  };
  auto reader = runtime.Spawn([&] {
    here = Place::Here();
    place = &here;
    StallTestBlockCaller(&block);
  });
  while (place == nullptr) std::this_thread::yield();
  ThreadProbe probe = place.load()->Probe();
  WaitUntilSleeping(probe);
  const int64_t before = probe.CpuNs();
  EXPECT_EQ(probe.State(), 'S');
  EXPECT_EQ(probe.CpuNs(), before);
  const Stall stall = DescribeWith(probe, Stall::Kind::kBlocked);
  EXPECT_EQ(stall.fiber_id, reader.id());
  EXPECT_EQ(stall.name, "");
  ExpectFrames(stall, {"StallTestBlock", "StallTestBlockCaller", "weft_run_fibers"});
  pipe.Write();
  reader.Join();
}

TEST_F(StallProbeTest, AnIdleWorkerHasNothingToTell) {
  Runtime runtime({.workers = 1});
  const Place place = runtime.Spawn([] { return Place::Here(); }).Join();
  ThreadProbe probe = place.Probe();
  WaitUntilSleeping(probe);
  EXPECT_FALSE(probe.Describe(Stall::Kind::kBlocked, absl::Seconds(1)).has_value());
  EXPECT_FALSE(probe.Describe(Stall::Kind::kSpinning, absl::Seconds(1)).has_value());
}

// At any moment: in a switch, in the kernel, at the end of a fiber, in one that is just named.
TEST_F(StallProbeTest, AWorkerThatIsNotStuckMayBeProbedAtAnyTime) {
  // No spare threads: where the machine is busy the monitor would have another take the seat, and this one ends when it has rested.
  Runtime runtime({.workers = 1, .max_threads = 1});
  const Place place = runtime.Spawn([] { return Place::Here(); }).Join();
  std::atomic<bool> is_stopping{false};
  auto busy = runtime.Spawn([&] {
    while (!is_stopping.load()) {
      std::vector<fiber::JoinHandle<void>> fibers;
      for (int i = 0; i < 20; ++i) {
        fibers.push_back(fiber::Spawn({.name = "one of many"}, [] {
          for (int round = 0; round < 10; ++round) fiber::Yield();
        }));
      }
      for (auto& each : fibers) each.Join();
    }
  });
  ThreadProbe probe = place.Probe();
  // Most find that another fiber runs than a moment ago.
  int described = 0;
  for (int i = 0; i < tests::Scaled(500) || described == 0; ++i) {
    for (const Stall::Kind kind : {Stall::Kind::kSpinning, Stall::Kind::kBlocked}) {
      const std::optional<Stall> stall = probe.Describe(kind, absl::Seconds(1));
      if (!stall.has_value()) continue;
      ++described;
      EXPECT_NE(stall->fiber_id, 0u);
      EXPECT_TRUE(stall->name == "" || stall->name == "one of many") << stall->name;
    }
  }
  is_stopping = true;
  busy.Join();
}

TEST_F(StallProbeTest, AThreadThatHasEndedHasNeitherAClockNorAState) {
  std::optional<ThreadProbe> probe;
  {
    StandIn worker([] {
      while (stall_test_go_on) std::this_thread::yield();
    });
    probe.emplace(worker.Probe());
    EXPECT_GE(probe->CpuNs(), 0);
    stall_test_go_on = false;
  }
  while (probe->State() != '?') std::this_thread::yield();
  EXPECT_EQ(probe->CpuNs(), -1);
}

constexpr int64_t kMinuteNs = StallLog::kIntervalNs;

bool Report(StallLog& log, const std::source_location& site, int64_t now_ns) {
  if (!log.ShouldReport(site, now_ns)) return false;
  log.NoteReported(site, now_ns);
  return true;
}

TEST(StallLogTest, WhatIsNotReportedAfterAllIsReportedTheNextTime) {
  StallLog log;
  const auto site = std::source_location::current();
  EXPECT_TRUE(log.ShouldReport(site, 5));
  EXPECT_TRUE(log.ShouldReport(site, 6));
  EXPECT_TRUE(Report(log, site, 7));
  EXPECT_FALSE(log.ShouldReport(site, 8));
}

TEST(StallLogTest, TheFirstOfASiteIsReportedThenOneAMinute) {
  StallLog log;
  const auto site = std::source_location::current();
  EXPECT_TRUE(Report(log, site, 5));
  EXPECT_FALSE(Report(log, site, 6));
  EXPECT_FALSE(Report(log, site, 4 + kMinuteNs));
  EXPECT_TRUE(Report(log, site, 5 + kMinuteNs));
  EXPECT_FALSE(Report(log, site, 6 + kMinuteNs));
}

TEST(StallLogTest, SitesAreReportedEachByItself) {
  StallLog log;
  const auto one = std::source_location::current();
  const auto other = std::source_location::current();
  EXPECT_TRUE(Report(log, one, 0));
  EXPECT_TRUE(Report(log, other, 0));
  EXPECT_FALSE(Report(log, one, 1));
}

// Of as many places as one likes: the compiler makes one a place only. As the C++ library lays them out.
struct MadeUpSite {
  const char* file = "made_up.cc";
  const char* function = "F";
  uint32_t line = 1;
  uint32_t column = 1;
  std::source_location site() const {
    static_assert(sizeof(std::source_location) == sizeof(this));
    return std::bit_cast<std::source_location>(this);
  }
};

TEST(StallLogTest, WithMoreSitesThanItHoldsTheOthersWaitUntilOneIsAMinuteOld) {
  StallLog log;
  std::vector<MadeUpSite> sites(StallLog::kSites + 2);
  for (size_t i = 0; i < sites.size(); ++i) sites[i].line = static_cast<uint32_t>(i);
  int64_t now_ns = 0;
  for (size_t i = 0; i < StallLog::kSites; ++i) {
    EXPECT_TRUE(Report(log, sites[i].site(), ++now_ns)) << i;
  }
  const MadeUpSite& one = sites[StallLog::kSites];
  const MadeUpSite& other = sites[StallLog::kSites + 1];
  EXPECT_FALSE(Report(log, one.site(), kMinuteNs));
  EXPECT_TRUE(Report(log, one.site(), 1 + kMinuteNs)) << "in the place of the first";
  EXPECT_FALSE(Report(log, other.site(), 1 + kMinuteNs));
  EXPECT_FALSE(Report(log, sites[0].site(), 1 + kMinuteNs));
  EXPECT_TRUE(Report(log, sites[1].site(), 2 + kMinuteNs)) << "it is there still";
}

TEST(StallTest, SaysWhoWhereFromAndWhereItIs) {
  const auto site = std::source_location::current();
  Stall stall{.kind = Stall::Kind::kBlocked,
              .fiber_id = 12,
              .name = "resize",
              .site = site,
              .duration = absl::Seconds(2),
              .stack = {reinterpret_cast<void*>(&StallTestSpin), reinterpret_cast<char*>(&StallTestBlock) + 1}};
  const std::string text = stall.ToString();
  EXPECT_TRUE(absl::StartsWith(text, absl::StrCat("fiber 12 'resize' (spawned at ", site.file_name(), ":", site.line(),
                                                  ") has kept its worker for 2s: it blocks the thread")))
      << text;
  EXPECT_EQ(tests::CountIn(text, "\n"), 2) << text;
  ExpectFrames(stall, {"StallTestSpin", "StallTestBlock"});
  stall.kind = Stall::Kind::kSpinning;
  EXPECT_TRUE(absl::StrContains(stall.ToString(), "it computes"));
}

}  // namespace
}  // namespace sched::internal
