// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SOAK_WATCHDOG_H_
#define WEFT_TESTS_SOAK_WATCHDOG_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace soak {

// Of this process.
double ResidentMebibytes();

// Watchdog is a thread that ends the process, saying what every fiber does, once nothing has been
// counted for `patience`; and each minute prints one line of what has been done.
//
// Thread safety: any thread.
class Watchdog {
 public:
  explicit Watchdog(absl::Duration patience);
  ~Watchdog();

  // A round may go on until `end` and then has `patience` to come to its own. By the thread that
  // runs the rounds.
  void BeginRound(absl::Time end);
  // "after 60 s: rounds=12 rss_mib=34.5 transfers=…"
  std::string Summary() const;

 private:
  void Watch();

  const absl::Duration patience_;
  const absl::Time start_ = absl::Now();
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool is_ended_ = false;                          // guarded by mutex_
  uint64_t rounds_ = 0;                            // guarded by mutex_
  absl::Time round_end_ = absl::InfiniteFuture();  // guarded by mutex_
  std::thread thread_;
};

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_WATCHDOG_H_
