// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_SIGNAL_REGISTRY_H_
#define WEFT_NETPOLL_INTERNAL_SIGNAL_REGISTRY_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

// Which signals of the process somebody wants to hear of; signal_registry.cc has the protocol.
namespace netpoll::internal {

// SignalNews is the subscription to some signals.
struct SignalNews {
  int bell = -1;               // the subscriber's to close: each signal is an edge of it; nothing is to be read from it
  std::vector<uint64_t> seen;  // how many of each had come, in the order of the signals
};

// From now on the signals no longer do what they did, but are counted, until they are unsubscribed as often as they were
// subscribed; then they do what they did before. Any thread, as the others. kResourceExhausted: descriptors;
// kInvalidArgument: the kernel does not permit it. A signal that nobody can have is misuse, which ends the process.
absl::StatusOr<SignalNews> SubscribeSignals(const std::vector<int>& signals);
void UnsubscribeSignals(const std::vector<int>& signals);

// How many have come since the process began. One that comes later is an edge of the bell after this.
uint64_t SignalCount(int signal);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_SIGNAL_REGISTRY_H_
