// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_CHURN_H_
#define WEFT_TOOLS_LOADGEN_CHURN_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/semaphore.h"
#include "netpoll/address.h"
#include "tools/loadgen/connection.h"
#include "tools/loadgen/pattern.h"

namespace loadgen {

// ChurnOptions say what a Churn does.
struct ChurnOptions {
  netpoll::Address target;
  int server = 0;         // the server's process, whose memory and descriptors are watched
  int held = 19'000;      // connections that stay
  int per_second = 1000;  // connections that come and go
  int seconds = 300;
  int slack_kib = 1024;  // the server's memory is flat if it grows by no more than 1 % and this
};

// Churn holds connections to an echo server while others come, exchange some bytes and go, each
// second as many; then proves each that was held alive. No byte may be wrong, no connection lost,
// and the server keeps neither memory nor descriptors of those that went.
//
// Thread safety: one fiber.
class Churn {
 public:
  explicit Churn(const ChurnOptions& options);

  // Prints a line each second, and a last one. Whether all was well. Parks the fiber.
  bool Run();

 private:
  void Hold();
  void ComeAndGo();
  void Visit(int number);
  void ProveHeldAlive();
  void EndHeld();
  void WatchServer();
  bool AwaitServerRid() const;
  absl::Status OpenAndEcho(int number, size_t bytes, std::unique_ptr<Connection>& connection);
  // Counts what failed; OK is fine.
  void Note(int number, const absl::Status& status);

  const ChurnOptions options_;
  const Pattern pattern_;
  const int descriptors_;  // the server's before the first connection
  std::vector<std::unique_ptr<Connection>> held_;
  fiber::Semaphore room_;              // for visitors
  absl::Duration time_;                // that they took
  std::vector<int64_t> resident_kib_;  // the server's, each second
  std::atomic<int> gone_{0};           // visitors that were served
  std::atomic<int> alive_{0};
  std::atomic<int> lost_{0};
  std::atomic<int> wrong_{0};
  std::atomic<bool> is_over_{false};
};

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_CHURN_H_
