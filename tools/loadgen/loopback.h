// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_LOOPBACK_H_
#define WEFT_TOOLS_LOADGEN_LOOPBACK_H_

#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "netpoll/address.h"
#include "netpoll/tcp.h"

namespace loadgen {

// Connects to `target`, an IPv4 address of this machine's loopback, from one of several source
// addresses there, by `number`. Between two addresses there are some 28,000 ports; with most of
// them taken the kernel searches for long, and soon in vain. Errors as TcpStream::Connect. Parks
// the fiber.
absl::StatusOr<netpoll::TcpStream> ConnectOnLoopback(int number, const netpoll::Address& target,
                                                     fiber::Deadline deadline);

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_LOOPBACK_H_
