// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_HISTOGRAM_H_
#define WEFT_TOOLS_LOADGEN_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace loadgen {

// LatencyBuckets maps nanoseconds to buckets: each up to 64 has one of its own, and each power of
// two above is divided into 32. What a bucket says is thus wrong by at most 1/64.
struct LatencyBuckets {
  static constexpr int kBits = 5;
  static constexpr uint64_t kLinear = 2u << kBits;
  static constexpr size_t kCount = size_t{64 - kBits + 1} << kBits;

  static constexpr size_t IndexOf(uint64_t ns) {
    if (ns < kLinear) return ns;
    const int shift = std::bit_width(ns) - 1 - kBits;
    return (static_cast<size_t>(shift) << kBits) + (ns >> shift);
  }
  // The middle of a bucket.
  static constexpr double NanosOf(size_t index) {
    if (index < kLinear) return static_cast<double>(index);
    const int shift = static_cast<int>(index >> kBits) - 1;
    const uint64_t first = (index - (static_cast<size_t>(shift) << kBits)) << shift;
    return static_cast<double>(first) + static_cast<double>(uint64_t{1} << shift) / 2;
  }
};

// LatencyCounts are the counts of a Histogram at one time, or the difference of two.
struct LatencyCounts {
  std::array<uint64_t, LatencyBuckets::kCount> counts = {};

  uint64_t total() const;
  // The latency in microseconds that the fraction `quantile` of all do not exceed; 0 without any.
  double Micros(double quantile) const;
  LatencyCounts Since(const LatencyCounts& before) const;
};

// Histogram counts latencies. Adding allocates nothing.
//
// Thread safety: any fiber, any thread.
class Histogram {
 public:
  void Add(int64_t ns) {
    const uint64_t latency = ns > 0 ? static_cast<uint64_t>(ns) : 0;
    counts_[LatencyBuckets::IndexOf(latency)].fetch_add(1, std::memory_order_relaxed);
    uint64_t most = max_ns_.load(std::memory_order_relaxed);
    while (latency > most &&
           !max_ns_.compare_exchange_weak(most, latency, std::memory_order_relaxed)) {
    }
  }
  LatencyCounts Snapshot() const;
  double max_micros() const {
    return static_cast<double>(max_ns_.load(std::memory_order_relaxed)) / 1e3;
  }

 private:
  std::array<std::atomic<uint64_t>, LatencyBuckets::kCount> counts_ = {};
  std::atomic<uint64_t> max_ns_{0};
};

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_HISTOGRAM_H_
