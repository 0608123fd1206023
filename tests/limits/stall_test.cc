// SPDX-License-Identifier: Apache-2.0
//
// Fibers in line for a stack that nobody will return.
#include <unistd.h>

#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/blocking_detached.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/select.h"
#include "fiber/shared_mutex.h"
#include "fiber/this_fiber.h"
#include "netpoll/process.h"
#include "netpoll/select.h"
#include "netpoll/tcp.h"
#include "tests/limits/at_work.h"

namespace limits_test {
namespace {

constexpr int kStacks = 16;
const sched::RuntimeOptions kFewStacks = {.workers = 2, .max_stack_memory = kStacks * 4096};

// Blocks the thread until the child has said `text` on stderr.
void AwaitSaid(const std::string& text) {
  char buffer[1 << 14];
  for (;;) {
    const ssize_t n = pread(STDERR_FILENO, buffer, sizeof buffer, 0);
    if (tests::CountIn(std::string(buffer, n > 0 ? static_cast<size_t>(n) : 0), text) > 0) return;
    std::this_thread::yield();
  }
}

// Without it a program that has locked itself up looks like one that has nothing to do.
TEST(StallTest, WhenAllWhoHaveStacksAreParkedForGoodItIsSaidOnceWithTheReasons) {
  std::string said;
  InChild(
      [] {
        sched::Runtime runtime(kFewStacks);
        fiber::SharedMutex mutex;  // one of the later reasons
        mutex.lock();
        auto locker = runtime.Spawn([&] {
          mutex.lock();
          mutex.unlock();
        });
        {
          Crowd crowd(runtime, 100);
          AwaitSaid("parked for good");
          for (int i = 0; i < 3; ++i) {  // looks that find the same
            const size_t waits = StackDepot::Get().Stats().waits;
            while (StackDepot::Get().Stats().waits < waits + 15) std::this_thread::yield();
          }
          EXPECT_EQ(crowd.arrived(), kStacks - 1);
          mutex.unlock();
        }
        locker.Join();
        return runtime.Shutdown(absl::Seconds(30)).ok() ? tests::kFine : 1;
      },
      &said);
  EXPECT_EQ(tests::CountIn(said, "parked for good"), 1) << said;
  EXPECT_NE(said.find("85 fibers wait unstarted, and the 16 that have stacks are all parked for good "
                      "(15 in event, 1 in shared mutex), unless a thread that is no worker unparks one; "
                      "no stack for another fiber: RuntimeOptions::max_stack_memory"),
            std::string::npos)
      << said;
}

// The line gets on by itself, so there is nothing to report: a deadline, a socket, also in a select, a process, a call that a
// thread makes, another runtime.
TEST(StallTest, WhoeverWillGoOnByHimselfIsNotParkedForGood) {
  enum Other { kSleeper, kReader, kSelector, kParent, kCaller, kRuntime };
  for (const Other other : {kSleeper, kReader, kSelector, kParent, kCaller, kRuntime}) {
    std::string said;
    const auto go_on = [other] {
      sched::Runtime runtime(kFewStacks);
      fiber::Event end;
      fiber::JoinHandle<void> goes_on;
      int fds[2];
      EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
      std::unique_ptr<sched::Runtime> second;
      std::atomic<bool> is_over{false};
      std::atomic<bool> is_there{false};
      switch (other) {
        case kSleeper:
          goes_on = runtime.Spawn([&] {
            is_there = true;
            EXPECT_TRUE(absl::IsDeadlineExceeded(end.Wait(absl::Seconds(30))) || is_over);
          });
          break;
        case kReader:
          goes_on = runtime.Spawn([&] {
            auto stream = netpoll::TcpStream::Adopt(fds[0]);
            is_there = true;
            char byte[1];
            EXPECT_TRUE(stream.ok() && stream->Read(byte).ok());
          });
          break;
        case kSelector:
          goes_on = runtime.Spawn([&] {
            auto stream = netpoll::TcpStream::Adopt(fds[0]);
            is_there = true;
            EXPECT_TRUE(stream.ok() && fiber::Select(netpoll::OnReadable(*stream, [](const absl::Status&) {})).ok());
          });
          break;
        case kParent:
          goes_on = runtime.Spawn([&] {
            auto process = netpoll::Process::Start({.arguments = {"cat"},
                                                    .input = netpoll::Stdio::Descriptor(fds[0]),
                                                    .output = netpoll::Stdio::Null()});
            is_there = true;
            EXPECT_TRUE(process.ok() && process->Wait().ok());
          });
          break;
        case kCaller:
          goes_on = runtime.Spawn([&] {
            is_there = true;
            EXPECT_EQ(fiber::BlockingDetached([fd = fds[0]] {
                        char byte;
                        return read(fd, &byte, 1);
                      }).value_or(0), 1);
          });
          break;
        case kRuntime:
          second = std::make_unique<sched::Runtime>(kFewStacks);
          goes_on = second->Spawn([&] {
            is_there = true;
            while (!is_over) fiber::Yield();
          });
          break;
      }
      while (!is_there) std::this_thread::yield();
      {
        Crowd crowd(runtime, 100);
        AwaitFibersInLine();
        // Long enough for three looks: one fiber a class tries again every 10 ms at the soonest.
        while (StackDepot::Get().Stats().waits < 85 + 80) std::this_thread::yield();
        is_over = true;
        end.Set();
        EXPECT_EQ(write(fds[1], "x", 1), 1);
        EXPECT_EQ(shutdown(fds[1], SHUT_WR), 0);
      }
      goes_on.Join();
      if (other != kReader && other != kSelector) close(fds[0]);
      close(fds[1]);
      return tests::kFine;
    };
    // The threads of the pool stay for a while.
    (other == kParent || other == kCaller) ? tests::InChild(go_on, &said) : InChild(go_on, &said);
    EXPECT_EQ(tests::CountIn(said, "parked for good"), 0) << said;
    EXPECT_EQ(tests::CountIn(said, "max_stack_memory"), 1) << said;
  }
}

}  // namespace
}  // namespace limits_test
