// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_HOST_NAME_H_
#define WEFT_NETPOLL_INTERNAL_HOST_NAME_H_

#include <optional>
#include <string_view>

namespace netpoll::internal {

// Letters, digits, '-', '_' and dots between them, of which the last part is no number: what might be asked for.
bool IsHostName(std::string_view text);
// A port, or what might be the name of a service.
bool IsPort(std::string_view text);
bool IsServiceName(std::string_view text);

struct HostAndService {
  std::string_view host;
  std::string_view service;
};
// "localhost:80", "example.com:https". None: something else.
std::optional<HostAndService> SplitHostName(std::string_view text);

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_HOST_NAME_H_
