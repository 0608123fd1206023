// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_SCOPED_FD_H_
#define WEFT_NETPOLL_INTERNAL_SCOPED_FD_H_

#include <utility>

#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {

// ScopedFd closes what was not handed on.
class ScopedFd {
 public:
  ScopedFd() = default;
  explicit ScopedFd(int fd) : fd_(fd) {}
  ScopedFd(ScopedFd&& other) noexcept : fd_(other.Take()) {}
  ScopedFd& operator=(ScopedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~ScopedFd() {
    if (fd_ >= 0) Close(fd_);
  }
  int get() const { return fd_; }
  int Take() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_SCOPED_FD_H_
