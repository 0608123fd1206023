// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_ADDRESS_H_
#define WEFT_NETPOLL_ADDRESS_H_

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace netpoll {

// Address is where a socket is bound or connected to: an IPv4 or IPv6 address and a port.
//
//   absl::StatusOr<netpoll::Address> address = netpoll::Address::Parse("127.0.0.1:7000");
//   if (!address.ok()) return address.status();
//   netpoll::Address neighbour = address->WithPort(7001);
//   std::cerr << "forwarding " << *address << " to " << neighbour << "\n";
//
// Thread safety: a value; cheap to copy, usable as the key of a hash table.
class Address {
 public:
  // An empty address, that of no socket: family() is AF_UNSPEC and size() 0. Never blocks.
  Address() = default;

  // Reads an address:
  //
  //   127.0.0.1:80      IPv4: four decimal numbers
  //   [::1]:80          IPv6, in brackets
  //   [fe80::1%eth0]:80 with a scope, an interface's name or number: link-local and multicast only
  //   [::]:80           all addresses of this host, of both families unless IPV6_V6ONLY is set
  //   :80               all IPv4 addresses of this host, the same as 0.0.0.0:80
  //
  // Port 0 lets the system choose. An empty host is IPv4, other than in Go: a socket for [::]
  // cannot be had on a host without IPv6, and whether it takes IPv4 is not for an address to say.
  // Host names are not looked up: that is Resolve()'s (resolve.h). Never blocks.
  //
  // kInvalidArgument: anything else; the message quotes the text and says what is wrong with it.
  // kResourceExhausted: no descriptor to ask for the number of an interface.
  static absl::StatusOr<Address> Parse(std::string_view text);

  // Copies what accept() or getsockname() filled in. A flow label is dropped, and so is a scope
  // that the address has no use for. Never blocks.
  //
  // kInvalidArgument: not an IPv4 or IPv6 address, or too short.
  static absl::StatusOr<Address> FromSockaddr(const sockaddr* name, socklen_t size);

  // 127.0.0.1 with that port. Never blocks.
  static Address Loopback(uint16_t port);

  // What Parse() reads as this address, scopes as numbers; "(none)" if it is empty. Never blocks.
  std::string ToString() const;

  // What bind() and connect() take; valid as long as this object. Never blocks.
  const sockaddr* data() const { return &name_.any; }
  socklen_t size() const { return size_; }

  // AF_INET, AF_INET6, or AF_UNSPEC if it is empty. Never blocks.
  int family() const { return name_.any.sa_family; }

  // In host order; 0 if it is empty. Never blocks.
  uint16_t port() const;

  // This address with another port; an empty one remains empty. Never blocks.
  Address WithPort(uint16_t port) const;

  // Never blocks.
  friend bool operator==(const Address& a, const Address& b) { return a.bytes() == b.bytes(); }
  template <class H>
  friend H AbslHashValue(H state, const Address& address) {
    const std::string_view bytes = address.bytes();
    return H::combine_contiguous(std::move(state), bytes.data(), bytes.size());
  }

  // Writes ToString(). Blocks the thread if the stream does.
  friend std::ostream& operator<<(std::ostream& out, const Address& address);

 private:
  // Addresses are equal if their bytes are: what has no meaning is zero.
  std::string_view bytes() const { return {reinterpret_cast<const char*>(&name_), size_}; }

  // The first member is the largest, so that all of it is zero at first.
  union Name {
    sockaddr_in6 v6;
    sockaddr_in v4;
    sockaddr any;
  };
  Name name_ = {};
  socklen_t size_ = 0;
};

}  // namespace netpoll

#endif  // WEFT_NETPOLL_ADDRESS_H_
