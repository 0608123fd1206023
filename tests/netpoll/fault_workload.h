// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_NETPOLL_FAULT_WORKLOAD_H_
#define WEFT_TESTS_NETPOLL_FAULT_WORKLOAD_H_

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "gtest/gtest.h"
#include "netpoll/address.h"
#include "netpoll/error.h"
#include "netpoll/internal/errno_status.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
#include "tests/netpoll/faults.h"
#include "tests/netpoll/sockets.h"
#include "tests/scale.h"

namespace netpoll_test {

// Row is a system call, how it may fail, and what is to come of that.
struct Row {
  std::string name;
  Call call;
  std::vector<int> errors;
  // How the status of the call that reports begins. None: it recovers.
  std::vector<std::string_view> says = {};
  bool may_recover = false;      // it depends on who made the call
  bool may_lose_a_peer = false;  // a connection that was made could not be kept
  int64_t second = kAny;         // of the system call's arguments
  Fault throughout = {Call::kCount};
  int workers = 2;
  size_t max_stack_memory = 0;
  uint64_t from = 1;  // number of the first that may fail

  friend void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }
};

// Tally is what the operations of a workload came to. An operation that reports the fault is made
// once more, which works: so a failure leaves nothing behind in its socket, either.
class Tally {
 public:
  Tally(const Row& row, int error) : row_(row), error_(error) {}

  template <class F>
  auto Try(F operation) {
    auto result = operation();
    if (error_ != 0 && netpoll::ErrnoOf(StatusOf(result)) == error_) {
      {
        std::lock_guard<std::mutex> hold(mutex_);
        reports_.push_back(StatusOf(result));
      }
      result = operation();
    }
    return result;
  }
  // What else went wrong.
  void Note(std::string_view what, const absl::Status& status) {
    std::lock_guard<std::mutex> hold(mutex_);
    unexpected_.push_back(absl::StrCat(std::string(what), ": ", status.ToString()));
  }
  bool MayLoseAPeer() {
    std::lock_guard<std::mutex> hold(mutex_);
    return row_.may_lose_a_peer && !std::exchange(has_lost_a_peer_, true);
  }

  void Check(bool is_hit) {
    for (const std::string& text : unexpected_) ADD_FAILURE() << text;
    const size_t most = row_.says.empty() || !is_hit ? 0 : 1;
    const size_t least = row_.may_recover ? 0 : most;
    EXPECT_LE(reports_.size(), most);
    EXPECT_GE(reports_.size(), least) << "nobody was told";
    for (const absl::Status& status : reports_) {
      EXPECT_TRUE(std::any_of(row_.says.begin(), row_.says.end(), [&](std::string_view start) {
        return absl::StartsWith(status.message(), absl::string_view(start.data(), start.size()));
      })) << status;
      // What has run out is named, and what to do about it. (No address is left, or it is none.)
      if (error_ == EADDRNOTAVAIL) continue;
      const bool is_exhaustion = netpoll::internal::IsExhaustion(error_);
      EXPECT_EQ(absl::IsResourceExhausted(status), is_exhaustion) << status;
      EXPECT_EQ(absl::StrContains(status.message(), "; raise it "), is_exhaustion) << status;
    }
  }

 private:
  static const absl::Status& StatusOf(const absl::Status& status) { return status; }
  static const absl::Status& StatusOf(const netpoll::IoResult& result) { return result.status; }
  template <class T>
  static const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
    return result.status();
  }

  const Row& row_;
  const int error_;
  std::mutex mutex_;
  std::vector<absl::Status> reports_;
  std::vector<std::string> unexpected_;
  bool has_lost_a_peer_ = false;
};

inline constexpr int kClients = tests::kIsSlow ? 8 : 24;
inline constexpr int kRounds = 3;

// Workload is an echo server and its clients, and whatever else makes system calls.
class Workload {
 public:
  explicit Workload(Tally& tally) : tally_(tally) {}

  // In a fiber.
  void Run() {
    auto listener = tally_.Try([] { return netpoll::TcpListener::Listen("127.0.0.1:0"); });
    if (!listener.ok()) return tally_.Note("listen", listener.status());
    netpoll::Address address = listener->local();
    if (address.size() == 0) address = listener->local();  // the kernel did not tell
    auto server = fiber::Spawn([&] { Serve(*listener); });
    std::vector<fiber::JoinHandle<void>> others;
    for (int i = 0; i < kClients; ++i) {
      others.push_back(fiber::Spawn([this, i, &address] {
        if (!Talk(i, address)) (void)Talk(i, address);
      }));
    }
    others.push_back(fiber::Spawn([this] { UseOtherDescriptors(); }));
    others.push_back(fiber::Spawn([this] { NameAnInterface(); }));
    for (auto& other : others) other.Join();
    listener->Close();
    server.Join();
  }

 private:
  // Far beyond anything here: who is forgotten says so.
  static fiber::Deadline Patience() { return absl::Seconds(30); }

  void Serve(netpoll::TcpListener& listener) {
    std::vector<fiber::JoinHandle<void>> echoes;
    for (;;) {
      auto stream = tally_.Try([&] { return listener.Accept(Patience()); });
      if (absl::IsFailedPrecondition(stream.status())) break;
      if (!stream.ok()) {
        tally_.Note("accept", stream.status());
        break;
      }
      echoes.push_back(
          fiber::Spawn([this, stream = *std::move(stream)]() mutable { Echo(stream); }));
    }
    for (auto& echo : echoes) echo.Join();
  }

  void Echo(netpoll::TcpStream& stream) {
    char buffer[4096];
    for (bool is_fresh = true;; is_fresh = false) {
      const auto n = tally_.Try([&] { return stream.Read(buffer, Patience()); });
      if (absl::IsOutOfRange(n.status())) return;
      if (!n.ok()) {
        // Whoever could not keep his connection may have closed it at once.
        if (!is_fresh || !absl::IsUnavailable(n.status())) tally_.Note("server's read", n.status());
        return;
      }
      if (absl::Status status = Write(stream, {buffer, *n}, false); !status.ok()) {
        return tally_.Note("server's write", status);
      }
    }
  }

  absl::Status Write(netpoll::TcpStream& stream, std::string_view data, bool in_pieces) {
    return tally_.Try([&] {
      const size_t half = in_pieces ? data.size() / 2 : 0;
      const iovec pieces[2] = {{const_cast<char*>(data.data()), half},
                               {const_cast<char*>(data.data()) + half, data.size() - half}};
      const netpoll::IoResult result =
          in_pieces ? stream.Writev(pieces, Patience()) : stream.Write(data, Patience());
      data.remove_prefix(result.bytes);
      return result.status;
    });
  }

  absl::Status ReadFull(netpoll::TcpStream& stream, std::span<char> buffer) {
    return tally_.Try([&] {
      const netpoll::IoResult result = netpoll::ReadFull(stream, buffer, Patience());
      buffer = buffer.subspan(result.bytes);
      return result.status;
    });
  }

  // False: the connection was lost, as it may be.
  bool Talk(int number, const netpoll::Address& address) {
    auto stream = tally_.Try([&] { return netpoll::TcpStream::Connect(address, Patience()); });
    if (!stream.ok()) {
      tally_.Note("connect", stream.status());
      return true;
    }
    const absl::Status status = Converse(*stream, number);
    if (status.ok()) return true;
    const bool is_lost = absl::IsUnavailable(status) || absl::IsOutOfRange(status);
    if (is_lost && tally_.MayLoseAPeer()) return false;
    tally_.Note(absl::StrCat("client ", number), status);
    return true;
  }

  absl::Status Converse(netpoll::TcpStream& stream, int number) {
    stream.SetReadDeadline(Patience());
    char byte[1];
    if (number == 0) {
      const auto early = tally_.Try([&] { return stream.Read(byte, absl::Milliseconds(1)); });
      if (!absl::IsDeadlineExceeded(early.status())) return early.status();
    }
    for (int round = 0; round < kRounds; ++round) {
      std::string message(size_t{1} << (number + round) % 12, '\0');
      for (char& c : message) c = static_cast<char>(number + round + (&c - message.data()));
      absl::Status status = Write(stream, message, number % 3 == 0);
      if (!status.ok()) return status;
      std::string answer(message.size(), '\0');
      status = ReadFull(stream, answer);
      if (!status.ok()) return status;
      if (answer != message) return absl::DataLossError("these are not the bytes that were sent");
    }
    (void)stream.peer();
    absl::Status status = tally_.Try([&] { return stream.CloseWrite(); });
    if (!status.ok()) return status;
    const auto n = tally_.Try([&] { return stream.Read(byte, Patience()); });
    return absl::IsOutOfRange(n.status()) ? absl::OkStatus() : absl::InternalError("no end");
  }

  // A socket made elsewhere, waited for and adopted.
  void UseOtherDescriptors() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) abort();
    RawSocket raw(ends[0]);
    auto waiter = fiber::Spawn(
        [&] { return tally_.Try([&] { return netpoll::WaitReadable(raw.fd(), Patience()); }); });
    auto stream = tally_.Try([&] { return netpoll::TcpStream::Adopt(ends[1]); });
    if (!stream.ok()) return tally_.Note("adopt", stream.status());
    WaitUntilParked(waiter);
    absl::Status status = Write(*stream, "ping", false);
    status.Update(waiter.Join());
    raw.Send("pong");
    char answer[4];
    status.Update(ReadFull(*stream, answer));
    if (!status.ok()) return tally_.Note("adopted", status);
    EXPECT_EQ(std::string_view(answer, 4), "pong");
  }

  void NameAnInterface() {
    const auto address = tally_.Try([] { return netpoll::Address::Parse("[fe80::1%lo]:80"); });
    if (!address.ok()) tally_.Note("parse", address.status());
  }

  Tally& tally_;
};

}  // namespace netpoll_test

#endif  // WEFT_TESTS_NETPOLL_FAULT_WORKLOAD_H_
