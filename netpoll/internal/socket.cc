// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/socket.h"

#include <sys/socket.h>

#include "absl/strings/str_cat.h"
#include "netpoll/internal/descriptor.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {
namespace {

Address FromKernel(int result, const sockaddr_storage& storage, socklen_t size) {
  if (result < 0) return Address();
  absl::StatusOr<Address> address =
      Address::FromSockaddr(reinterpret_cast<const sockaddr*>(&storage), size);
  return address.ok() ? *std::move(address) : Address();
}

}  // namespace

Address LocalOf(int fd) {
  sockaddr_storage storage{};
  socklen_t size;
  const int result = GetLocal(fd, &storage, &size);
  return FromKernel(result, storage, size);
}

Address PeerOf(int fd) {
  sockaddr_storage storage{};
  socklen_t size;
  const int result = GetPeer(fd, &storage, &size);
  return FromKernel(result, storage, size);
}

Address LocalAddress(Descriptor* descriptor) {
  if (descriptor == nullptr || !descriptor->TryRef()) return Address();
  Address address = LocalOf(descriptor->fd());
  descriptor->Unref();
  return address;
}

std::string PeerText(int fd) {
  if (const Address peer = PeerOf(fd); peer.size() != 0) return peer.ToString();
  if (const Address local = LocalOf(fd); local.size() != 0) {
    return absl::StrCat("the lost peer of this end, ", local.ToString());
  }
  return "a socket";
}

}  // namespace netpoll::internal
