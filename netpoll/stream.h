// SPDX-License-Identifier: Apache-2.0
//
// Streams of bytes, and where they come from. A protocol written against Stream and Listener does not care what carries it.
#ifndef WEFT_NETPOLL_STREAM_H_
#define WEFT_NETPOLL_STREAM_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"

namespace netpoll {

// IoResult says how far a transfer came, and why it stopped there: both are true at once.
struct [[nodiscard]] IoResult {
  size_t bytes = 0;
  absl::Status status = {};

  // Never blocks.
  bool ok() const { return status.ok(); }
};

// Stream is two flows of bytes, one in and one out, with a peer at the other end.
//
//   char buffer[4096];
//   for (;;) {
//     absl::StatusOr<size_t> n = stream.Read(buffer, absl::Seconds(30));
//     if (absl::IsOutOfRange(n.status())) break;                       // the peer has said all it had to say
//     if (!n.ok()) return n.status();                                  // a reset, a cancel, 30 s of silence
//     netpoll::IoResult sent = stream.Write({buffer, *n});
//     if (!sent.ok()) return sent.status;
//   }
//
// Errors, by code:
//
// | code                | means                                                            | afterwards            |
// |---------------------|------------------------------------------------------------------|-----------------------|
// | kOutOfRange         | Read: the peer closed its side, everything before has been read  | the same again        |
// | kUnavailable        | the peer or the way to it: reset, gone; ErrnoOf() has the errno  | the same or the end   |
// | kDeadlineExceeded   | the call's deadline passed, or the stream's                      | goes on               |
// | kCancelled          | the calling fiber was cancelled                                  | goes on               |
// | kFailedPrecondition | Close() was called here, or the runtime of the stream has ended  | the same, or (ended)  |
// |                     |                                                                  | what came meanwhile   |
// | kResourceExhausted  | there is no memory for it, or for the timer of its deadline      | goes on               |
//
// Cancellation and deadlines are looked at before anything is done, so a call with a past deadline does nothing, even
// if bytes are there; after that they end a call while it waits, and a Write also between its parts, of at most 256 KiB.
//
// Thread safety: any fiber, any thread. One call reads and one writes at a time, others queue behind it in order of
// arrival: a Write is never interleaved with another, however many pieces it takes.
// Lifetime: Close() may be called at any time; the object is destroyed when no other call on it is under way.
class Stream {
 public:
  virtual ~Stream() = default;

  // Reads what is there: at least 1 byte, at most buffer.size(), and 256 KiB from sockets and pipes. Returns how many. Parks
  // the fiber while there is nothing; blocks the thread when called from a plain one. An empty buffer reads 0 at once, whatever
  // the deadline. Errors as above.
  absl::StatusOr<size_t> Read(std::span<char> buffer, fiber::Deadline deadline = {}) {
    return DoRead(buffer, deadline);
  }

  // Writes all of `data`, or says how many bytes went out and why no more did. That they went out does not mean that
  // the peer has them. Parks the fiber while the peer does not keep up; blocks the thread when called from a plain
  // one. Errors as above.
  IoResult Write(std::string_view data, fiber::Deadline deadline = {}) {
    return DoWrite(data, deadline);
  }

  // Bounds every Read (Write) from now on, one that is parked included: the earlier of this deadline and the call's
  // own holds. A past one wakes it at once, a later one lets it go on; never lifts it. Calls that queue behind it learn
  // of it as their turn comes. Never blocks.
  //
  //   stream.SetReadDeadline(absl::Seconds(60));        // after each request: a minute to the next one
  void SetReadDeadline(fiber::Deadline deadline) { DoSetReadDeadline(deadline); }
  void SetWriteDeadline(fiber::Deadline deadline) { DoSetWriteDeadline(deadline); }

  // Ends the flow out: the peer reads to the end of what was written, then kOutOfRange. Reading goes on; a Write, one that
  // is parked included, fails with kUnavailable (EPIPE). Never blocks. kUnavailable: the peer is gone; kFailedPrecondition:
  // closed.
  absl::Status CloseWrite() { return DoCloseWrite(); }

  // Ends both flows. Calls that wait in the stream return kFailedPrecondition at once, so do all later ones; a Write that
  // does not need to wait stops at its next part. A second Close does nothing. Never blocks.
  void Close() { DoClose(); }

 protected:
  Stream() = default;
  Stream(const Stream&) = default;
  Stream& operator=(const Stream&) = default;

 private:
  virtual absl::StatusOr<size_t> DoRead(std::span<char> buffer, fiber::Deadline deadline) = 0;
  virtual IoResult DoWrite(std::string_view data, fiber::Deadline deadline) = 0;
  virtual void DoSetReadDeadline(fiber::Deadline deadline) = 0;
  virtual void DoSetWriteDeadline(fiber::Deadline deadline) = 0;
  virtual absl::Status DoCloseWrite() = 0;
  virtual void DoClose() = 0;
};

// Fills all of `buffer`, or says how many bytes came and why no more did. kOutOfRange: the stream ended before the
// first byte; kDataLoss: in the middle; otherwise as Stream::Read. Not atomic: another reader may get bytes in between.
// Parks the fiber while there is nothing to read; blocks the thread when called from a plain one.
//
//   char header[16];
//   netpoll::IoResult got = netpoll::ReadFull(stream, header);
//   if (absl::IsOutOfRange(got.status)) return absl::OkStatus();       // no further message
//   if (!got.ok()) return got.status;
IoResult ReadFull(Stream& stream, std::span<char> buffer, fiber::Deadline deadline = {});

// Listener is where streams come from.
//
//   absl::Status Serve(netpoll::Listener& listener) {
//     for (;;) {
//       absl::StatusOr<std::unique_ptr<netpoll::Stream>> stream = listener.AcceptStream();
//       if (!stream.ok()) return stream.status();
//       fiber::Go([stream = *std::move(stream)] { Handle(*stream); });
//     }
//   }
//
// Thread safety: any fiber, any thread. Calls to accept queue in order of arrival.
class Listener {
 public:
  virtual ~Listener() = default;

  // The next peer's stream. Parks the fiber while there is none; blocks the thread when called from a plain one.
  // kDeadlineExceeded, kCancelled: none was taken; kFailedPrecondition: closed here, or the runtime has ended.
  absl::StatusOr<std::unique_ptr<Stream>> AcceptStream(fiber::Deadline deadline = {}) {
    return DoAcceptStream(deadline);
  }

  // Stops listening. Calls that wait in it return kFailedPrecondition at once, so do all later ones; a second Close
  // does nothing. Never blocks.
  void Close() { DoClose(); }

 protected:
  Listener() = default;
  Listener(const Listener&) = default;
  Listener& operator=(const Listener&) = default;

 private:
  virtual absl::StatusOr<std::unique_ptr<Stream>> DoAcceptStream(fiber::Deadline deadline) = 0;
  virtual void DoClose() = 0;
};

}  // namespace netpoll

#endif  // WEFT_NETPOLL_STREAM_H_
