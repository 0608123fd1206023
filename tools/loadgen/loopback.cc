// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/loopback.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "netpoll/wait.h"

namespace loadgen {
namespace {

constexpr uint32_t kSources = 32;

class ScopedFd {
 public:
  explicit ScopedFd(int fd) : fd_(fd) {}
  ScopedFd(const ScopedFd&) = delete;
  ScopedFd& operator=(const ScopedFd&) = delete;
  ~ScopedFd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int Take() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

absl::Status Refused(const char* call, int error) {
  return absl::UnavailableError(absl::StrCat(call, ": errno ", error));
}

// A connecting socket. The errno, negative, if there is none.
int StartConnecting(int number, const netpoll::Address& target) {
  ScopedFd fd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return -errno;
  sockaddr_in source = {};
  source.sin_family = AF_INET;
  source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + static_cast<uint32_t>(number) % kSources);
  const int on = 1;
  // The port is then chosen by connect(), which looks at the target too.
  if (setsockopt(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) != 0 ||
      setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&source), sizeof source) != 0 ||
      (connect(fd.get(), target.data(), target.size()) != 0 && errno != EINPROGRESS)) {
    return -errno;
  }
  return fd.Take();
}

// What the connection failed with; 0: it is there.
int ErrorOf(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : EINVAL;
}

}  // namespace

absl::StatusOr<netpoll::TcpStream> ConnectOnLoopback(int number, const netpoll::Address& target,
                                                     fiber::Deadline deadline) {
  const int started = StartConnecting(number, target);
  if (started < 0) return Refused("connect", -started);
  ScopedFd fd(started);
  if (absl::Status status = netpoll::WaitWritable(fd.get(), deadline); !status.ok()) return status;
  if (const int error = ErrorOf(fd.get()); error != 0) return Refused("connect", error);
  absl::StatusOr<netpoll::TcpStream> stream = netpoll::TcpStream::Adopt(fd.get());
  if (stream.ok()) (void)fd.Take();
  return stream;
}

}  // namespace loadgen
