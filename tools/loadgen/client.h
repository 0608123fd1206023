// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_CLIENT_H_
#define WEFT_TOOLS_LOADGEN_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "tools/loadgen/connection.h"
#include "tools/loadgen/histogram.h"
#include "tools/loadgen/options.h"
#include "tools/loadgen/pattern.h"

namespace loadgen {

// Client is one run of the load generator. Results go to stdout, what is wrong to stderr.
class Client {
 public:
  explicit Client(const Options& options);

  // The whole run; returns what the process exits with. Parks the fiber.
  int Run();

 private:
  void OpenAll();
  void Open(int number);
  // Returns how many echoes came in time.
  uint64_t KeepBusy();
  // Prints a line each second; returns how many echoes there were when the time was over.
  uint64_t ReportProgress();
  // Returns how many idle connections echo.
  int ProveIdleAlive();
  // Sees to it that nothing more comes back on any of them than was sent.
  void EndAll();
  void Summarize(uint64_t echoes_in_time, int idle_alive) const;

  // Counts an error, says what it was unless many have been said, and drops the connection.
  void Lose(int number, const absl::Status& status);
  int errors() const { return errors_.load(std::memory_order_relaxed); }
  int CountOpen() const;

  const Options options_;
  const Pattern pattern_;
  // By number; null: not open, or lost. The first options_.busy are the busy ones. One fiber at a
  // time touches each.
  std::vector<std::unique_ptr<Connection>> connections_;
  Histogram latencies_;
  std::atomic<int> errors_{0};
};

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_CLIENT_H_
