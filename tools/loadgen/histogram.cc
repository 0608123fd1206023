// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/histogram.h"

#include <cmath>
#include <numeric>

namespace loadgen {

uint64_t LatencyCounts::total() const {
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

double LatencyCounts::Micros(double quantile) const {
  const uint64_t rank = static_cast<uint64_t>(std::ceil(quantile * static_cast<double>(total())));
  uint64_t seen = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    seen += counts[i];
    if (seen > 0 && seen >= rank) return LatencyBuckets::NanosOf(i) / 1e3;
  }
  return 0;
}

LatencyCounts LatencyCounts::Since(const LatencyCounts& before) const {
  LatencyCounts difference;
  for (size_t i = 0; i < counts.size(); ++i) difference.counts[i] = counts[i] - before.counts[i];
  return difference;
}

LatencyCounts Histogram::Snapshot() const {
  LatencyCounts snapshot;
  for (size_t i = 0; i < counts_.size(); ++i) {
    snapshot.counts[i] = counts_[i].load(std::memory_order_relaxed);
  }
  return snapshot;
}

}  // namespace loadgen
