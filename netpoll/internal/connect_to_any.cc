// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/connect_to_any.h"

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/internal/wait.h"
#include "fiber/scope.h"

namespace netpoll::internal {
namespace {

using fiber::Deadline;

// How long the last attempt is given before the next begins beside it (RFC 8305, section 5).
constexpr absl::Duration kStagger = absl::Milliseconds(250);

struct Outcome {
  absl::Status status = {};
  TcpStream stream = {};
};

// With the code and the errno of the first.
absl::Status AllOf(std::string_view name, const std::vector<absl::Status>& failures) {
  if (failures.size() == 1) return failures[0];
  constexpr size_t kMostTold = 8;
  std::string text = absl::StrCat(std::string(name), ": none of its ", failures.size(), " addresses answers");
  for (size_t i = 0; i < failures.size() && i < kMostTold; ++i) {
    absl::StrAppend(&text, i == 0 ? ": " : "; ", failures[i].message());
  }
  absl::Status status(failures[0].code(), text);
  failures[0].ForEachPayload([&](absl::string_view type, const absl::Cord& payload) {
    status.SetPayload(type, payload);
  });
  return status;
}

}  // namespace

std::vector<Address> Interleave(const std::vector<Address>& addresses) {
  std::vector<Address> firsts;   // of the first one's family
  std::vector<Address> seconds;  // of the other
  for (const Address& address : addresses) {
    (address.family() == addresses[0].family() ? firsts : seconds).push_back(address);
  }
  std::vector<Address> mixed;
  for (size_t i = 0; i < firsts.size() || i < seconds.size(); ++i) {
    if (i < firsts.size()) mixed.push_back(firsts[i]);
    if (i < seconds.size()) mixed.push_back(seconds[i]);
  }
  return mixed;
}

absl::StatusOr<TcpStream> ConnectToAny(std::string_view name, std::vector<Address> addresses,
                                       Deadline deadline) {
  if (addresses.size() == 1) return TcpStream::Connect(addresses[0], deadline);
  addresses = Interleave(addresses);
  // Room for all, so that no attempt waits to tell. A connection that came second stays in it, and is closed with it.
  fiber::Channel<Outcome> outcomes(addresses.size());
  std::vector<absl::Status> failures;
  fiber::Scope attempts({.name = "netpoll::TcpStream::Connect"});
  size_t begun = 0;
  Deadline next = absl::ZeroDuration();  // when another begins
  while (failures.size() < addresses.size()) {
    if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
    if (begun < addresses.size() && next.is_past()) {
      attempts.Go([&, address = addresses[begun]] {
        absl::StatusOr<TcpStream> stream = TcpStream::Connect(address, deadline);
        Outcome outcome{.status = stream.status()};
        if (stream.ok()) outcome.stream = *std::move(stream);
        outcomes.TrySend(std::move(outcome)).IgnoreError();
      });
      ++begun;
      next = kStagger;
    }
    const bool has_more = begun < addresses.size();
    absl::StatusOr<Outcome> outcome =
        outcomes.Receive(has_more ? Deadline::Earlier(deadline, next) : deadline);
    if (!outcome.ok()) {
      if (has_more && absl::IsDeadlineExceeded(outcome.status())) continue;  // to the next, or to the end of the caller's time
      return outcome.status();
    }
    if (outcome->status.ok()) {
      attempts.Cancel();
      return std::move(outcome->stream);
    }
    failures.push_back(std::move(outcome->status));
    next = absl::ZeroDuration();
  }
  // At the end of the caller's time the last attempt may tell of it before the wait for it does.
  if (absl::Status status = fiber::internal::CheckCaller(deadline); !status.ok()) return status;
  return AllOf(name, failures);
}

}  // namespace netpoll::internal
