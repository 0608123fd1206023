// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_ALARM_H_
#define WEFT_FIBER_INTERNAL_ALARM_H_

#include <cstdint>
#include <source_location>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "fiber/deadline.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/wait_block.h"
#include "fiber/mutex.h"
#include "fiber/scheduler.h"

namespace fiber::internal {

struct Ambient;

// Alarm calls a function in a fiber of its own at an instant: what a Timer is a handle to. alarm.cc has the protocol.
class Alarm : private Ringer {
 public:
  // Not set. It belongs to the caller until Close(). Fibers for `fn` inherit what the caller's would.
  static Alarm* New(absl::AnyInvocable<void()> fn, std::source_location site) {
    return new Alarm(std::move(fn), site);
  }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

  // Sets it anew. True: it was set, and does not go off for that. From a plain thread it is handed to the one runtime by
  // way of a fiber. Throws std::bad_alloc; it is not set then.
  bool Set(Deadline deadline);
  // True: it was set, and does not go off any more.
  bool Stop();
  // Stop(), for good; waits for calls that have been set off, unless it is made from within one. The alarm may be gone.
  void Close();

 private:
  // The call of `fn` that a fiber makes; on its stack.
  struct Call {
    Call* next = nullptr;
    const WaitBlock* caller = nullptr;
  };

  Alarm(absl::AnyInvocable<void()> fn, std::source_location site);
  ~Alarm();

  static void RingNow(Ringer& self);
  void Run();
  // By a fiber, if it is still set as it was when `open_word` was given.
  void FileSet(uint64_t open_word);

  bool DisarmLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // False: there was no memory, and it is not set.
  bool FileLocked(ThreadState& thread) ABSL_EXCLUSIVE_LOCKS_REQUIRED(lock_);
  // The caller has counted itself out, under the lock, as the last.
  static void DeleteIf(bool is_last, Alarm* alarm) {
    if (is_last) delete alarm;
  }

  absl::AnyInvocable<void()> fn_;
  const std::source_location site_;
  const uint64_t parent_id_;
  WaitBlock& block_;
  Ambient* const ambient_;  // counted: last, since what comes before may throw

  SpinLock lock_;
  // Of the wait that stands for the setting; zero: there is none.
  uint64_t open_word_ ABSL_GUARDED_BY(lock_) = 0;
  int64_t deadline_ns_ ABSL_GUARDED_BY(lock_) = 0;
  // The serial of the scheduler whose entries the block may have.
  uint64_t filed_with_ ABSL_GUARDED_BY(lock_) = 0;
  // Settings that are neither stopped nor over, calls that go on included; and those and all else that refers to it.
  int unfinished_ ABSL_GUARDED_BY(lock_) = 0;
  int references_ ABSL_GUARDED_BY(lock_) = 1;
  Call* calls_ ABSL_GUARDED_BY(lock_) = nullptr;
  bool is_closed_ ABSL_GUARDED_BY(lock_) = false;
  bool is_abandoned_ ABSL_GUARDED_BY(lock_) = false;  // closed by a call of its own: no other begins
  // On the stack of Close(), which waits for it; the last call unlocks it.
  Mutex* running_ ABSL_GUARDED_BY(lock_) = nullptr;
};

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_ALARM_H_
