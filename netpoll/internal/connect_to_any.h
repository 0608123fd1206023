// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_CONNECT_TO_ANY_H_
#define WEFT_NETPOLL_INTERNAL_CONNECT_TO_ANY_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "netpoll/address.h"
#include "netpoll/tcp.h"

namespace netpoll::internal {

// The first connection that is made to one of `addresses`, of which there is one at least: Happy Eyeballs (RFC 8305). Fails
// once all have, as the first of them, with what each said; `name` is for that. Parks the fiber.
absl::StatusOr<TcpStream> ConnectToAny(std::string_view name, std::vector<Address> addresses,
                                       fiber::Deadline deadline);

// The first, then alternating between families, each in its order. For tests.
std::vector<Address> Interleave(const std::vector<Address>& addresses);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_CONNECT_TO_ANY_H_
