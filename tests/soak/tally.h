// SPDX-License-Identifier: Apache-2.0
//
// What a run of the stress program has done so far, and how it fails.
#ifndef WEFT_TESTS_SOAK_TALLY_H_
#define WEFT_TESTS_SOAK_TALLY_H_

#include <cstdint>
#include <source_location>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace soak {

// The kinds of operations that are counted.
enum class Op {
  kTransfer,
  kPermits,
  kPut,
  kTake,
  kWaitGroup,
  kEvent,
  kSpawn,
  kDetached,
  kCancel,
  kException,
  kSleep,
  kYield,
  kTimeout,
  kThread,
  kConnect,
  kAccept,
  kRefused,
  kEcho,
  kHalfClose,
  kReset,
  kPeerReset,
  kClosedUnder,
  kCancelledUnder,
  kDeadlineMoved,
  kElsewhere,
  kListener,
  kKilobytes,
};
inline constexpr int kOps = static_cast<int>(Op::kKilobytes) + 1;

// Never blocks.
void Count(Op op, uint64_t n = 1);
// All that was counted: it grows while anything goes on. Never blocks.
uint64_t Progress();
// "transfers=12 permits=3 …"
std::string Tally();

// The round under way, for messages: its seed, and the command that runs it again.
void SetReplay(std::string command);

// Ends the process with a message, what every fiber is doing, and the command that replays the
// round.
[[noreturn]] void Fail(std::string_view what,
                       std::source_location site = std::source_location::current());

// Fails unless `holds`.
inline void Expect(bool holds, std::string_view what,
                   std::source_location site = std::source_location::current()) {
  if (!holds) Fail(what, site);
}

// Fails unless the status has that code.
void ExpectCode(const absl::Status& status, absl::StatusCode code,
                std::source_location site = std::source_location::current());

// One line for each fiber there is: its spawn site, its state, what it waits for.
std::string DescribeFibers();

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_TALLY_H_
