// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_NETPOLL_FAULTS_H_
#define WEFT_TESTS_NETPOLL_FAULTS_H_

#include <errno.h>
#include <sys/epoll.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>

#include "fiber/internal/system_calls.h"

namespace netpoll_test {

#define WEFT_EACH_CALL(X)                                                                    \
  X(pthread_create) X(futex) X(prctl) X(sched_getaffinity) X(sysconf) X(sigaction) X(tgkill) \
  X(posix_spawnp) X(kill) X(pidfd_open) X(waitid) X(getrlimit) X(setrlimit) X(mmap)          \
  X(process_vm_readv) X(munmap) X(pipe2) X(open) X(read) X(write) X(close) X(fcntl) X(ioctl) \
  X(ppoll) X(socket) X(bind) X(listen) X(accept4) X(connect) X(shutdown) X(recv) X(send)     \
  X(sendmsg) X(getsockopt) X(setsockopt) X(getsockname) X(getpeername) X(getaddrinfo)        \
  X(epoll_create1) X(epoll_ctl) X(epoll_wait) X(epoll_pwait2) X(eventfd) X(openat) X(pread)  \
  X(pwrite) X(preadv2) X(fsync) X(fdatasync) X(ftruncate) X(statx) X(getdents64) X(renameat) \
  X(unlinkat) X(mkdirat) X(io_uring_setup) X(io_uring_enter) X(io_uring_register)

// The entries of the table of system calls.
enum class Call : int {
#define X(name) name,
  WEFT_EACH_CALL(X)
#undef X
      kCount
};
static_assert(sizeof(fiber::internal::SystemCalls) ==
              static_cast<size_t>(Call::kCount) * sizeof(void*));

inline constexpr uint64_t kEach = 0;
inline constexpr uint64_t kNone = UINT64_MAX;
inline constexpr int64_t kAny = -1;

// Fault is a system call that fails: the `nth`, from 1 on, of those whose second argument is
// `second`.
struct Fault {
  Call call;
  int error = 0;
  uint64_t nth = kNone;
  int64_t second = kAny;
};

// Faults are what goes wrong while it exists, one object at a time. A call that fails is not made,
// but where its error says that it was (kIsDone); and where it says that there will be an edge
// (kBringsEdge), there is one.
//
// Thread safety: as system calls.
class Faults {
 public:
  explicit Faults(const Fault& main, const Fault& throughout) {
    rules_[0].Set(main);
    rules_[1].Set(throughout);
    using fiber::internal::system_calls;
    system_calls.store(&kTable, std::memory_order_release);  // order: system-calls
  }
  ~Faults() {
    using fiber::internal::system_calls;
    system_calls.store(&fiber::internal::kKernel,
                       std::memory_order_release);  // order: system-calls
  }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  // Of the first fault: how many calls it might have been, and whether one of them failed.
  uint64_t count() const { return rules_[0].count.load(std::memory_order_relaxed); }
  bool is_hit() const { return rules_[0].is_hit.load(std::memory_order_relaxed); }

 private:
  struct Rule {
    std::atomic<Call> call;
    std::atomic<int> error;
    std::atomic<uint64_t> nth;
    std::atomic<int64_t> second;
    std::atomic<uint64_t> count;
    std::atomic<bool> is_hit;

    void Set(const Fault& fault) {
      call.store(fault.call, std::memory_order_relaxed);
      error.store(fault.error, std::memory_order_relaxed);
      nth.store(fault.nth, std::memory_order_relaxed);
      second.store(fault.second, std::memory_order_relaxed);
      count.store(0, std::memory_order_relaxed);
      is_hit.store(false, std::memory_order_relaxed);
    }
    // The error, 0: none.
    int Ask(Call made, int64_t argument) {
      if (made != call.load(std::memory_order_relaxed)) return 0;
      const int64_t wanted = second.load(std::memory_order_relaxed);
      if (wanted != kAny && wanted != argument) return 0;
      const uint64_t number = count.fetch_add(1, std::memory_order_relaxed) + 1;
      const uint64_t fails = nth.load(std::memory_order_relaxed);
      if (fails != kEach && fails != number) return 0;
      is_hit.store(true, std::memory_order_relaxed);
      return error.load(std::memory_order_relaxed);
    }
  };

  // A connection goes on in the background; a descriptor is closed whatever else there is to say; a
  // futex whose memory is gone has nobody left to wake.
  static bool IsDone(Call call, int error) {
    return (call == Call::connect && (error == EINPROGRESS || error == EINTR)) ||
           (call == Call::close && error != EBADF) || (call == Call::futex && error == EFAULT);
  }
  static bool BringsEdge(Call call, int error) {
    switch (call) {
      case Call::recv:
      case Call::send:
      case Call::sendmsg:
      case Call::accept4:
        return error == EAGAIN;
      case Call::getpeername:
        return error == ENOTCONN;
      default:
        return false;
    }
  }

  // Which epoll instance watches a descriptor, for an edge of our own.
  struct Watches {
    std::mutex mutex;
    std::map<int, std::pair<int, epoll_event>> of;  // guarded by mutex

    void Note(int epoll_fd, int operation, int fd, const epoll_event* event) {
      std::lock_guard<std::mutex> hold(mutex);
      if (operation == EPOLL_CTL_ADD) of[fd] = {epoll_fd, *event};
      if (operation == EPOLL_CTL_DEL) of.erase(fd);
    }
    void BringEdge(int fd) {
      std::lock_guard<std::mutex> hold(mutex);
      const auto watch = of.find(fd);
      if (watch == of.end()) return;
      epoll_event event = watch->second.second;
      fiber::internal::kKernel.epoll_ctl(watch->second.first, EPOLL_CTL_MOD, fd, &event);
    }
  };

  template <class First, class... Rest>
  static int64_t AsNumber(First first, Rest...) {
    if constexpr (std::is_integral_v<First>) return static_cast<int64_t>(first);
    return 0;
  }
  static int64_t AsNumber() { return 0; }
  template <class First, class... Rest>
  static int64_t SecondOf(First, Rest... rest) {
    return AsNumber(rest...);
  }

  template <Call kCall, auto kMember>
  struct Injected;
  template <Call kCall, class R, class... A, R (*fiber::internal::SystemCalls::*kMember)(A...)>
  struct Injected<kCall, kMember> {
    static R Run(A... a) {
      const auto make = [&] { return (fiber::internal::kKernel.*kMember)(a...); };
      int error = 0;
      for (Rule& rule : rules_) {
        if (error == 0) error = rule.Ask(kCall, SecondOf(a...));
      }
      if (error == 0) {
        const R result = make();
        if constexpr (kCall == Call::epoll_ctl) {
          if (result == 0) watches_.Note(a...);
        }
        return result;
      }
      if (IsDone(kCall, error)) make();
      if constexpr (std::is_same_v<int, std::tuple_element_t<0, std::tuple<A...>>>) {
        if (BringsEdge(kCall, error)) watches_.BringEdge(std::get<0>(std::tuple<A...>(a...)));
      }
      if constexpr (kCall == Call::pthread_create || kCall == Call::posix_spawnp ||
                    kCall == Call::getaddrinfo) {
        return error;
      }
      errno = error;
      if constexpr (std::is_pointer_v<R>) {
        return reinterpret_cast<R>(uintptr_t(-1));  // MAP_FAILED
      } else {
        return R{-1};
      }
    }
  };

  static inline Rule rules_[2];
  static inline Watches& watches_ = *new Watches;
  static constexpr fiber::internal::SystemCalls kTable = {
#define X(name) .name = Injected<Call::name, &fiber::internal::SystemCalls::name>::Run,
      WEFT_EACH_CALL(X)
#undef X
  };
};

}  // namespace netpoll_test

#endif  // WEFT_TESTS_NETPOLL_FAULTS_H_
