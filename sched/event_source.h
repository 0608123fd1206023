// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_EVENT_SOURCE_H_
#define WEFT_SCHED_EVENT_SOURCE_H_

#include <cstdint>

namespace sched {

// EventSource is the seam between idle workers and whatever brings events: a worker without work sleeps in Poll, so
// that an event wakes a worker without a detour over another thread. `netpoll` implements it over epoll; without
// sockets the runtime's own, a futex, is there only to be interrupted.
//
// Both functions may be called from any number of threads at once. A runtime destroys its source when it has stopped: from
// then on there are no events, which the source says to those who wait for one elsewhere.
class EventSource {
 public:
  virtual ~EventSource() = default;

  // Unparks (fiber::internal::Unpark) every fiber whose event has come. If there was none, waits for one until
  // `deadline_ns` on the monotonic clock (INT64_MAX: without end; the past: does not wait) or for an Interrupt. Returns
  // whenever it likes: the caller looks for work again. The caller is a worker on its own stack.
  //
  // Precision: deadlines of 100 us are honoured. Blocks the thread.
  virtual void Poll(int64_t deadline_ns) = 0;

  // Makes one Poll that waits return, or the next one that would wait, whichever comes first. It is never lost: a Poll
  // that did not mean to wait does not use it up. Any thread. Never blocks.
  virtual void Interrupt() = 0;
};

}  // namespace sched

#endif  // WEFT_SCHED_EVENT_SOURCE_H_
