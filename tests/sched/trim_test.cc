// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kDepth = 160 << 10;

// Pages of the `bytes` below `top` that are in memory.
size_t ResidentPages(const char* top, size_t bytes) {
  const uintptr_t high = reinterpret_cast<uintptr_t>(top) & ~(kPage - 1);
  std::vector<unsigned char> pages(bytes / kPage);
  if (mincore(reinterpret_cast<void*>(high - bytes), bytes, pages.data()) != 0) return 0;
  size_t resident = 0;
  for (unsigned char page : pages) resident += page & 1;
  return resident;
}

__attribute__((noinline)) int Descend(size_t bytes) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(bytes);
  frame[1023] = frame[0];
  return bytes <= sizeof frame ? frame[1023] : Descend(bytes - sizeof frame) + frame[0];
}

// Most of the default stack, in one frame.
__attribute__((noinline)) bool KeepsItsFrame(fiber::Event& is_full, fiber::Event& release) {
  volatile unsigned char frame[200 << 10];
  for (size_t at = 0; at < sizeof frame; at += 512) frame[at] = static_cast<unsigned char>(at / 512 * 7);
  is_full.Set();
  EXPECT_TRUE(release.Wait().ok());
  for (size_t at = 0; at < sizeof frame; at += 512) {
    if (frame[at] != static_cast<unsigned char>(at / 512 * 7)) return false;
  }
  return true;
}

// A trimmer that took the wrong end of a stack, or one whose fiber has gone on, would zero what a fiber comes back to.
TEST(TrimTest, FramesOf200KiBOutliveWhatIsTrimmedBesideThem) {
  for (int workers : {1, 2}) {
    sched::Run({.workers = workers}, [] {
      fiber::Event release;
      std::vector<fiber::JoinHandle<bool>> wide;
      for (int i = 0; i < 10; ++i) {
        fiber::Event is_full;
        wide.push_back(fiber::Spawn([&] { return KeepsItsFrame(is_full, release); }));
        EXPECT_TRUE(is_full.Wait().ok());
      }
      const char* top = nullptr;
      fiber::Event is_measured;
      auto deep = fiber::Spawn([&] {
        char here = 0;
        top = &here;
        Descend(kDepth);
        is_measured.Set();
        return release.Wait();
      });
      EXPECT_TRUE(is_measured.Wait().ok());
      // Of a walk that trims this one, the others have had theirs: they have waited for longer.
      const fiber::Deadline patience = absl::Seconds(30);
      while (ResidentPages(top, kDepth) > 8 && !patience.is_past()) {
        (void)fiber::Sleep(absl::Milliseconds(1));
      }
      EXPECT_LE(ResidentPages(top, kDepth), 8u);
      release.Set();
      for (auto& fiber : wide) EXPECT_TRUE(fiber.Join());
      EXPECT_TRUE(deep.Join().ok());
    });
  }
}

TEST(TrimTest, AParkedFiberGivesBackThePagesOfADeepExcursion) {
  for (int workers : {1, 2}) {
    sched::Run({.workers = workers}, [] {
      const char* top = nullptr;
      size_t resident_before = 0;
      fiber::Event measured;
      auto deep = fiber::Spawn([&] {
        char here = 0;
        top = &here;
        Descend(kDepth);
        resident_before = ResidentPages(top, kDepth);
        measured.Set();
        return fiber::Sleep(absl::InfiniteDuration());
      });
      EXPECT_TRUE(measured.Wait().ok());
      EXPECT_GE(resident_before, kDepth / kPage / 2);
      const fiber::Deadline patience = absl::Seconds(30);
      while (ResidentPages(top, kDepth) > 8 && !patience.is_past()) {
        (void)fiber::Sleep(absl::Milliseconds(1));
      }
      EXPECT_LE(ResidentPages(top, kDepth), 8u);
      deep.Cancel();  // it goes on where it parked: its frames are untouched
      EXPECT_TRUE(absl::IsCancelled(deep.Join()));
    });
  }
}

TEST(TrimTest, AnIdleRuntimeGivesBackThePagesOfThePastsFibers) {
  constexpr int kFibers = 8000;
  sched::Run({.workers = 2}, [&] {
    const auto resident = [] { return fiber::internal::StackDepot::Get().Stats().resident_idle; };
    const size_t before = resident();
    fiber::Event release;
    fiber::WaitGroup all;
    all.Add(kFibers);
    for (int i = 0; i < kFibers; ++i) {
      fiber::Go([&] {
        EXPECT_TRUE(release.Wait().ok());
        all.Done();
      });
    }
    EXPECT_TRUE(fiber::Sleep(absl::Milliseconds(20)).ok());
    release.Set();
    EXPECT_TRUE(all.Wait().ok());
    const fiber::Deadline patience = absl::Seconds(30);
    while (resident() > 4096 && !patience.is_past()) {
      (void)fiber::Sleep(absl::Milliseconds(5));
    }
    EXPECT_LE(resident(), 4096u) << "of " << kFibers << ", and at first " << before;
  });
}

}  // namespace
