// SPDX-License-Identifier: Apache-2.0
#include "fiber/wait_reason.h"

namespace fiber {

std::string_view WaitReasonName(WaitReason reason) {
  switch (reason) {
    case WaitReason::kNone: return "nothing";
    case WaitReason::kSleep: return "sleep";
    case WaitReason::kJoin: return "join";
    case WaitReason::kMutex: return "mutex";
    case WaitReason::kSemaphore: return "semaphore";
    case WaitReason::kWaitGroup: return "wait group";
    case WaitReason::kEvent: return "event";
    case WaitReason::kRead: return "read";
    case WaitReason::kWrite: return "write";
    case WaitReason::kAccept: return "accept";
    case WaitReason::kConnect: return "connect";
    case WaitReason::kDescriptor: return "descriptor";
    case WaitReason::kSend: return "send";
    case WaitReason::kReceive: return "receive";
    case WaitReason::kSelect: return "select";
    case WaitReason::kScope: return "scope";
    case WaitReason::kSharedMutex: return "shared mutex";
    case WaitReason::kCondition: return "condition";
    case WaitReason::kBarrier: return "barrier";
    case WaitReason::kOnce: return "once";
    case WaitReason::kBlockingCall: return "blocking call";
    case WaitReason::kProcess: return "process";
  }
  return "unknown";
}

}  // namespace fiber
