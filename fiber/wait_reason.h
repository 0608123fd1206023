// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_WAIT_REASON_H_
#define WEFT_FIBER_WAIT_REASON_H_

#include <cstdint>
#include <string_view>

namespace fiber {

// WaitReason says what a parked fiber waits for: the first question anybody has of a program that hangs.
enum class WaitReason : uint8_t {
  kNone,
  kSleep,
  kJoin,
  kMutex,
  kSemaphore,
  kWaitGroup,
  kEvent,
  kRead,
  kWrite,
  kAccept,
  kConnect,
  kDescriptor,
  kSend,
  kReceive,
  kSelect,
  kScope,
  kSharedMutex,
  kCondition,
  kBarrier,
  kOnce,
  kBlockingCall,
  kProcess,
};
inline constexpr int kWaitReasons = static_cast<int>(WaitReason::kProcess) + 1;

// "sleep", "mutex", … for messages. Never blocks.
std::string_view WaitReasonName(WaitReason reason);

}  // namespace fiber

#endif  // WEFT_FIBER_WAIT_REASON_H_
