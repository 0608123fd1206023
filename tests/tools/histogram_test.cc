// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/histogram.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "gtest/gtest.h"

namespace loadgen {
namespace {

TEST(HistogramTest, BucketsAreOffByAtMostOneSixtyFourth) {
  for (uint64_t ns = 1; ns < uint64_t{1} << 62; ns += ns / 7 + 1) {
    const size_t index = LatencyBuckets::IndexOf(ns);
    ASSERT_LT(index, LatencyBuckets::kCount);
    const double error = LatencyBuckets::NanosOf(index) - static_cast<double>(ns);
    ASSERT_LE(std::abs(error), static_cast<double>(ns) / 64) << ns;
  }
}

TEST(HistogramTest, BucketsAscendWithoutGaps) {
  size_t last = LatencyBuckets::IndexOf(0);
  EXPECT_EQ(last, 0u);
  for (uint64_t ns = 1; ns < 100'000; ++ns) {
    const size_t index = LatencyBuckets::IndexOf(ns);
    ASSERT_TRUE(index == last || index == last + 1) << ns;
    last = index;
  }
  EXPECT_EQ(LatencyBuckets::IndexOf(UINT64_MAX), LatencyBuckets::kCount - 1);
}

TEST(HistogramTest, QuantilesAreTheLatenciesOfThatRank) {
  auto histogram = std::make_unique<Histogram>();
  for (int i = 1; i <= 1000; ++i) histogram->Add(i * 1000);
  const LatencyCounts counts = histogram->Snapshot();
  EXPECT_EQ(counts.total(), 1000u);
  EXPECT_NEAR(counts.Micros(0.5), 500, 500 / 64.0);
  EXPECT_NEAR(counts.Micros(0.99), 990, 990 / 64.0);
  EXPECT_NEAR(counts.Micros(1), 1000, 1000 / 64.0);
  EXPECT_NEAR(counts.Micros(0), 1, 1 / 64.0);
  EXPECT_EQ(histogram->max_micros(), 1000);
}

TEST(HistogramTest, OneLatencyIsEveryQuantile) {
  auto histogram = std::make_unique<Histogram>();
  histogram->Add(50);
  for (double quantile : {0.0, 0.5, 0.999, 1.0}) {
    EXPECT_EQ(histogram->Snapshot().Micros(quantile), 0.05);
  }
}

TEST(HistogramTest, AnEmptyOneSaysZero) {
  auto histogram = std::make_unique<Histogram>();
  EXPECT_EQ(histogram->Snapshot().Micros(0.5), 0);
  EXPECT_EQ(histogram->Snapshot().total(), 0u);
}

TEST(HistogramTest, ADifferenceHoldsWhatCameInBetween) {
  auto histogram = std::make_unique<Histogram>();
  histogram->Add(10);
  const LatencyCounts before = histogram->Snapshot();
  histogram->Add(20);
  histogram->Add(-5);  // a clock that went back
  const LatencyCounts between = histogram->Snapshot().Since(before);
  EXPECT_EQ(between.total(), 2u);
  EXPECT_EQ(between.counts[10], 0u);
  EXPECT_EQ(between.counts[20], 1u);
  EXPECT_EQ(between.counts[0], 1u);
}

}  // namespace
}  // namespace loadgen
