// SPDX-License-Identifier: Apache-2.0
//
// Sockets and pipes in a fiber::Select.
//
//   absl::StatusOr<size_t> which = fiber::Select(
//       netpoll::OnAcceptable(listener, [&](absl::Status status) { … listener.Accept(absl::Milliseconds(1)) … }),
//       fiber::OnEvent(stop, [&] { is_running = false; }));
#ifndef WEFT_NETPOLL_SELECT_H_
#define WEFT_NETPOLL_SELECT_H_

#include <concepts>
#include <utility>

#include "absl/status/status.h"
#include "fiber/select.h"
#include "netpoll/internal/direction.h"
#include "netpoll/internal/flow_clause.h"
#include "netpoll/pipe.h"
#include "netpoll/tcp.h"

namespace netpoll {
namespace internal {

struct DescriptorOf {
  static Descriptor* Get(const TcpStream& stream) { return stream.descriptor_; }
  static Descriptor* Get(const PipeStream& stream) { return stream.descriptor_; }
  static Descriptor* Get(const TcpListener& listener) { return listener.descriptor_; }
};

template <class H>
class NewsClause final : public FlowClause {
 public:
  NewsClause(Descriptor* descriptor, Direction direction, H handler)
      : FlowClause(descriptor, direction), handler_(std::move(handler)) {}

  absl::Status Finish(uint32_t) override {
    handler_(status());
    return absl::OkStatus();
  }

 private:
  H handler_;
};

}  // namespace internal

// There is something to read, or an end or error to be told of: handler(OK). Otherwise: kDeadlineExceeded, of
// SetReadDeadline(); kFailedPrecondition: the stream was closed, or its runtime has ended.
//
// Other fibers may read it too; then what is there may be gone before the handler's Read(), which waits for more.
//
// While the select waits, it is the stream's reader: reads of others queue behind it. Never blocks: the Select does.
template <std::invocable<absl::Status> H>
auto OnReadable(TcpStream& stream, H handler) {
  return internal::NewsClause<H>(internal::DescriptorOf::Get(stream), internal::Direction::kRead,
                                 std::move(handler));
}

template <std::invocable<absl::Status> H>
auto OnReadable(PipeStream& stream, H handler) {
  return internal::NewsClause<H>(internal::DescriptorOf::Get(stream), internal::Direction::kRead,
                                 std::move(handler));
}

// A connection waits to be accepted; else as OnReadable(). Never blocks: the Select does.
template <std::invocable<absl::Status> H>
auto OnAcceptable(TcpListener& listener, H handler) {
  return internal::NewsClause<H>(internal::DescriptorOf::Get(listener), internal::Direction::kRead,
                                 std::move(handler));
}

}  // namespace netpoll

#endif  // WEFT_NETPOLL_SELECT_H_
