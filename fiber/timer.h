// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_TIMER_H_
#define WEFT_FIBER_TIMER_H_

#include <cstdint>
#include <memory>
#include <source_location>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/deadline.h"
#include "fiber/internal/alarm.h"
#include "fiber/mutex.h"

namespace fiber {

// Timer calls a function at a deadline, in a fiber of its own.
//
//   fiber::Timer watchdog(absl::Seconds(30), [&] { connection.Close(); });
//   while (auto request = connection.Read()) {
//     watchdog.Reset(absl::Seconds(30));
//     …
//
// While it is pending it has no fiber and no stack: a few hundred bytes, so that there may be many. The fiber inherits what
// a fiber spawned by the timer's maker would, its ambient deadline included. An exception that escapes the function ends
// the process, as for Go(). If the timer is set anew while the function runs, a second call may begin before the first has
// returned.
//
// Made or reset on a plain thread, it belongs to the one runtime that is running; with none or several that is a bug, which
// ends the process with a message, as for Go(). Where there is no memory to set it: std::bad_alloc.
//
// A runtime that shuts down calls nothing any more that was not due before; what is pending then stays pending.
//
// Thread safety: any fiber, any thread.
// Memory ordering: what happened before the timer was set is visible to its call.
// Lifetime: it is not set anew once the runtime that it was last set on has ended. Its own function may destroy it.
class Timer {
 public:
  // Never blocks.
  Timer(Deadline deadline, absl::AnyInvocable<void()> fn,
        std::source_location site = std::source_location::current())
      : alarm_(internal::Alarm::New(std::move(fn), site)) {
    alarm_->Set(deadline);
  }
  // Stop(), then waits for calls that have been set off to return, and destroys the function; called from within one, it
  // waits for none. Parks the fiber; blocks the thread when called from a plain one.
  ~Timer() = default;
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Exact: true: it was pending, and the function is not called. False: it was not: the call has begun or is about to, has
  // returned, or the timer was stopped before. Does not wait for the call. Never blocks.
  bool Stop() { return alarm_->Stop(); }

  // Sets it to `deadline`, whatever it was. True: it was pending, and is not called for the earlier deadline. Never blocks.
  bool Reset(Deadline deadline) { return alarm_->Set(deadline); }

 private:
  struct Closer {
    void operator()(internal::Alarm* alarm) const { alarm->Close(); }
  };

  const std::unique_ptr<internal::Alarm, Closer> alarm_;
};

// Ticker sends the time, period by period.
//
//   fiber::Ticker ticker(absl::Seconds(1));
//   for (absl::Duration at : ticker.ticks()) {
//     if (!Report(at).ok()) break;
//   }
//
// Tick k, from 1 on, is due at start + k * period, and no tick moves those after it. Its item is that instant, since the
// clock's start, as of Now(). There is room for one: who receives slowly misses ticks, and then has those that follow in
// their places. When Stop() or Reset() has returned, no tick from before is received.
//
// Thread safety, runtimes, memory, lifetime: as of Timer. ticks() is never closed.
class Ticker {
 public:
  // It starts now. Never blocks. REQUIRES: period > 0
  explicit Ticker(absl::Duration period,
                  std::source_location site = std::source_location::current());
  // Waits for a tick that is being sent. Parks the fiber; blocks the thread when called from a plain one.
  // REQUIRES: nobody waits for a tick
  ~Ticker() = default;
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

  // Never blocks.
  Channel<absl::Duration>& ticks() { return ticks_; }

  // No more ticks, until it is reset. Parks the fiber while a tick is being sent; blocks the thread when called from a plain
  // one.
  void Stop();

  // Starts anew, now. Parks the fiber while a tick is being sent; blocks the thread when called from a plain one.
  // REQUIRES: period > 0
  void Reset(absl::Duration period);

 private:
  void Tick();
  void StopLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Mutex mu_;
  int64_t period_ns_ ABSL_GUARDED_BY(mu_) = 0;
  Deadline next_ ABSL_GUARDED_BY(mu_);  // never: it is stopped
  Channel<absl::Duration> ticks_{1};
  Timer timer_;  // last, so that no Tick() is left when the others go
};

}  // namespace fiber

#endif  // WEFT_FIBER_TIMER_H_
