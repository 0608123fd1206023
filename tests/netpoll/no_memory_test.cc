// SPDX-License-Identifier: Apache-2.0
//
// Calls that fail when there is no memory to say why. A process of its own: it has its own operator new.
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
#include "sched/run.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"

namespace {

std::atomic<bool> is_everything_refused{false};

}  // namespace

// Not inlined, or g++ sees malloc and free where it expects new and delete.
__attribute__((noinline)) void* operator new(size_t size) {
  void* memory =
      is_everything_refused.load(std::memory_order_relaxed) ? nullptr : malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { free(memory); }

namespace netpoll_test {
namespace {

// Whether the call has thrown; from then on there is memory again.
template <class F>
bool Throws(F call) {
  bool has_thrown = false;
  try {
    (void)call();
  } catch (const std::bad_alloc&) {
    has_thrown = true;
  }
  is_everything_refused = false;
  return has_thrown;
}

// Likewise of one that is cancelled without memory for the status that says so.
template <class F>
bool ThrowsWhenCancelled(F call) {
  auto fiber = fiber::Spawn([&] { return Throws(call); });
  for (int i = 0; i < 3; ++i) fiber::Yield();  // it waits
  fiber.Cancel(absl::InternalError("why, in a status of its own"));
  is_everything_refused = true;
  return fiber.Join();
}

TEST(NoMemoryTest, ACallThatHasThrownLeavesTheStreamToOthers) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    RawPair pair = ConnectedToRaw();
    char byte[1];
    EXPECT_TRUE(ThrowsWhenCancelled([&] { return pair.stream.Read(byte); })) << "as it waits";
    EXPECT_TRUE(ThrowsWhenCancelled([&] {
      while (!is_everything_refused) fiber::Yield();
      return pair.stream.Read(byte);
    })) << "before it does anything";
    pair.peer.Send("x");
    EXPECT_TRUE(pair.stream.Read(byte, absl::Seconds(5)).ok());
  });
}

TEST(NoMemoryTest, AWaitThatHasThrownLeavesNoDescriptorBehind) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    int fds[2];
    ASSERT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    const RawSocket out(fds[0]);
    const RawSocket in(fds[1]);
    EXPECT_TRUE(absl::IsDeadlineExceeded(netpoll::WaitReadable(out.fd(), absl::Milliseconds(1))));
    const int before = OpenDescriptors();
    EXPECT_TRUE(ThrowsWhenCancelled([&] { return netpoll::WaitReadable(out.fd()); }));
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST(NoMemoryTest, AnAcceptThatHasThrownLeavesNoDescriptorBehind) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    netpoll::TcpListener listener = ListenOnLoopback();
    const RawSocket peer = RawSocket::ConnectTo(listener.local());
    const int before = OpenDescriptors();
    const Faults faults({Call::epoll_ctl, ENOSPC, 1}, {Call::kCount});
    is_everything_refused = true;
    EXPECT_TRUE(Throws([&] { return listener.Accept(); }));
    EXPECT_TRUE(faults.is_hit());
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

TEST(NoMemoryTest, ACloseWriteThatHasThrownDoesNotKeepTheStreamOpen) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    (void)ListenOnLoopback();  // a poller stays
    const int before = OpenDescriptors();
    {
      RawPair pair = ConnectedToRaw();
      pair.peer.Reset();
      is_everything_refused = true;
      EXPECT_TRUE(Throws([&] { return pair.stream.CloseWrite(); }));
    }
    EXPECT_EQ(OpenDescriptors(), before);
  });
}

}  // namespace
}  // namespace netpoll_test
