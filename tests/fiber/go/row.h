// SPDX-License-Identifier: Apache-2.0
//
// GO_ROW: a test of something that Go's own tests pin down (docs/go_conformance.md), whose body is
// run as a fiber
//
// - on `seeds` seeded schedules: test suite `<Suite>Sim`;
// - on runtimes of 1, 2 and 8 workers, a fiftieth as often on each: test suite `<Suite>Workers`.
//
//   GO_ROW(GoChannel, WhatIsSentIsReceived, 10'000) { … }
#ifndef WEFT_TESTS_FIBER_GO_ROW_H_
#define WEFT_TESTS_FIBER_GO_ROW_H_

#include <source_location>

#include "fiber/sim/gtest.h"
#include "fiber/sim/sim.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "tests/scale.h"

namespace tests {

inline void RunOnSeeds(int seeds, void (*body)(),
                       std::source_location site = std::source_location::current()) {
  fiber::sim::SimulateInTest({.schedules = 1 + Scaled(seeds - 1)}, body, site);
}

inline void RunOnWorkers(int seeds, void (*body)(),
                         std::source_location site = std::source_location::current()) {
  const int rounds = 1 + Scaled(seeds) / 50;
  const auto repeat = [=] {
    for (int i = 0; i < rounds && !testing::Test::HasFailure(); ++i) body();
  };
  sched::RunInTestOn({1, 2, 8}, repeat, site);
}

// How often a body does something: few times on each of many schedules, or often on workers.
inline int Times(int on_each_seed, int on_workers) {
  return fiber::sim::CurrentSeed() != 0 ? on_each_seed : Scaled(on_workers);
}

}  // namespace tests

#define GO_ROW(Suite, Name, seeds)                                                   \
  static void Suite##_##Name##_Row();                                                \
  TEST(Suite##Sim, Name) { ::tests::RunOnSeeds(seeds, Suite##_##Name##_Row); }       \
  TEST(Suite##Workers, Name) { ::tests::RunOnWorkers(seeds, Suite##_##Name##_Row); } \
  static void Suite##_##Name##_Row()

#endif  // WEFT_TESTS_FIBER_GO_ROW_H_
