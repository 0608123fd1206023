// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_FILE_STATUS_H_
#define WEFT_NETPOLL_INTERNAL_FILE_STATUS_H_

#include <string_view>

#include "absl/status/status.h"

namespace netpoll::internal {

// As ErrnoStatus(), with the codes and remedies that hold for files (the table at File).
//
//   "open /etc/motd: No such file or directory"        operation "open", path "/etc/motd"
absl::Status FileStatus(int error, std::string_view operation, std::string_view path);

// What is said after Close().
absl::Status ClosedFileStatus();

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_FILE_STATUS_H_
