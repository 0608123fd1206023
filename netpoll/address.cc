// SPDX-License-Identifier: Apache-2.0
#include "netpoll/address.h"

#include <arpa/inet.h>
#include <net/if.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll {
namespace {

constexpr size_t kLongestText = 128;
constexpr size_t kLongestQuote = 128;

absl::Status Bad(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("address \"", absl::CHexEscape(text.substr(0, kLongestQuote)),
                   text.size() > kLongestQuote ? "..." : "", "\": ", why));
}

bool IsAllDigits(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), absl::ascii_isdigit);
}

bool IsBlankOrControl(char c) { return absl::ascii_isspace(c) || absl::ascii_iscntrl(c); }

bool HasLeadingZero(absl::string_view digits) { return digits.size() > 1 && digits[0] == '0'; }

struct HostAndPort {
  absl::string_view host;
  absl::string_view port;
  bool is_bracketed = false;
};

absl::StatusOr<HostAndPort> Split(absl::string_view text) {
  if (absl::StartsWith(text, "[")) {
    const size_t close = text.find(']');
    if (close == text.npos) return Bad(text, "the bracket is not closed");
    const absl::string_view rest = text.substr(close + 1);
    if (rest.empty()) return Bad(text, "there is no port");
    if (rest[0] != ':') return Bad(text, "a colon and the port have to follow the bracket");
    return HostAndPort{
        .host = text.substr(1, close - 1), .port = rest.substr(1), .is_bracketed = true};
  }
  const size_t colon = text.find(':');
  if (colon == text.npos) return Bad(text, "there is no port");
  if (text.find(':', colon + 1) != text.npos) {
    return Bad(text, "there is more than one colon; an IPv6 address is written [::1]:80");
  }
  return HostAndPort{.host = text.substr(0, colon), .port = text.substr(colon + 1)};
}

absl::StatusOr<uint16_t> ParsePort(absl::string_view text, absl::string_view port) {
  if (port.empty()) return Bad(text, "the port is empty");
  if (!IsAllDigits(port)) return Bad(text, "the port is not a decimal number");
  if (HasLeadingZero(port)) return Bad(text, "the port has a leading zero");
  int number = 0;
  if (!absl::SimpleAtoi(port, &number) || number > 65535)
    return Bad(text, "the port is above 65535");
  return static_cast<uint16_t>(number);
}

// By hand, for messages that say what is wrong: octal and short forms, which others read in
// different ways.
absl::StatusOr<in_addr> ParseIpv4(absl::string_view text, absl::string_view host) {
  const bool is_numeric = std::all_of(host.begin(), host.end(),
                                      [](char c) { return c == '.' || absl::ascii_isdigit(c); });
  if (!is_numeric) {
    return Bad(text, "the host is not a numeric address, nor are names looked up here (netpoll::Resolve)");
  }
  const std::vector<absl::string_view> numbers = absl::StrSplit(host, '.');
  if (numbers.size() != 4) return Bad(text, "an IPv4 address has four numbers");
  uint32_t address = 0;
  for (const absl::string_view number : numbers) {
    uint32_t byte = 0;
    if (number.empty()) return Bad(text, "an IPv4 address has four numbers");
    if (HasLeadingZero(number))
      return Bad(text, "a number with a leading zero may be meant as octal");
    if (!absl::SimpleAtoi(number, &byte) || byte > 255) return Bad(text, "a number is above 255");
    address = address << 8 | byte;
  }
  return in_addr{.s_addr = htonl(address)};
}

// Whether the same address exists on every link, so that it takes a scope to tell which one is
// meant. The kernel ignores the scopes of others.
bool HasScope(const in6_addr& address) {
  return IN6_IS_ADDR_LINKLOCAL(&address) || IN6_IS_ADDR_MC_LINKLOCAL(&address) ||
         IN6_IS_ADDR_MC_NODELOCAL(&address);
}

// Not if_nametoindex(): it opens a socket as well, and loses the reason when it cannot.
absl::StatusOr<uint32_t> InterfaceNumber(absl::string_view text, absl::string_view interface) {
  const auto none = [&] {
    return Bad(text, absl::StrCat("this host has no network interface ", absl::CHexEscape(interface)));
  };
  if (interface.size() >= IFNAMSIZ) return none();
  const std::string name(interface);
  const int fd = internal::Socket(AF_UNIX);
  if (fd < 0) return internal::ErrnoStatus(-fd, "socket to look up network interface", name);
  const int number = internal::FindInterface(fd, name.c_str());
  internal::Close(fd);
  if (number == -ENODEV) return none();
  if (number < 0) return internal::ErrnoStatus(-number, "look up network interface", name);
  return static_cast<uint32_t>(number);
}

absl::StatusOr<uint32_t> ParseScope(absl::string_view text, absl::string_view scope) {
  if (scope.empty()) return Bad(text, "the scope is empty");
  if (!IsAllDigits(scope)) return InterfaceNumber(text, scope);
  uint32_t number = 0;
  if (absl::SimpleAtoi(scope, &number) && number != 0) return number;
  return Bad(text, "the scope is not the number of an interface");
}

absl::StatusOr<sockaddr_in6> ParseIpv6(absl::string_view text, absl::string_view host) {
  sockaddr_in6 name = {};
  name.sin6_family = AF_INET6;
  const size_t percent = host.find('%');
  const std::string numeric(host.substr(0, percent));
  if (inet_pton(AF_INET6, numeric.c_str(), &name.sin6_addr) != 1) {
    in_addr v4;
    return inet_pton(AF_INET, numeric.c_str(), &v4) == 1
               ? Bad(text, "an IPv4 address takes no brackets")
               : Bad(text, "what is in brackets is not an IPv6 address");
  }
  if (percent == host.npos) return name;
  if (!HasScope(name.sin6_addr)) return Bad(text, "only link-local addresses take a scope");
  absl::StatusOr<uint32_t> scope = ParseScope(text, host.substr(percent + 1));
  if (!scope.ok()) return scope.status();
  name.sin6_scope_id = *scope;
  return name;
}

sockaddr_in Ipv4Name(in_addr address, uint16_t port) {
  sockaddr_in name = {};
  name.sin_family = AF_INET;
  name.sin_addr = address;
  name.sin_port = htons(port);
  return name;
}

}  // namespace

absl::StatusOr<Address> Address::Parse(std::string_view input) {
  const absl::string_view text(input.data(), input.size());
  if (text.empty()) return Bad(text, "it is empty");
  if (text.size() > kLongestText) return Bad(text, "it is too long");
  if (absl::StartsWith(text, "unix:")) return Bad(text, "unix paths are not supported yet");
  if (std::any_of(text.begin(), text.end(), IsBlankOrControl)) {
    return Bad(text, "there is a blank or a control character in it");
  }
  absl::StatusOr<HostAndPort> parts = Split(text);
  if (!parts.ok()) return parts.status();
  absl::StatusOr<uint16_t> port = ParsePort(text, parts->port);
  if (!port.ok()) return port.status();

  Address address;
  if (parts->is_bracketed) {
    absl::StatusOr<sockaddr_in6> name = ParseIpv6(text, parts->host);
    if (!name.ok()) return name.status();
    address.name_.v6 = *name;
    address.name_.v6.sin6_port = htons(*port);
    address.size_ = sizeof(sockaddr_in6);
    return address;
  }
  in_addr host = {.s_addr = htonl(INADDR_ANY)};
  if (!parts->host.empty()) {
    absl::StatusOr<in_addr> parsed = ParseIpv4(text, parts->host);
    if (!parsed.ok()) return parsed.status();
    host = *parsed;
  }
  address.name_.v4 = Ipv4Name(host, *port);
  address.size_ = sizeof(sockaddr_in);
  return address;
}

absl::StatusOr<Address> Address::FromSockaddr(const sockaddr* name, socklen_t size) {
  sa_family_t family = AF_UNSPEC;
  if (name != nullptr && size >= sizeof(family)) memcpy(&family, name, sizeof(family));
  Address address;
  if (family == AF_INET && size >= sizeof(sockaddr_in)) {
    sockaddr_in v4;
    memcpy(&v4, name, sizeof(v4));
    address.name_.v4 = Ipv4Name(v4.sin_addr, ntohs(v4.sin_port));
    address.size_ = sizeof(v4);
    return address;
  }
  if (family == AF_INET6 && size >= sizeof(sockaddr_in6)) {
    sockaddr_in6 v6;
    memcpy(&v6, name, sizeof(v6));
    v6.sin6_flowinfo = 0;
    if (!HasScope(v6.sin6_addr)) v6.sin6_scope_id = 0;
    address.name_.v6 = v6;
    address.size_ = sizeof(v6);
    return address;
  }
  return absl::InvalidArgumentError(absl::StrCat("a socket address of family ", family, " and ",
                                                 size, " bytes is neither IPv4 nor IPv6"));
}

Address Address::Loopback(uint16_t port) {
  Address address;
  address.name_.v4 = Ipv4Name({.s_addr = htonl(INADDR_LOOPBACK)}, port);
  address.size_ = sizeof(sockaddr_in);
  return address;
}

std::string Address::ToString() const {
  char host[INET6_ADDRSTRLEN] = "";
  switch (family()) {
    case AF_INET:
      inet_ntop(AF_INET, &name_.v4.sin_addr, host, sizeof(host));
      return absl::StrCat(host, ":", port());
    case AF_INET6: {
      inet_ntop(AF_INET6, &name_.v6.sin6_addr, host, sizeof(host));
      const uint32_t scope = name_.v6.sin6_scope_id;
      return scope == 0 ? absl::StrCat("[", host, "]:", port())
                        : absl::StrCat("[", host, "%", scope, "]:", port());
    }
    default:
      return "(none)";
  }
}

uint16_t Address::port() const {
  switch (family()) {
    case AF_INET:
      return ntohs(name_.v4.sin_port);
    case AF_INET6:
      return ntohs(name_.v6.sin6_port);
    default:
      return 0;
  }
}

Address Address::WithPort(uint16_t port) const {
  Address address = *this;
  if (family() == AF_INET) address.name_.v4.sin_port = htons(port);
  if (family() == AF_INET6) address.name_.v6.sin6_port = htons(port);
  return address;
}

std::ostream& operator<<(std::ostream& out, const Address& address) {
  return out << address.ToString();
}

}  // namespace netpoll
