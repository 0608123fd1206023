// SPDX-License-Identifier: Apache-2.0
//
// Pipes: from fiber to fiber, but above all to and from other processes (process.h starts those).
//
//   absl::StatusOr<netpoll::Pipe> pipe = netpoll::Pipe::Create();
//   if (!pipe.ok()) return pipe.status();
//   fiber::Go([writer = std::move(pipe->writer)]() mutable { writer.Write("hello\n").status.IgnoreError(); });
//   char buffer[64];
//   absl::StatusOr<size_t> n = pipe->reader.Read(buffer);       // 6; the next one: kOutOfRange, the writer is gone
#ifndef WEFT_NETPOLL_PIPE_H_
#define WEFT_NETPOLL_PIPE_H_

#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "netpoll/stream.h"

namespace netpoll {

namespace internal {
class Descriptor;
struct DescriptorOf;
}  // namespace internal

// PipeStream is one end of a pipe. A Stream but for this: only the end to read can be read, only the end to write written;
// the other call says kInvalidArgument (EBADF). CloseWrite() closes an end to write and does nothing to an end to read;
// one that is open both ways (a terminal) cannot be half closed: kInvalidArgument.
// Destroying it closes it; what was written can still be read.
//
// Writing where nobody reads any more is kUnavailable (EPIPE), and no SIGPIPE: workers block that signal, and for plain
// threads it is held back and discarded.
//
// It belongs to the runtime whose fiber made it, as sockets do (tcp.h).
//
// Thread safety: as Stream. Moving it is like destroying it: no other call may be under way.
class PipeStream final : public Stream {
 public:
  // Takes over an end of a pipe, a FIFO, a terminal, or another descriptor that is read and written like them, and makes it
  // non-blocking: for all who share it, other processes too. It stays the caller's on an error. Never blocks.
  // kInvalidArgument: not open, or a file of a disk, for which nobody can wait; kAlreadyExists: a stream of this runtime has
  // it; kResourceExhausted: epoll watches, memory; kFailedPrecondition: called from a plain thread, or in a simulation.
  static absl::StatusOr<PipeStream> Adopt(int fd);

  // Closed: every call fails with kFailedPrecondition.
  PipeStream() = default;
  PipeStream(PipeStream&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  // Close() of what it had. Never blocks.
  PipeStream& operator=(PipeStream&& other) noexcept;
  // Close(). Never blocks.
  ~PipeStream() override;

  // The descriptor; -1 after Close(). Never blocks.
  int fd() const;

  // Gives up the descriptor, which is then the caller's to close, and non-blocking; -1 after Close(). Never blocks.
  // REQUIRES: no other call on the stream is under way.
  int Release() &&;

 private:
  friend struct internal::DescriptorOf;
  explicit PipeStream(internal::Descriptor* descriptor) : descriptor_(descriptor) {}

  absl::StatusOr<size_t> DoRead(std::span<char> buffer, fiber::Deadline deadline) override;
  IoResult DoWrite(std::string_view data, fiber::Deadline deadline) override;
  void DoSetReadDeadline(fiber::Deadline deadline) override;
  void DoSetWriteDeadline(fiber::Deadline deadline) override;
  absl::Status DoCloseWrite() override;
  void DoClose() override;

  internal::Descriptor* descriptor_ = nullptr;  // null: default-made or moved from
};

// Pipe is both ends of one: what is written to `writer` is read from `reader`. The system holds 64 KiB in between, as a rule.
struct Pipe {
  PipeStream reader = {};
  PipeStream writer = {};

  // Never blocks. kResourceExhausted: descriptors, the user's memory for pipes (fs.pipe-user-pages-hard), epoll watches;
  // kFailedPrecondition: called from a plain thread, or by a fiber of a simulation.
  static absl::StatusOr<Pipe> Create();
};

}  // namespace netpoll

#endif  // WEFT_NETPOLL_PIPE_H_
