// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/host_name.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"

namespace netpoll::internal {
namespace {

constexpr size_t kLongestName = 255;

bool IsAllDigits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), absl::ascii_isdigit);
}

// What inet_aton(3) takes for a number: 127, 0177, 0x7f.
bool IsNumber(std::string_view text) {
  if (IsAllDigits(text)) return true;
  if (!text.starts_with("0x") && !text.starts_with("0X")) return false;
  text.remove_prefix(2);
  return std::all_of(text.begin(), text.end(), absl::ascii_isxdigit);
}

bool IsOfAName(char c) { return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.'; }

}  // namespace

bool IsHostName(std::string_view text) {
  if (text.ends_with('.')) text.remove_suffix(1);  // the root's
  if (text.empty() || text.size() > kLongestName || text.front() == '.' || text.front() == '-' ||
      text.back() == '.') {
    return false;
  }
  if (!std::all_of(text.begin(), text.end(), IsOfAName)) return false;
  return !IsNumber(text.substr(text.rfind('.') + 1));  // npos + 1: all of it
}

bool IsPort(std::string_view text) {
  if (!IsAllDigits(text) || text.size() > 5 || (text.size() > 1 && text[0] == '0')) return false;
  int port = 0;
  for (char c : text) port = port * 10 + (c - '0');
  return port <= 65535;
}

bool IsServiceName(std::string_view text) {
  constexpr size_t kLongest = 64;
  return !text.empty() && text.size() <= kLongest && !IsAllDigits(text) && absl::ascii_isalnum(text.front()) &&
         std::all_of(text.begin(), text.end(), &IsOfAName);
}

std::optional<HostAndService> SplitHostName(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == text.npos) return std::nullopt;
  const HostAndService parts{.host = text.substr(0, colon), .service = text.substr(colon + 1)};
  if (!IsHostName(parts.host)) return std::nullopt;
  if (!IsPort(parts.service) && !IsServiceName(parts.service)) return std::nullopt;
  return parts;
}

}  // namespace netpoll::internal
