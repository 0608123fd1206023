// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_STALL_REPORTER_H_
#define WEFT_SCHED_INTERNAL_STALL_REPORTER_H_

#include <pthread.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

#include "fiber/internal/spin_lock.h"
#include "sched/internal/stall_log.h"
#include "sched/stall.h"

namespace sched::internal {

// StallReporter tells of stalls: to a hook, or to the log, unless WEFT_STALL_LOG=0 is in the environment; there each spawn site
// is heard of once a minute at most. Symbols are
// read from disk, and a hook may do anything, so it has a thread of its own while it speaks: the monitor does not wait for it.
//
// Thread safety: one thread.
class StallReporter {
 public:
  using Hook = std::function<void(const Stall&)>;

  explicit StallReporter(Hook hook);
  // Waits until all has been told. Blocks the thread.
  ~StallReporter();
  StallReporter(const StallReporter&) = delete;
  StallReporter& operator=(const StallReporter&) = delete;

  // Whether to ask for a stall's details, which costs the culprit a signal: a hook wants all of them.
  bool Wants(const std::source_location& site, int64_t now_ns) const {
    if (hook_ != nullptr) return true;
    return is_logging_ && log_.ShouldReport(site, now_ns);
  }
  // Never blocks. More than kMostWaiting that wait to be told are not told. Throws std::bad_alloc.
  void Tell(Stall stall, int64_t now_ns);

 private:
  static constexpr size_t kMostWaiting = 256;

  static void* Entry(void* reporter);
  void Speak();
  void Join();

  const Hook hook_;
  const bool is_logging_;
  StallLog log_;
  pthread_t thread_{};
  bool has_thread_ = false;

  fiber::internal::BlockingMutex mutex_;  // guards what follows
  std::deque<Stall> waiting_;
  bool is_speaking_ = false;  // somebody is in Speak() and looks again before he leaves
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_STALL_REPORTER_H_
