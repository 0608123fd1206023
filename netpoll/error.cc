// SPDX-License-Identifier: Apache-2.0
#include "netpoll/error.h"

#include <errno.h>

#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "netpoll/internal/errno_status.h"

namespace netpoll {
namespace {

constexpr char kPayload[] = "weft/errno";

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case ENOSPC: return absl::StatusCode::kResourceExhausted;
    case EADDRINUSE:
    case EEXIST: return absl::StatusCode::kAlreadyExists;
    case EACCES:
    case EADDRNOTAVAIL:
    case EAFNOSUPPORT:
    case EBADF:
    case EDESTADDRREQ:
    case EINVAL:
    case EISDIR:
    case ENODEV:
    case ELOOP:
    case ENAMETOOLONG:
    case ENOTDIR:
    case ENOTSOCK:
    case EOPNOTSUPP:
    case EPERM:
    case EPROTONOSUPPORT:
    case EPROTOTYPE:
    case EROFS: return absl::StatusCode::kInvalidArgument;
    default: return absl::StatusCode::kUnavailable;
  }
}

// The limit behind an error, and what to do about it.
const char* RemedyFor(int error) {
  switch (error) {
    case EMFILE:
      return " (RLIMIT_NOFILE: the process has no descriptors left; raise it with ulimit -n, LimitNOFILE= or setrlimit)";
    case ENFILE: return " (fs.file-max: the machine has no descriptors left; raise it with sysctl)";
    case ENOSPC:
      return " (fs.epoll.max_user_watches: the user has no epoll watches left; raise it with sysctl)";
    case ENOBUFS:
    case ENOMEM:
      return " (the kernel has no memory for it: the memory limit, or net.ipv4.tcp_mem; raise it or use less)";
    default: return "";
  }
}

}  // namespace

int ErrnoOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayload);
  int error = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &error)) return 0;
  return error;
}

namespace internal {

absl::Status ErrnoStatus(absl::StatusCode code, int error, std::string_view operation,
                         std::string_view subject, std::string_view remedy) {
  std::string text(operation);
  if (!subject.empty()) absl::StrAppend(&text, " ", std::string(subject));
  absl::StrAppend(&text, ": ", std::system_category().message(error), std::string(remedy));
  absl::Status status(code, text);
  status.SetPayload(kPayload, absl::Cord(absl::StrCat(error)));
  return status;
}

absl::Status ErrnoStatus(int error, std::string_view operation, std::string_view subject) {
  return ErrnoStatus(CodeOf(error), error, operation, subject, RemedyFor(error));
}

bool IsExhaustion(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM ||
         error == ENOSPC;
}

absl::Status ClosedStatus() { return absl::FailedPreconditionError("use of a closed socket"); }

absl::Status RuntimeEndedStatus() {
  return absl::FailedPreconditionError("the socket's runtime has ended (or this process was forked from it)");
}

}  // namespace internal
}  // namespace netpoll
