// SPDX-License-Identifier: Apache-2.0
#include "tests/soak/watchdog.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/soak/tally.h"

namespace soak {

double ResidentMebibytes() {
  int64_t size = 0;
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> size >> pages;
  return static_cast<double>(pages * sysconf(_SC_PAGESIZE)) / (1 << 20);
}

Watchdog::Watchdog(absl::Duration patience) : patience_(patience), thread_([this] { Watch(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard hold(mutex_);
    is_ended_ = true;
  }
  ended_.notify_one();
  thread_.join();
}

void Watchdog::BeginRound(absl::Time end) {
  const std::lock_guard hold(mutex_);
  ++rounds_;
  round_end_ = end;
}

std::string Watchdog::Summary() const {
  uint64_t rounds;
  {
    const std::lock_guard hold(mutex_);
    rounds = rounds_;
  }
  return absl::StrFormat("after %d s: rounds=%d rss_mib=%.1f %s",
                         absl::ToInt64Seconds(absl::Now() - start_), rounds, ResidentMebibytes(),
                         Tally());
}

void Watchdog::Watch() {
  uint64_t progress = 0;
  absl::Time progress_at = absl::Now();
  absl::Time next_summary = start_ + absl::Minutes(1);
  for (;;) {
    absl::Time round_end;
    {
      std::unique_lock hold(mutex_);
      ended_.wait_for(hold, std::chrono::seconds(1), [this] { return is_ended_; });
      if (is_ended_) return;
      round_end = round_end_;
    }
    const absl::Time now = absl::Now();
    if (const uint64_t now_progress = Progress(); now_progress != progress) {
      progress = now_progress;
      progress_at = now;
    }
    if (now - progress_at > patience_) Fail("no progress");
    if (now - patience_ > round_end) Fail("the round does not end");
    if (now >= next_summary) {
      next_summary += absl::Minutes(1);
      std::puts(Summary().c_str());
      std::fflush(stdout);
    }
  }
}

}  // namespace soak
