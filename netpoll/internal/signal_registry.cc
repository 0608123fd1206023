// SPDX-License-Identifier: Apache-2.0
//
// A signal comes to whichever thread of the process does not block it: never to a worker, so mostly to the main thread, in the
// middle of anything. What a handler may do there is next to nothing: no lock, no memory, no channel.
//
// Rejected: signalfd, which takes only what every thread of the process blocks, the user's own included; a thread in
// sigwait(), likewise; a descriptor for each subscriber, over which handlers would have to loop while some come and go.
//
// So the handler counts the signal, and rings the one *bell*, an eventfd that nobody reads. Each write to it is an edge
// for every poller that watches it, by a duplicate of its own, whatever it holds.
//
//   handler (any thread)                            subscriber (a fiber)
//   counts[signal] + 1                              clears `ready` of its slot (poll_slot.h)
//   writes to the bell: an edge, marks the slot     reads the counts; sends what is new
//                                                   waits: finds `ready` if there was an edge since
//
// The bell is closed with the last subscription, and its number may then be given out anew, while a handler that another
// thread began long ago is about to write:
//
//   handler                                         the last to go
//   handlers + 1                                    dispositions are as before: no handler begins that was not sent already
//   fd = bell; none: does not ring                  bell = none
//   writes to fd                                    waits until handlers is 0
//   handlers - 1                                    closes fd
//
// order: signal-bell — store-load: `handlers` against `bell`. Either the handler sees that there is none, or it is waited
// for. seq_cst.
#include "netpoll/internal/signal_registry.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {
namespace {

using fiber::internal::Fatal;
using fiber::internal::SpinLock;
using fiber::internal::SpinLockHolder;
using fiber::internal::System;

constexpr int kMost = 64;  // the highest number of a signal

// What handlers touch.
constinit std::atomic<uint64_t> counts[kMost + 1] = {};  // order: hand-off, release by the handler, acquire by who reads
constinit std::atomic<int> bell{-1};      // order: signal-bell
constinit std::atomic<int> handlers{0};   // that are running; order: signal-bell
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

constinit SpinLock lock;
int subscriptions ABSL_GUARDED_BY(lock) = 0;
int subscribers[kMost + 1] ABSL_GUARDED_BY(lock) = {};  // of each signal
struct sigaction before[kMost + 1] ABSL_GUARDED_BY(lock);  // where it has subscribers

void OnSignal(int signal) {
  const int error = errno;
  counts[signal].fetch_add(1, std::memory_order_release);
  handlers.fetch_add(1, std::memory_order_seq_cst);              // order: signal-bell
  const int fd = bell.load(std::memory_order_seq_cst);           // order: signal-bell
  if (fd >= 0) (void)AddToEventFd(fd);                           // full after 2^64 of them
  handlers.fetch_sub(1, std::memory_order_seq_cst);              // order: signal-bell
  errno = error;
}

// The bell is the parent's too, and whoever was in a handler stayed there.
void LeaveBellInFork() {
  handlers.store(0, std::memory_order_relaxed);
  if (const int fd = bell.exchange(-1, std::memory_order_seq_cst); fd >= 0) Close(fd);  // order: signal-bell
}

[[maybe_unused]] const bool bells_watch_forks = [] {
  fiber::internal::HoldAcrossForks(lock);
  fiber::internal::CallInForkedChildren(&LeaveBellInFork);
  return true;
}();

void Check(int signal) {
  if (signal < 1 || signal > kMost) Fatal("netpoll::Signals: there is no signal %d", signal);
  switch (signal) {
    case SIGKILL:
    case SIGSTOP: Fatal("netpoll::Signals: signal %d cannot be caught", signal);
    case SIGSEGV:
    case SIGBUS:
    case SIGFPE:
    case SIGILL:
    case SIGTRAP:
    case SIGSYS:
    case SIGABRT:
      Fatal("netpoll::Signals: signal %d says that its thread cannot go on: it would, if somebody only heard of it", signal);
    default: break;
  }
}

// 0 or -errno.
int Catch(int signal) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock) {
  struct sigaction action = {};
  action.sa_handler = &OnSignal;
  // On a signal stack where there is one; the user's system calls go on.
  action.sa_flags = SA_ONSTACK | SA_RESTART;
#ifdef WEFT_TSAN
  // ThreadSanitizer calls a handler when the thread next makes an access it sees. One that sleeps in a futex, as in
  // sched::Run(), has to come back for that.
  action.sa_flags &= ~SA_RESTART;
#endif
  sigfillset(&action.sa_mask);
  if (System().sigaction(signal, &action, &before[signal]) == 0) return 0;
  if (errno == EINVAL) Fatal("netpoll::Signals: the C library keeps signal %d for itself", signal);
  return -errno;
}

// What somebody else has put in the place of ours meanwhile stays.
void Restore(int signal) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock) {
  struct sigaction action = {};
  if (System().sigaction(signal, nullptr, &action) == 0 && action.sa_handler == &OnSignal) {
    (void)System().sigaction(signal, &before[signal], nullptr);  // it was permitted before
  }
}

void DropLocked(const std::vector<int>& signals, size_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock) {
  for (size_t i = 0; i < count; ++i) {
    if (--subscribers[signals[i]] == 0) Restore(signals[i]);
  }
  if (--subscriptions > 0) return;
  const int fd = bell.exchange(-1, std::memory_order_seq_cst);  // order: signal-bell
  while (handlers.load(std::memory_order_seq_cst) != 0) sched_yield();  // order: signal-bell
  if (fd >= 0) Close(fd);
}

}  // namespace

absl::StatusOr<SignalNews> SubscribeSignals(const std::vector<int>& signals) {
  for (int signal : signals) Check(signal);
  SignalNews news;
  news.seen.reserve(signals.size());
  SpinLockHolder hold(lock);
  int fd = bell.load(std::memory_order_relaxed);
  if (fd < 0) {
    fd = MakeEventFd();
    if (fd < 0) return ErrnoStatus(-fd, "eventfd for signals");
    bell.store(fd, std::memory_order_seq_cst);  // order: signal-bell
  }
  ++subscriptions;
  news.bell = Duplicate(fd);
  if (news.bell < 0) {
    DropLocked(signals, 0);
    return ErrnoStatus(-news.bell, "eventfd for signals");
  }
  for (size_t i = 0; i < signals.size(); ++i) {
    news.seen.push_back(SignalCount(signals[i]));
    const int error = subscribers[signals[i]] == 0 ? Catch(signals[i]) : 0;
    if (error < 0) {
      DropLocked(signals, i);
      Close(news.bell);
      return ErrnoStatus(-error, "sigaction");
    }
    ++subscribers[signals[i]];
  }
  return news;
}

void UnsubscribeSignals(const std::vector<int>& signals) {
  SpinLockHolder hold(lock);
  DropLocked(signals, signals.size());
}

uint64_t SignalCount(int signal) { return counts[signal].load(std::memory_order_acquire); }

}  // namespace netpoll::internal
