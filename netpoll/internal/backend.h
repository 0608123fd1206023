// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_BACKEND_H_
#define WEFT_NETPOLL_INTERNAL_BACKEND_H_

#include <cstdint>

#include "absl/status/status.h"

namespace netpoll::internal {

// What happened to a descriptor; several at once.
enum EventBits : uint32_t {
  kReadable = 1,    // a read that would have blocked may not block now
  kWritable = 2,    // likewise a write
  kPeerClosed = 4,  // the peer has ended its flow: after what is there comes the end
  kHangup = 8,      // both flows are over
  kError = 16,      // the next system call tells which error
  kUrgent = 32,     // there is an urgent mark in what is there to read
};

// Event is one descriptor's news.
struct Event {
  uint64_t tag = 0;
  uint32_t bits = 0;
};

// Backend is the contract between the poller and a way to ask the kernel for events. backend_epoll.h keeps it.
//
// What an event means: at some moment after the descriptor was added, and after the last event that said the same, it
// became (or, right after Add, already was) what the bits say. Edges, not levels: there is one event when data comes
// into an empty socket, and none for what is left behind by a reader that stopped early. Bits may be reported again
// without reason; so an event is a hint to try a system call, never a promise that it succeeds.
//
// After Remove() a tag may still be delivered: by a Wait of another thread that had collected it before. Whoever takes
// the events must be able to tell that a tag is stale, for ever.
//
// Every function may be called from any number of threads at once.
class Backend {
 public:
  virtual ~Backend() = default;

  // Watches `fd` for everything until Remove(). The tag is not 0. Never blocks. kResourceExhausted: the message names
  // the limit; kInvalidArgument: the kernel cannot watch this kind of descriptor. Nothing is left behind on an error.
  virtual absl::Status Add(int fd, uint64_t tag) = 0;

  // Stops watching `fd`. Comes before close(fd): a description with a duplicate elsewhere goes on bringing events and
  // could not be removed any more. Never blocks.
  virtual void Remove(int fd) = 0;

  // Collects up to `capacity` events and returns how many. If there are none, waits for some until `deadline_ns` on the
  // monotonic clock (INT64_MAX: without end; past: does not wait) or for a Kick. May return 0 at any time, for any
  // reason. `was_kicked`: this Wait took a Kick. Deadlines are honoured to 100 us where the kernel can. Blocks the
  // thread.
  virtual int Wait(int64_t deadline_ns, Event* events, int capacity, bool* was_kicked) = 0;

  // Makes one Wait take it: one of those waiting now, or the next one, even if that did not mean to wait. Several that
  // come before they are taken may count as one. Never blocks.
  virtual void Kick() = 0;
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_BACKEND_H_
