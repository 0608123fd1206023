// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/file_status.h"

#include <errno.h>

#include "netpoll/internal/errno_status.h"

namespace netpoll::internal {
namespace {

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT: return absl::StatusCode::kNotFound;
    case EEXIST: return absl::StatusCode::kAlreadyExists;
    case EACCES:
    case EPERM:
    case EROFS: return absl::StatusCode::kPermissionDenied;
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOSPC: return absl::StatusCode::kResourceExhausted;
    case EBADF:
    case EINVAL:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case ENOTDIR:
    case EOPNOTSUPP:
    case ESPIPE: return absl::StatusCode::kInvalidArgument;
    case EBUSY:
    case ENOTEMPTY:
    case ETXTBSY:
    case EXDEV: return absl::StatusCode::kFailedPrecondition;
    case EIO: return absl::StatusCode::kDataLoss;
    default: return absl::StatusCode::kUnavailable;
  }
}

// The limit behind an error, and what to do about it.
const char* RemedyFor(int error) {
  switch (error) {
    case EDQUOT: return " (the user's quota on the file system is used up; raise it or remove files)";
    case EFBIG:
      return " (RLIMIT_FSIZE or the file system's longest file; raise it with ulimit -f, or write several files)";
    case EMFILE:
      return " (RLIMIT_NOFILE: the process has no descriptors left; raise it with ulimit -n, LimitNOFILE= or setrlimit)";
    case ENFILE: return " (fs.file-max: the machine has no descriptors left; raise it with sysctl)";
    case ENOMEM: return " (the kernel has no memory for it: the memory limit; raise it or use less)";
    case ENOSPC: return " (the device has no room left; raise it or remove files)";
    default: return "";
  }
}

}  // namespace

absl::Status FileStatus(int error, std::string_view operation, std::string_view path) {
  return ErrnoStatus(CodeOf(error), error, operation, path, RemedyFor(error));
}

absl::Status ClosedFileStatus() { return absl::FailedPreconditionError("use of a closed file"); }

}  // namespace netpoll::internal
