// SPDX-License-Identifier: Apache-2.0
#include "netpoll/resolve.h"

#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "fiber/blocking_detached.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"
#include "fiber/semaphore.h"
#include "fiber/single_flight.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/internal/host_name.h"

namespace netpoll {

using fiber::Deadline;
using fiber::internal::Atomic;
using fiber::internal::System;

namespace {

// Answer is what the C library said. Shared as such: everybody who asked makes a status of his own of it.
struct Answer {
  std::vector<Address> addresses = {};
  int error = 0;         // EAI_…
  int system_error = 0;  // errno, of EAI_SYSTEM
};

absl::string_view Quoted(std::string_view text) { return {text.data(), std::min<size_t>(text.size(), 128)}; }

absl::Status LookupStatus(int error, int system_error, const std::string& host, const std::string& service) {
  const std::string what = absl::StrCat("look up ", host, ":", service);
  const std::string message = absl::StrCat(what, ": ", gai_strerror(error));
  switch (error) {
    case EAI_NONAME:
    case EAI_NODATA:
    case EAI_ADDRFAMILY: return absl::NotFoundError(message);
    case EAI_AGAIN:
    case EAI_FAIL: return absl::UnavailableError(message);
    case EAI_MEMORY: return internal::ErrnoStatus(ENOMEM, what);
    case EAI_SYSTEM: return internal::ErrnoStatus(system_error, what);
    case EAI_SERVICE:
    case EAI_FAMILY:
    case EAI_SOCKTYPE:
    case EAI_BADFLAGS:
    case EAI_OVERFLOW: return absl::InvalidArgumentError(message);
    default: return absl::UnavailableError(message);
  }
}

struct FreeList {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};

// Blocks the thread.
Answer Lookup(const std::string& host, const std::string& service, bool is_literal) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = (is_literal ? AI_NUMERICHOST : 0) | (internal::IsPort(service) ? AI_NUMERICSERV : 0);
  addrinfo* list = nullptr;
  const int error = System().getaddrinfo(host.c_str(), service.c_str(), &hints, &list);
  if (error != 0) return {.error = error, .system_error = errno};
  const std::unique_ptr<addrinfo, FreeList> freed(list);
  Answer answer;
  std::vector<Address>& found = answer.addresses;
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    absl::StatusOr<Address> address = Address::FromSockaddr(each->ai_addr, each->ai_addrlen);
    if (!address.ok()) continue;  // of another family
    if (std::find(found.begin(), found.end(), *address) == found.end()) found.push_back(*address);
  }
  if (found.empty()) answer.error = EAI_NODATA;
  return answer;
}

// Resolver is what all questions of this process share.
class Resolver {
 public:
  // A child of fork() has one of its own: somebody may have been about to change the parent's.
  static Resolver& Get() {
    static constinit Atomic<Resolver*> current{nullptr};  // order: publish, release by whoever makes one, acquire by who finds it
    Resolver* seen = current.load(std::memory_order_acquire);
    while (seen == nullptr || seen->fork_generation_ != fiber::internal::ForkGeneration()) {
      auto made = std::make_unique<Resolver>();
      if (current.compare_exchange_strong(seen, made.get(), std::memory_order_acq_rel,
                                          std::memory_order_acquire)) {
        seen = made.release();  // for ever
      }
    }
    return *seen;
  }

  absl::StatusOr<std::vector<Address>> Ask(const std::string& host, const std::string& service, bool is_literal,
                                           Deadline deadline) {
    absl::StatusOr<Answer> answer = AskTogether(host, service, is_literal, deadline);
    if (!answer.ok()) return answer.status();
    if (answer->error != 0) return LookupStatus(answer->error, answer->system_error, host, service);
    return std::move(answer->addresses);
  }

 private:
  absl::StatusOr<Answer> AskTogether(const std::string& host, const std::string& service, bool is_literal,
                                     Deadline deadline) {
    const fiber::internal::Record* fiber = fiber::internal::ThisThread().current;
    if (fiber == nullptr) return AskAlone(host, service, is_literal, deadline);
    // Of one runtime only: who waits for a fiber of another goes down with that.
    return flights_.Do(
        absl::StrCat(fiber->scheduler->serial(), " ", host, " ", service),
        [this, host, service, is_literal] { return AskAlone(host, service, is_literal, Deadline::Never()); },
        deadline);
  }

  absl::StatusOr<Answer> AskAlone(std::string host, std::string service, bool is_literal, Deadline deadline) {
    absl::StatusOr<fiber::Permit> permit = fiber::Permit::Acquire(slots_, 1, deadline);
    if (!permit.ok()) return permit.status();
    // The permit goes with the call, which may outlast the wait.
    return fiber::BlockingDetached(
        [host = std::move(host), service = std::move(service), is_literal, permit = *std::move(permit)] {
          return Lookup(host, service, is_literal);
        },
        deadline);
  }

  static constexpr int kMostAtOnce = 32;

  const uint64_t fork_generation_ = fiber::internal::ForkGeneration();
  fiber::Semaphore slots_{kMostAtOnce};
  fiber::SingleFlight<std::string, Answer> flights_;
};

absl::StatusOr<Address> Literal(std::string_view host) {
  const absl::string_view text(host.data(), host.size());
  const bool is_v6 = text.find(':') != text.npos;
  return Address::Parse(is_v6 ? absl::StrCat("[", text, "]:0") : absl::StrCat(text, ":0"));
}

}  // namespace

absl::StatusOr<std::vector<Address>> Resolve(std::string_view host, std::string_view service, Deadline deadline) {
  if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
  const bool is_port = internal::IsPort(service);
  if (!is_port && !internal::IsServiceName(service)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(Quoted(service)), "\" is neither a port nor a service"));
  }
  if (internal::IsHostName(host)) {
    return Resolver::Get().Ask(std::string(host), std::string(service), false, deadline);
  }
  absl::StatusOr<Address> literal = host.empty() ? absl::InvalidArgumentError("no host") : Literal(host);
  if (!literal.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(Quoted(host)), "\" is neither a name nor an address"));
  }
  if (!is_port) return Resolver::Get().Ask(std::string(host), std::string(service), true, deadline);
  int port = 0;
  (void)absl::SimpleAtoi(absl::string_view(service.data(), service.size()), &port);
  return std::vector<Address>{literal->WithPort(static_cast<uint16_t>(port))};
}

}  // namespace netpoll
