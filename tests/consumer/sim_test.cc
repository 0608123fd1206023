// SPDX-License-Identifier: Apache-2.0
//
// A test of somebody's own fiber code, on seeded schedules.
#include "fiber/channel.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "gtest/gtest.h"

FIBER_SIM_TEST(ConsumerSimTest, AnItemArrives) {
  fiber::Channel<int> items;
  auto sender = fiber::Spawn([&] { return items.Send(7).ok(); });
  EXPECT_EQ(*items.Receive(), 7);
  EXPECT_TRUE(sender.Join());
}
