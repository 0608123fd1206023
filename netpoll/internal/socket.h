// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_SOCKET_H_
#define WEFT_NETPOLL_INTERNAL_SOCKET_H_

#include <string>

#include "netpoll/address.h"

namespace netpoll::internal {

class Descriptor;

// An empty Address where the kernel does not tell.
Address LocalOf(int fd);
Address PeerOf(int fd);
// Likewise if `descriptor` is null or closed.
Address LocalAddress(Descriptor* descriptor);

// "127.0.0.1:80" for messages: the peer where it is known, else "the lost peer of this end, …", else "a socket".
std::string PeerText(int fd);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_SOCKET_H_
