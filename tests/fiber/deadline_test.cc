// SPDX-License-Identifier: Apache-2.0
#include "fiber/deadline.h"

#include <chrono>
#include <cstdint>
#include <ratio>

#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"

namespace fiber {
namespace {

static_assert(Deadline::Never().nanos() == INT64_MAX);
static_assert(Deadline() == Deadline::Never());
static_assert(Deadline::AtNanos(5) < Deadline::AtNanos(6));
static_assert(Deadline::AtNanos(5) < Deadline::Never());
static_assert(Deadline::Earlier(Deadline::AtNanos(5), Deadline::Never()) == Deadline::AtNanos(5));
static_assert(Deadline::Earlier(Deadline::AtNanos(9), Deadline::AtNanos(5)) ==
              Deadline::AtNanos(5));

TEST(DeadlineTest, NeverIsNeverPast) {
  EXPECT_TRUE(Deadline().is_never());
  EXPECT_FALSE(Deadline().is_past());
  EXPECT_EQ(Deadline().remaining(), absl::InfiniteDuration());
}

TEST(DeadlineTest, AnInfiniteDurationIsNever) {
  EXPECT_TRUE(Deadline(absl::InfiniteDuration()).is_never());
  EXPECT_TRUE(Deadline(-absl::InfiniteDuration()).is_past());
}

TEST(DeadlineTest, WhatDoesNotFitIsNever) {
  EXPECT_TRUE(Deadline(absl::Hours(24) * 365 * 300).is_never());
  EXPECT_FALSE(Deadline(absl::Hours(24) * 365 * 100).is_never());
  EXPECT_TRUE(Deadline(absl::Nanoseconds(INT64_MAX)).is_never());
}

TEST(DeadlineTest, ZeroAndLessAreAlreadyPast) {
  for (const absl::Duration duration : {absl::ZeroDuration(), absl::Nanoseconds(-1),
                                        absl::Hours(-1), absl::Nanoseconds(INT64_MIN)}) {
    const Deadline deadline = duration;
    EXPECT_TRUE(deadline.is_past()) << duration;
    EXPECT_FALSE(deadline.is_never()) << duration;
    EXPECT_EQ(deadline.remaining(), absl::ZeroDuration()) << duration;
  }
}

TEST(DeadlineTest, OnAPlainThreadTheClockIsTheMachines) {
  const auto before = std::chrono::steady_clock::now().time_since_epoch();
  const absl::Duration now = Now();
  const auto after = std::chrono::steady_clock::now().time_since_epoch();
  EXPECT_GE(now, absl::FromChrono(before));
  EXPECT_LE(now, absl::FromChrono(after));
}

TEST(DeadlineTest, ASleepOfAPlainThreadIsNotEarly) {
  const Deadline deadline = absl::Milliseconds(1);
  EXPECT_TRUE(Sleep(deadline).ok());
  EXPECT_TRUE(deadline.is_past());
}

// On a clock that stands still, conversions can be looked at exactly.

FIBER_SIM_TEST(DeadlineSimTest, CountsFromTheVirtualClock) {
  const int64_t now = absl::ToInt64Nanoseconds(Now());
  EXPECT_EQ(Deadline(absl::Seconds(2)).nanos(), now + 2'000'000'000);
  EXPECT_EQ(Deadline(std::chrono::milliseconds(3)).nanos(), now + 3'000'000);
  EXPECT_EQ(Deadline(absl::ZeroDuration()).nanos(), now);
  EXPECT_EQ(Deadline(absl::Seconds(2)).remaining(), absl::Seconds(2));
}

FIBER_SIM_TEST(DeadlineSimTest, PartsOfANanosecondAreRoundedUp) {
  const int64_t now = absl::ToInt64Nanoseconds(Now());
  EXPECT_EQ(Deadline(absl::Nanoseconds(1) / 4).nanos(), now + 1);
  EXPECT_EQ(Deadline(absl::Nanoseconds(7) / 2).nanos(), now + 4);
  EXPECT_EQ(Deadline(absl::Nanoseconds(4)).nanos(), now + 4);
}

FIBER_SIM_TEST(DeadlineSimTest, IsPastFromItsInstantOn) {
  const Deadline deadline = absl::Seconds(10);
  EXPECT_TRUE(Sleep(absl::Seconds(10) - absl::Nanoseconds(1)).ok());
  EXPECT_FALSE(deadline.is_past());
  EXPECT_EQ(deadline.remaining(), absl::Nanoseconds(1));
  EXPECT_TRUE(Sleep(absl::Nanoseconds(1)).ok());
  EXPECT_TRUE(deadline.is_past());
  EXPECT_EQ(deadline.remaining(), absl::ZeroDuration());
}

FIBER_SIM_TEST(DeadlineSimTest, ConvertsFromAnyDuration) {
  const auto from_now = [](Deadline deadline) { return deadline.remaining(); };
  EXPECT_EQ(from_now(std::chrono::duration<double>(0.5)), absl::Milliseconds(500));
  EXPECT_EQ(from_now(std::chrono::duration<float, std::milli>(250)), absl::Milliseconds(250));
  EXPECT_EQ(from_now(std::chrono::days(1)), absl::Hours(24));
  EXPECT_EQ(from_now(std::chrono::duration<int64_t, std::ratio<1, 60>>(90)), absl::Milliseconds(1500));
  EXPECT_EQ(from_now(std::chrono::microseconds(7)), absl::Microseconds(7));
  EXPECT_TRUE(Deadline(std::chrono::hours::max()).is_never());
  EXPECT_TRUE(Deadline(std::chrono::duration<uint64_t>::max()).is_never());
  EXPECT_EQ(from_now(std::chrono::duration<uint64_t, std::milli>(250)), absl::Milliseconds(250));
  EXPECT_TRUE(Deadline(std::chrono::seconds(-1)).is_past());
}

// One deadline for several calls: they share the time.
FIBER_SIM_TEST(DeadlineSimTest, IsAnInstant) {
  const absl::Duration began = Now();
  const Deadline all = absl::Seconds(3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Sleep(Deadline::Earlier(all, absl::Seconds(2))).ok());
  EXPECT_EQ(Now() - began, absl::Seconds(3));
}

FIBER_SIM_TEST(DeadlineSimTest, ASleepUntilThePastReturnsAtOnce) {
  const absl::Duration began = Now();
  bool other_ran = false;
  auto child = Spawn([&other_ran] { other_ran = true; });
  EXPECT_TRUE(Sleep(absl::Seconds(-5)).ok());
  EXPECT_EQ(Now(), began);
  child.Join();
  EXPECT_TRUE(other_ran);
}

}  // namespace
}  // namespace fiber
