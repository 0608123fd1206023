// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_SIGNALS_H_
#define WEFT_NETPOLL_SIGNALS_H_

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "fiber/channel.h"

namespace netpoll {

// Signals sends the process's signals to a channel, while it exists. A server that stops when it is told to:
//
//   netpoll::Signals stop({SIGTERM, SIGINT});
//   const auto stopper = fiber::Spawn([&] {                       // ends before `stop` and `listener` do
//     if (stop.received().Receive().ok()) listener.Close();       // Accept() then returns kFailedPrecondition
//   });
//
// or, in a select, fiber::OnReceive(stop.received(), [](int signal) { … }).
//
// As in Go, whoever asks for a signal takes it from the system: SIGTERM no longer ends the process. Several may ask for the
// same one: each is sent it. When the last of them has gone, the signal does again what it did before the first came.
//
// Nobody waits for a slow receiver. Signals that find the channel full are dropped; a standard signal that comes again
// before a thread has taken the first is one to the kernel, and so here. Of different signals that come at about the same
// time the order is not kept.
//
// A signal is taken by a thread that does not block it. Workers block all but faults and SIGPROF, so that one other thread must not:
// mostly the main one, asleep in sched::Run(). For the same reason raise() in a fiber, which sends to its own thread, is not
// heard of; kill(getpid(), signal) is. The channel gets it as soon as a worker is free.
//
// Which signals: not SIGKILL and SIGSTOP, which cannot be caught, not faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP,
// SIGSYS, SIGABRT), which somebody would only hear of while their thread repeats them, and not those that the C library
// keeps for itself (32 and 33): asking for one is misuse, which ends the process with a message. SIGCHLD may be asked for:
// nothing here depends on it.
//
// It belongs to the runtime whose fiber made it. When that shuts down, the channel is closed; and its fibers, as ever, see
// kCancelled first.
//
// Thread safety: any fiber, any thread. Moving it is like destroying it.
// Lifetime: who still receives when it is destroyed gets kOutOfRange.
class Signals {
 public:
  static constexpr size_t kCapacity = 16;

  // As Create(), but where that fails the process ends with its message: for the start of a program. Never blocks.
  explicit Signals(std::initializer_list<int> signals);

  // From now on `signals` are sent to a channel that holds `capacity` of them. Throws std::bad_alloc. Never blocks.
  // kResourceExhausted: descriptors, epoll watches, memory: the message names the limit; kInvalidArgument: the system does not
  // permit it; kFailedPrecondition: called from a plain thread, or by a fiber of a simulation.
  static absl::StatusOr<Signals> Create(std::vector<int> signals, size_t capacity = kCapacity);

  Signals(Signals&&) noexcept;
  // As the destructor, for what it had. Parks the fiber for a moment; blocks the thread when called from a plain one.
  Signals& operator=(Signals&&) noexcept;
  // Closes the channel. Parks the fiber for a moment; blocks the thread when called from a plain one.
  ~Signals();

  // Their numbers, as they come. Never blocks. REQUIRES: not moved from.
  fiber::Channel<int>& received();

 private:
  struct Delivery;
  struct Ender {
    void operator()(Delivery* delivery) const;
  };

  explicit Signals(std::unique_ptr<Delivery, Ender> delivery);

  std::unique_ptr<Delivery, Ender> delivery_;
};

}  // namespace netpoll

#endif  // WEFT_NETPOLL_SIGNALS_H_
