// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_ERROR_H_
#define WEFT_NETPOLL_ERROR_H_

#include "absl/status/status.h"

namespace netpoll {

// The errno behind a status that a system call of netpoll's failed with; 0 if there is none. Never blocks.
//
//   auto stream = netpoll::TcpStream::Connect("127.0.0.1:80");
//   if (netpoll::ErrnoOf(stream.status()) == ECONNREFUSED) StartServer();
int ErrnoOf(const absl::Status& status);

}  // namespace netpoll

#endif  // WEFT_NETPOLL_ERROR_H_
