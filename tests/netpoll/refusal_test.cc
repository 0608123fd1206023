// SPDX-License-Identifier: Apache-2.0
//
// Kernels that refuse something, older ones and seccomp's; and one that connects a socket to itself.
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/internal/descriptor_slab.h"
#include "netpoll/tcp.h"
#include "sched/run.h"
#include "tests/child.h"
#include "tests/netpoll/seccomp.h"
#include "tests/netpoll/sockets.h"

namespace netpoll_test {
namespace {

using netpoll::ReadFull;
using netpoll::TcpListener;
using netpoll::TcpStream;
using tests::InChild;  // since there is no way back
using tests::kCannotTest;  // where seccomp or namespaces are refused
using tests::kFine;

TEST(RefusalTest, WithoutEpollPwait2TimeIsKeptInMilliseconds) {
  for (const int error : {ENOSYS, EPERM}) {
    InChild([error] {
      if (!RefuseSyscall(SYS_epoll_pwait2, -1, error)) return kCannotTest;
      return sched::Run({.workers = 1}, [] {
        StreamPair pair = Connected();
        const absl::Duration start = fiber::Now();
        char buffer[4];
        const absl::Status status = pair.client.Read(buffer, absl::Microseconds(1500)).status();
        const absl::Duration took = fiber::Now() - start;
        if (!absl::IsDeadlineExceeded(status)) return 1;
        if (took < absl::Microseconds(1500) || took > absl::Seconds(1)) return 2;
        auto echo = fiber::Spawn([&] { return ReadFull(pair.server, buffer).ok(); });
        WaitUntilParked(echo);
        if (!pair.client.Write("ping").ok()) return 3;
        return echo.Join() ? kFine : 4;
      });
    });
  }
}

TEST(RefusalTest, WithoutWatchesThereIsNoSocketAndNothingIsLeftBehind) {
  InChild([] {
    return sched::Run({.workers = 1}, [] {
      TcpListener listener = ListenOnLoopback();
      RawSocket peer = RawSocket::ConnectTo(listener.local());
      const size_t records = netpoll::internal::DescriptorSlab::CountInUse();
      const int descriptors = OpenDescriptors();
      if (!RefuseSyscall(SYS_epoll_ctl, EPOLL_CTL_ADD, ENOSPC)) return kCannotTest;
      for (const absl::Status& status : {TcpStream::Connect(listener.local()).status(),
                                         TcpListener::Listen("127.0.0.1:0").status()}) {
        if (!absl::IsResourceExhausted(status)) return 1;
        if (netpoll::ErrnoOf(status) != ENOSPC) return 2;
        if (status.message().find("max_user_watches") == absl::string_view::npos) return 3;
      }
      if (OpenDescriptors() != descriptors) return 4;
      if (netpoll::internal::DescriptorSlab::CountInUse() != records) return 5;
      // A connection that was accepted is kept until it can be watched, or the listener is closed.
      for (int i = 0; i < 2; ++i) {
        if (!absl::IsDeadlineExceeded(listener.Accept(absl::Milliseconds(30)).status())) return 6;
        if (OpenDescriptors() != descriptors + 1) return 7;
      }
      listener.Close();
      if (OpenDescriptors() != descriptors - 1) return 8;
      return kFine;
    });
  });
}

TEST(RefusalTest, WhoMayNotAcceptIsToldAndWhoseConnectionsComeToNothingStillListens) {
  InChild([] {
    return sched::Run({.workers = 1}, [] {
      TcpListener listener = ListenOnLoopback();
      if (!RefuseSyscall(SYS_accept4, -1, EPERM)) return kCannotTest;
      const absl::Status status = listener.Accept().status();
      if (!absl::IsInvalidArgument(status)) return 1;
      return netpoll::ErrnoOf(status) == EPERM ? kFine : 2;
    });
  });
  // A kernel that never runs out of connections that came to nothing keeps nobody from ending the call.
  InChild([] {
    return sched::Run({.workers = 2}, [] {
      TcpListener listener = ListenOnLoopback();
      if (!RefuseSyscall(SYS_accept4, -1, ECONNABORTED)) return kCannotTest;
      if (!absl::IsDeadlineExceeded(listener.Accept(absl::Milliseconds(5)).status())) return 1;
      auto cancelled = fiber::Spawn([&] { return listener.Accept().status(); });
      cancelled.Cancel();
      if (!absl::IsCancelled(cancelled.Join())) return 2;
      auto closed = fiber::Spawn([&] { return listener.Accept().status(); });
      fiber::Yield();
      listener.Close();
      return absl::IsFailedPrecondition(closed.Join()) ? kFine : 3;
    });
  });
}

// Leaves this process alone on a network with one interface, the loopback, and one port to give out.
bool TakeNetworkOfOnePort(uint16_t port) {
  if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
  const RawSocket any(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  if (ioctl(any.fd(), SIOCSIFFLAGS, &request) != 0) return false;
  std::ofstream range("/proc/sys/net/ipv4/ip_local_port_range");
  range << port << ' ' << port << std::endl;
  return range.good();
}

TEST(RefusalTest, NobodyIsConnectedToHimself) {
  for (const char* target : {"127.0.0.1:45678", "0.0.0.0:45678", "[::1]:45678", "[::]:45678",
                             "[::ffff:127.0.0.1]:45678"}) {
    SCOPED_TRACE(target);
    InChild([target] {
      if (!TakeNetworkOfOnePort(45678)) return kCannotTest;
      return sched::Run({.workers = 1}, [target] {
        const auto stream = TcpStream::Connect(target);
        if (stream.ok()) return 1;
        // The first try has used up the one port for a while.
        switch (netpoll::ErrnoOf(stream.status())) {
          case EADDRNOTAVAIL:
          case ECONNREFUSED: return kFine;
          case EAFNOSUPPORT: return kCannotTest;  // no IPv6
          default: std::cerr << stream.status() << std::endl; return 2;
        }
      });
    });
  }
}

TEST(RefusalTest, WithoutAnEpollInstanceTheLimitIsNamed) {
  InChild([] {
    if (!RefuseSyscall(SYS_epoll_create1, -1, EMFILE)) return kCannotTest;
    return sched::Run({.workers = 1}, [] {
      const absl::Status status = TcpListener::Listen("127.0.0.1:0").status();
      if (!absl::IsResourceExhausted(status)) return 1;
      return status.message().find("RLIMIT_NOFILE") != absl::string_view::npos ? kFine : 2;
    });
  });
}

}  // namespace
}  // namespace netpoll_test
