// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_DIRECTION_H_
#define WEFT_NETPOLL_INTERNAL_DIRECTION_H_

#include <cstdint>

namespace netpoll::internal {

// The two flows of a descriptor. What accepts reads, what connects writes.
enum class Direction : uint8_t { kRead, kWrite };

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_DIRECTION_H_
