// SPDX-License-Identifier: Apache-2.0
//
// The protocol between pollers and a waiter, driven by plain threads.
#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/internal/park.h"
#include "fiber/internal/wait.h"
#include "gtest/gtest.h"
#include "netpoll/internal/poll_slot.h"

namespace netpoll::internal {
namespace {

using fiber::Deadline;
using fiber::WaitReason;
using fiber::internal::kOutcomeDeadline;
using fiber::internal::Unpark;
using fiber::internal::Wait;

constexpr uint32_t kNotLinked = 77;

// What FlowLock::Await does around a slot, without a descriptor.
uint32_t WaitFor(PollSlot& slot, Deadline deadline) {
  Wait wait(WaitReason::kDescriptor, &slot);
  wait.Open();
  if (!slot.TryLink(wait.block())) {
    EXPECT_TRUE(wait.CloseUnclaimed());
    return kNotLinked;
  }
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == kOutcomeDeadline) slot.Unlink();
  return outcome;
}

TEST(PollSlotTest, NewsBeforeTheWaitIsNotWaitedFor) {
  PollSlot slot;
  EXPECT_FALSE(slot.is_ready());
  slot.MarkReady();
  EXPECT_TRUE(slot.is_ready());
  EXPECT_EQ(WaitFor(slot, Deadline::Never()), kNotLinked);
  EXPECT_TRUE(slot.is_ready()) << "a wait that begins does not use up news";
  slot.ClearReady();
  EXPECT_FALSE(slot.is_ready());
}

TEST(PollSlotTest, TimeoutLeavesNothingBehind) {
  PollSlot slot;
  EXPECT_EQ(WaitFor(slot, absl::Milliseconds(1)), kOutcomeDeadline);
  EXPECT_FALSE(slot.is_ready());
  EXPECT_EQ(slot.ClaimWaiter(kOutcomeLookAgain), nullptr);
  slot.MarkReady();
  EXPECT_TRUE(slot.is_ready());
}

TEST(PollSlotTest, NewsForAWaiterStaysForTheNextSystemCall) {
  PollSlot slot;
  std::thread poller([&] { slot.MarkReady(); });
  const uint32_t outcome = WaitFor(slot, Deadline::Never());
  poller.join();
  EXPECT_TRUE(outcome == kOutcomeReady || outcome == kNotLinked);
  EXPECT_TRUE(slot.is_ready());
}

TEST(PollSlotTest, AWaiterThatLostItsClaimKeepsTheNews) {
  PollSlot slot;
  Wait wait(WaitReason::kDescriptor, &slot);
  wait.Open();
  ASSERT_TRUE(slot.TryLink(wait.block()));
  ASSERT_TRUE(wait.CloseUnclaimed());  // as a deadline would
  slot.MarkReady();
  EXPECT_EQ(slot.ClaimWaiter(kOutcomeClosed), nullptr);
  slot.Unlink();
  EXPECT_TRUE(slot.is_ready());
}

TEST(PollSlotTest, ADeafWaitIsNotEndedByNewsAndKeepsIt) {
  PollSlot slot;
  Wait wait(WaitReason::kDescriptor, &slot);
  wait.Open();
  slot.LinkDeaf(wait.block());
  slot.MarkReady();
  EXPECT_EQ(wait.Park(absl::Milliseconds(1)), kOutcomeDeadline);
  slot.Unlink();
  EXPECT_TRUE(slot.is_ready());
}

TEST(PollSlotTest, ADeafWaitIsEndedByItsOwner) {
  PollSlot slot;
  std::atomic<bool> is_linked{false};
  std::thread closer([&] {
    while (!is_linked.load(std::memory_order_acquire)) std::this_thread::yield();
    WaitBlock* block = slot.ClaimWaiter(kOutcomeClosed);
    ASSERT_NE(block, nullptr);
    Unpark(*block);
  });
  Wait wait(WaitReason::kDescriptor, &slot);
  wait.Open();
  slot.LinkDeaf(wait.block());
  is_linked.store(true, std::memory_order_release);
  EXPECT_EQ(wait.Park(Deadline::Never()), kOutcomeClosed);
  closer.join();
  EXPECT_TRUE(slot.is_ready());
}

// A socket without a kernel: what is in it, and an edge when something comes into an empty one.
class FakeSocket {
 public:
  void Send() {
    if (tokens_.fetch_add(1, std::memory_order_seq_cst) == 0) slot_.MarkReady();
  }
  int Receive() {
    slot_.ClearReady();
    return tokens_.exchange(0, std::memory_order_seq_cst);
  }
  PollSlot& slot() { return slot_; }

 private:
  std::atomic<int> tokens_{0};
  PollSlot slot_;
};

// Edges come once: a lost one leaves the reader asleep with tokens in the socket. Short timeouts make the reader come
// and go under the pollers' hands, with the same block.
TEST(PollSlotStressTest, NoEdgeIsLostAmongTimeoutsAndMovedDeadlines) {
  constexpr int kPollers = 3;
  constexpr int kTokens = 30000;
  FakeSocket socket;
  std::atomic<bool> is_done{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < kPollers; ++i) {
    threads.emplace_back([&, i] {
      std::minstd_rand random(static_cast<unsigned>(i + 1));
      for (int sent = 0; sent < kTokens; ++sent) {
        socket.Send();
        for (unsigned spin = random() % 200; spin > 0; --spin) fiber::internal::CpuRelax();
      }
    });
  }
  threads.emplace_back([&] {  // deadlines that are moved
    while (!is_done.load(std::memory_order_relaxed)) {
      if (WaitBlock* block = socket.slot().ClaimWaiter(kOutcomeLookAgain); block != nullptr) {
        Unpark(*block);
      }
      std::this_thread::yield();
    }
  });
  std::minstd_rand random(99);
  int received = 0;
  bool is_lost = false;
  while (received < kPollers * kTokens && !is_lost) {
    const int got = socket.Receive();
    received += got;
    if (got > 0 && random() % 4 != 0) continue;
    const bool is_short = random() % 2 == 0;
    const uint32_t outcome = WaitFor(
        socket.slot(), is_short ? Deadline(absl::Microseconds(random() % 30)) : Deadline(absl::Seconds(20)));
    is_lost = !is_short && outcome == kOutcomeDeadline;
  }
  EXPECT_FALSE(is_lost) << "slept on news after " << received << " tokens";
  is_done.store(true, std::memory_order_relaxed);
  for (std::thread& thread : threads) thread.join();
}

// Between two waits at the socket the reader waits for something else; a poller that comes late must not end that.
TEST(PollSlotStressTest, NoOtherWaitOfTheReaderIsEnded) {
  constexpr int kRounds = 3000;
  FakeSocket socket;
  PollSlot other;
  std::atomic<int> asked{0};
  std::atomic<int> answered{0};
  std::atomic<bool> is_done{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!is_done.load(std::memory_order_relaxed)) {
        socket.slot().MarkReady();
        if (WaitBlock* block = socket.slot().ClaimWaiter(kOutcomeLookAgain); block != nullptr) {
          Unpark(*block);
        }
        std::this_thread::yield();
      }
    });
  }
  threads.emplace_back([&] {
    for (int round = 1; round <= kRounds; ++round) {
      while (asked.load(std::memory_order_acquire) < round) std::this_thread::yield();
      answered.store(round, std::memory_order_release);
      other.MarkReady();
    }
  });
  int wrong = 0;
  for (int round = 1; round <= kRounds; ++round) {
    (void)socket.Receive();
    (void)WaitFor(socket.slot(), absl::Nanoseconds(round % 3 == 0 ? 1 : 2000));
    other.ClearReady();
    asked.store(round, std::memory_order_release);
    (void)WaitFor(other, Deadline::Never());
    if (answered.load(std::memory_order_acquire) != round) ++wrong;
    while (answered.load(std::memory_order_acquire) != round) std::this_thread::yield();
  }
  EXPECT_EQ(wrong, 0);
  is_done.store(true, std::memory_order_relaxed);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace netpoll::internal
