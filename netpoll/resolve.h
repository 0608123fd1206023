// SPDX-License-Identifier: Apache-2.0
//
// Names of hosts.
//
//   absl::StatusOr<std::vector<netpoll::Address>> found = netpoll::Resolve("example.com", "https", absl::Seconds(5));
//   if (!found.ok()) return found.status();
//   for (const netpoll::Address& address : *found) …             // the best one first
//
// TcpStream::Connect() does this by itself.
#ifndef WEFT_NETPOLL_RESOLVE_H_
#define WEFT_NETPOLL_RESOLVE_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "netpoll/address.h"

namespace netpoll {

// The addresses of `host` for TCP, each once, in the system's order of preference (RFC 6724); at least one. `host` is a name,
// or an address as in Address::Parse but without brackets; `service` a port or a service's name ("https", of /etc/services).
//
// The C library is asked, so everything that the system is configured for counts: /etc/hosts, name servers, and their time
// limits, 5 s and more. It blocks its thread, one of BlockingDetached(); no more than 32 of them at a time, so that name
// servers that do not answer do not stop all else that blocks. Fibers of a runtime that ask for the same at the same time
// share an answer, and none is kept: what has a lifetime is the resolver's to cache. A question that nobody waits for any more is still
// asked to its end.
//
// A host whose last part is a number is an address and has to be one as Address::Parse wants it: the C library would take
// "0x7f.1" for 127.0.0.1.
//
// kNotFound: there is no such name, or it has no addresses; kUnavailable: no name server answers, or it failed;
// kInvalidArgument: not a name, no such service; kResourceExhausted: memory, descriptors, threads; kDeadlineExceeded,
// kCancelled. Throws std::bad_alloc. Parks the fiber; blocks the thread when called from a plain one.
//
// Thread safety: any fiber, any thread.
absl::StatusOr<std::vector<Address>> Resolve(std::string_view host, std::string_view service,
                                             fiber::Deadline deadline = {});

}  // namespace netpoll

#endif  // WEFT_NETPOLL_RESOLVE_H_
