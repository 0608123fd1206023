// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_ERRNO_STATUS_H_
#define WEFT_NETPOLL_INTERNAL_ERRNO_STATUS_H_

#include <string_view>

#include "absl/status/status.h"

namespace netpoll::internal {

// The status of a system call that failed with `error`, with the code that says what it means to a user of netpoll (the
// table at Stream) and, where a limit was hit, its name and the remedy. ErrnoOf() gives `error` back.
//
//   "connect to 127.0.0.1:80: Connection refused"        operation "connect to", subject "127.0.0.1:80"
absl::Status ErrnoStatus(int error, std::string_view operation, std::string_view subject = {});
// Likewise, where the usual code or remedy would mislead.
absl::Status ErrnoStatus(absl::StatusCode code, int error, std::string_view operation,
                         std::string_view subject, std::string_view remedy);

// Whether `error` says that descriptors or memory have run out, which others may give back.
bool IsExhaustion(int error);

// What is said of everything after Close(), and of what outlived its runtime.
absl::Status ClosedStatus();
absl::Status RuntimeEndedStatus();

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_ERRNO_STATUS_H_
