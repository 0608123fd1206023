// SPDX-License-Identifier: Apache-2.0
#include "netpoll/stream.h"

namespace netpoll {

IoResult ReadFull(Stream& stream, std::span<char> buffer, fiber::Deadline deadline) {
  IoResult result;
  while (result.bytes < buffer.size()) {
    absl::StatusOr<size_t> n = stream.Read(buffer.subspan(result.bytes), deadline);
    if (!n.ok()) {
      result.status = absl::IsOutOfRange(n.status()) && result.bytes > 0
                          ? absl::DataLossError("the stream ended in the middle")
                          : n.status();
      return result;
    }
    result.bytes += *n;
  }
  return result;
}

}  // namespace netpoll
