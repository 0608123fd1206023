// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/stack_pool.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fiber/internal/record.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/thread_state.h"
#include "fiber/scheduler.h"
#include "gtest/gtest.h"

#ifdef WEFT_ASAN
#include <sanitizer/lsan_interface.h>
#endif

namespace fiber::internal {
namespace {

#if defined(WEFT_ASAN) || defined(WEFT_TSAN)
constexpr bool kIsSanitized = true;
#else
constexpr bool kIsSanitized = false;
#endif

// Depots are for ever. Kept where LeakSanitizer finds them.
StackDepot& NewDepot(const StackPoolOptions& options = {}) {
  static auto& depots = *new std::vector<StackDepot*>;
  depots.push_back(new StackDepot(options));
  return *depots.back();
}

std::vector<WaitBlock*> Blocks(WaitBlock* list) {
  std::vector<WaitBlock*> blocks;
  for (; list != nullptr; list = NextFree(*list)) blocks.push_back(list);
  return blocks;
}

WaitBlock* List(const std::vector<WaitBlock*>& blocks) {
  WaitBlock* list = nullptr;
  for (size_t i = blocks.size(); i-- > 0;) {
    SetNextFree(*blocks[i], list);
    list = blocks[i];
  }
  return list;
}

std::vector<WaitBlock*> TakeMany(StackDepot& depot, StackClass cls, size_t count) {
  std::vector<WaitBlock*> blocks;
  while (blocks.size() < count) {
    absl::Status why;
    const auto more = Blocks(depot.Take(cls, std::min<size_t>(32, count - blocks.size()), &why));
    if (more.empty()) {
      ADD_FAILURE() << why;
      break;
    }
    blocks.insert(blocks.end(), more.begin(), more.end());
  }
  return blocks;
}

// Where the topmost page ends, a little above the stack.
char* PagesEnd(const WaitBlock& block) {
  return block.stack_low + LayoutOf(block.stack_class).stack_bytes;
}

// As a fiber would that uses `pages` of the stack.
void Touch(WaitBlock& block, size_t pages = 1) {
  char* const low = PagesEnd(block) - pages * kPageBytes;
  memset(low, 0x5a, block.stack_high - low);
  block.is_stack_resident = true;
}

size_t ResidentPages(const WaitBlock& block) {
  std::vector<unsigned char> pages(LayoutOf(block.stack_class).stack_bytes / kPageBytes);
  EXPECT_EQ(mincore(block.stack_low, pages.size() * kPageBytes, pages.data()), 0);
  return std::count_if(pages.begin(), pages.end(),
                       [](unsigned char page) { return (page & 1) != 0; });
}

void WriteTo(char* address) { *const_cast<volatile char*>(address) = 1; }

// Whether writing there ends the process.
bool Faults(char* address) {
  const pid_t child = fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);  // a sanitizer would report
    signal(SIGBUS, SIG_DFL);
    WriteTo(address);
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

size_t Mappings() {
  std::ifstream maps("/proc/self/maps");
  return std::count(std::istreambuf_iterator<char>(maps), std::istreambuf_iterator<char>(), '\n');
}

bool HasGuardMarkers() {
  void* page =
      mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool has = madvise(page, kPageBytes, 102) == 0;  // MADV_GUARD_INSTALL
  munmap(page, kPageBytes);
  return has;
}

// Runs `body`, and nothing else, in a new process, which other tests have left no mappings.
void InFreshProcess(void (*body)()) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT((body(), _exit(testing::Test::HasFailure() ? 1 : 0)), testing::ExitedWithCode(0), "");
  GTEST_FLAG_SET(death_test_style, "fast");
}

// Gathers the fibers that may try again.
class RequeueScheduler : public Scheduler {
 public:
  RequeueScheduler() : Scheduler(/*is_simulation=*/true) {}

  void RequeueNew(Record& fiber) override {
    SpinLockHolder hold(lock_);
    requeued_.push_back(&fiber);
  }
  std::vector<Record*> TakeRequeued() {
    SpinLockHolder hold(lock_);
    return std::exchange(requeued_, {});
  }

  void QueueNew(Record&) override { abort(); }
  void QueueReady(Record&) override { abort(); }
  void QueueYielded(Record&) override { abort(); }
  Record* TakeNext(ThreadState&, WaitBlock*) override { abort(); }
  bool TakeNextForYield(ThreadState&, Record**) override { abort(); }
  bool ArmTimer(ThreadState&, WaitBlock&, int64_t) override { abort(); }
  int64_t NowNs() override { abort(); }
  void OnFiberEnded(ThreadState&) override { abort(); }
  StackClass default_stack_class() const override { return StackClass::k256KiB; }

 private:
  SpinLock lock_;
  std::vector<Record*> requeued_ ABSL_GUARDED_BY(lock_);
};

class GuardModeTest : public testing::TestWithParam<GuardMode> {};

std::string NameOf(const testing::TestParamInfo<GuardMode>& mode) {
  constexpr const char* kNames[] = {"Auto", "Madvise", "Mprotect"};
  return kNames[static_cast<int>(mode.param)];
}
INSTANTIATE_TEST_SUITE_P(Modes, GuardModeTest,
                         testing::Values(GuardMode::kAuto, GuardMode::kMadvise,
                                         GuardMode::kMprotect),
                         NameOf);

TEST_P(GuardModeTest, EveryStackFaultsBelowItsLowEnd) {
  for (int cls = 0; cls < kStackClasses; ++cls) {
    StackDepot& depot = NewDepot({.guard = GetParam()});
    const auto blocks = TakeMany(depot, static_cast<StackClass>(cls), 3);
    for (WaitBlock* block : blocks) {
      EXPECT_TRUE(block->is_stack_guarded);
      EXPECT_TRUE(Faults(block->stack_low - 1));
      EXPECT_TRUE(Faults(block->stack_low - LayoutOf(block->stack_class).guard_bytes));
      memset(block->stack_low, 1, block->stack_high - block->stack_low);
    }
  }
}

TEST_P(GuardModeTest, GuardsOutliveTheGivingBackOfPages) {
  StackDepot& depot = NewDepot({.max_resident_idle = 0, .guard = GetParam()});
  auto blocks = TakeMany(depot, StackClass::k64KiB, 32);
  for (WaitBlock* block : blocks) Touch(*block, 16);
  depot.Give(List(blocks));
  depot.DiscardIdle(depot.Excess());
  for (WaitBlock* block : blocks) {
    EXPECT_EQ(ResidentPages(*block), 0u);
    EXPECT_FALSE(block->is_stack_resident);
  }
  EXPECT_TRUE(Faults(blocks[7]->stack_low - 1));
  Touch(*blocks[7], 16);
}

TEST_P(GuardModeTest, TheWayThatWasAskedForIsUsed) {
  StackDepot& depot = NewDepot({.guard = GetParam()});
  TakeMany(depot, StackClass::k64KiB, 64);
  GuardMode expected = GetParam();
  if (kIsSanitized || !HasGuardMarkers()) expected = std::max(expected, GuardMode::kMprotect);
#ifdef WEFT_TSAN
  expected = GetParam();
#endif
  const StackPoolStats stats = depot.Stats();
  size_t better_or_equal = 0;
  for (int way = 0; way <= static_cast<int>(GuardMode::kMprotect); ++way) {
    if (way < static_cast<int>(GetParam())) {
      EXPECT_EQ(stats.guards[way], 0u) << way;
    }
    better_or_equal += stats.guards[way];
  }
  EXPECT_EQ(better_or_equal, 64u);
  // Linux 6.13 and 6.14 take guards, but not in batches.
  EXPECT_GE(stats.guards[static_cast<int>(expected)] +
                stats.guards[static_cast<int>(GuardMode::kMadvise)],
            64u);
}

#ifdef WEFT_ASAN
// First: it reads all stacks that the others have made.
TEST(LeakTest, WhatOnlyAStackPointsToIsNotLeaked) {
  StackDepot& depot = NewDepot();
  WaitBlock& block = *TakeMany(depot, StackClass::k64KiB, 1).front();
  auto** kept = reinterpret_cast<int**>(block.stack_high - 8 * kPageBytes);
  *kept = new int(7);
  EXPECT_EQ(__lsan_do_recoverable_leak_check(), 0);
  delete *kept;
}
#endif

TEST(StackGuardTest, TheGuardOfAStackIsFoundAndNothingElse) {
  StackDepot& depot = NewDepot();
  for (int cls = 0; cls < kStackClasses; ++cls) {
    const auto blocks = TakeMany(depot, static_cast<StackClass>(cls), 3);
    const size_t guard_bytes = kStackLayouts[cls].guard_bytes;
    for (WaitBlock* block : blocks) {
      WaitBlock* found = nullptr;
      EXPECT_TRUE(FindGuard(block->stack_low - 1, &found));
      EXPECT_EQ(found, block);
      found = nullptr;
      EXPECT_TRUE(FindGuard(block->stack_low - guard_bytes, &found));
      EXPECT_EQ(found, block);
      EXPECT_FALSE(FindGuard(block->stack_low, &found));
      EXPECT_FALSE(FindGuard(block->stack_high - 1, &found));
    }
  }
  int local = 0;
  WaitBlock* found = nullptr;
  EXPECT_FALSE(FindGuard(&local, &found));
  EXPECT_FALSE(FindGuard(nullptr, &found));
}

TEST(StackGuardTest, BeyondTheBudgetOfMappingsStacksHaveACanaryAndAreAnnounced) {
  testing::internal::CaptureStderr();
  StackDepot& depot = NewDepot({.guard = GuardMode::kMprotect, .mprotect_budget = 100});
  const auto blocks = TakeMany(depot, StackClass::k64KiB, 200);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count_if(blocks.begin(), blocks.end(),
                          [](WaitBlock* block) { return block->is_stack_guarded; }),
            50);
  const StackPoolStats stats = depot.Stats();
  EXPECT_EQ(stats.guards[static_cast<int>(GuardMode::kMprotect)], 50u);
  EXPECT_EQ(stats.guards[static_cast<int>(GuardMode::kCanary)], stats.carved[0] - 50);
  EXPECT_NE(said.find("vm.max_map_count"), std::string::npos) << said;
  EXPECT_NE(said.find("after 50 stacks"), std::string::npos) << said;
  EXPECT_EQ(said.find("weft:"), said.rfind("weft:")) << "said more than once: " << said;
  WaitBlock* found = nullptr;
  for (WaitBlock* block : blocks) {
    EXPECT_EQ(FindGuard(block->stack_low - 1, &found), block->is_stack_guarded);
  }
}

TEST(StackGuardTest, AnOverwrittenCanaryEndsTheProcess) {
  testing::internal::CaptureStderr();
  StackDepot& depot = NewDepot({.guard = GuardMode::kCanary});
  auto blocks = TakeMany(depot, StackClass::k64KiB, 2);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("canary"), std::string::npos);
  WaitBlock& block = *blocks[0];
  EXPECT_FALSE(block.is_stack_guarded);
  memset(block.stack_low, 0xff, block.stack_high - block.stack_low);
  CheckCanary(block);  // all that may be used was used
  EXPECT_DEATH((WriteTo(block.stack_low - 1), CheckCanary(block)), "stack overflow");
  EXPECT_DEATH((WriteTo(block.stack_low - kCanaryBytes), CheckCanary(block)), "stack overflow");
  CheckCanary(*blocks[1]);
}

long AnonymousKib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stol(line.substr(8));
  }
  return 0;
}

// None, where the kernel has one page of zeroes for all that are only read.
long KibOfPagesOnlyRead(size_t pages) {
  const size_t bytes = pages * 2 * kPageBytes;  // every other one
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(madvise(mapped, bytes, MADV_NOHUGEPAGE), 0);
  const long before = AnonymousKib();
  for (size_t at = 0; at < bytes; at += 2 * kPageBytes) {
    (void)static_cast<const volatile char*>(mapped)[at];
  }
  const long cost = AnonymousKib() - before;
  EXPECT_EQ(munmap(mapped, bytes), 0);
  return cost;
}

TEST(StackGuardTest, LookingAtACanaryCostsNoMoreMemoryThanReading) {
  testing::internal::CaptureStderr();
  StackDepot& depot = NewDepot({.guard = GuardMode::kCanary});
  auto blocks = TakeMany(depot, StackClass::k64KiB, 2048);
  const long allowed = KibOfPagesOnlyRead(2048) + 2048 * 4 / 8;
  const long before = AnonymousKib();
  for (WaitBlock* block : blocks) CheckCanary(*block);
  EXPECT_LT(AnonymousKib() - before, allowed);
  testing::internal::GetCapturedStderr();
}

TEST(StackGuardTest, ThreadsWithoutAStackHaveNoCanary) {
  const WaitBlock plain;
  CheckCanary(plain);
}

TEST(StackDepotTest, StacksHaveTheirSizeAndDoNotOverlap) {
  StackDepot& depot = NewDepot();
  std::vector<WaitBlock*> all;
  for (int cls = 0; cls < kStackClasses; ++cls) {
    EXPECT_EQ(kStackLayouts[cls].slot_bytes() / kPageBytes % 2, 1u);
    for (WaitBlock* block : TakeMany(depot, static_cast<StackClass>(cls), 200)) {
      EXPECT_GE(static_cast<size_t>(block->stack_high - block->stack_low),
                kStackClassBytes[cls] - (cls == 0 ? 896 : 0));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block->stack_high) % 64, 0u);
      EXPECT_EQ(static_cast<int>(block->stack_class), cls);
      all.push_back(block);
    }
  }
  std::sort(all.begin(), all.end(), [](auto* a, auto* b) { return a->stack_low < b->stack_low; });
  for (size_t i = 1; i < all.size(); ++i) {
    EXPECT_GE(all[i]->stack_low - LayoutOf(all[i]->stack_class).guard_bytes,
              all[i - 1]->stack_high);
  }
  EXPECT_EQ(std::set<WaitBlock*>(all.begin(), all.end()).size(), all.size());
}

TEST(StackDepotTest, NeighboursStartInDifferentSetsOfTheCache) {
  const auto blocks = TakeMany(NewDepot(), StackClass::k64KiB, 64);
  std::set<uintptr_t> starts;
  for (size_t i = 8; i < 16; ++i)
    starts.insert(reinterpret_cast<uintptr_t>(blocks[i]->stack_high) % kPageBytes);
  EXPECT_EQ(starts.size(), 8u);
}

TEST(StackDepotTest, WhatWasGivenLastIsTakenFirst) {
  StackDepot& depot = NewDepot();
  const auto blocks = TakeMany(depot, StackClass::k64KiB, 100);
  for (WaitBlock* block : blocks) {
    Touch(*block);
    depot.Give(List({block}));
  }
  EXPECT_EQ(TakeMany(depot, StackClass::k64KiB, 100),
            std::vector<WaitBlock*>(blocks.rbegin(), blocks.rend()));
}

TEST(StackDepotTest, StacksWithPagesAreTakenBeforeThoseWithout) {
  StackDepot& depot = NewDepot();
  auto blocks = TakeMany(depot, StackClass::k64KiB, 10);
  Touch(*blocks[3]);
  depot.Give(List(blocks));
  EXPECT_EQ(TakeMany(depot, StackClass::k64KiB, 1).front(), blocks[3]);
}

TEST(StackDepotTest, NothingIsLostWhenListsOfAnyLengthComeAndGo) {
  StackDepot& depot = NewDepot({.max_resident_idle = 10});
  std::vector<WaitBlock*> held;
  uint32_t random = 1;
  for (int round = 0; round < 2000; ++round) {
    random = random * 1664525 + 1013904223;
    const size_t count = 1 + (random >> 8) % 70;
    if ((random >> 20) % 2 == 0) {
      absl::Status why;
      const auto more = Blocks(depot.Take(StackClass::k64KiB, count, &why));
      ASSERT_FALSE(more.empty()) << why;
      ASSERT_LE(more.size(), std::min<size_t>(count, 32));
      held.insert(held.end(), more.begin(), more.end());
    } else {
      std::vector<WaitBlock*> given;
      while (given.size() < count && !held.empty()) {
        if ((random >> given.size() % 32) % 2 == 0) Touch(*held.back());
        given.push_back(held.back());
        held.pop_back();
      }
      depot.Give(List(given));
      depot.DiscardIdle(depot.Excess());
    }
    const StackPoolStats stats = depot.Stats();
    ASSERT_EQ(stats.free[0] + held.size(), stats.carved[0]);
    ASSERT_LE(stats.resident_idle, 10u);
    ASSERT_EQ(std::set<WaitBlock*>(held.begin(), held.end()).size(), held.size());
  }
}

TEST(StackDepotTest, AMillionStacksTakeFewMappings) {
  if (kIsSanitized) GTEST_SKIP() << "needs the address space to itself";
  if (!HasGuardMarkers()) GTEST_SKIP() << "needs Linux 6.13";
  InFreshProcess([] {
    StackDepot& depot = NewDepot();
    const size_t before = Mappings();
    const auto blocks = TakeMany(depot, StackClass::k256KiB, 1'000'000);
    for (size_t i = 0; i < blocks.size(); i += 10'000) Touch(*blocks[i]);
    EXPECT_LE(Mappings(), before + 24);
    EXPECT_EQ(depot.Stats().arenas, 4u);
    EXPECT_TRUE(std::all_of(blocks.begin(), blocks.end(),
                            [](const WaitBlock* block) { return block->is_stack_guarded; }));
    EXPECT_TRUE(Faults(blocks.back()->stack_low - 1));
  });
}

TEST(StackDepotTest, FreeStacksBeyondTheBoundLoseTheirPagesWhenTheyHaveRested) {
  constexpr int64_t kRest = StackDepot::kRestNs;
  StackDepot& depot = NewDepot({.max_resident_idle = 64});
  auto blocks = TakeMany(depot, StackClass::k64KiB, 320);
  for (WaitBlock* block : blocks) Touch(*block, 3);
  int64_t now = 10 * kRest;
  EXPECT_EQ(depot.DiscardExcess(now, 1000), kNeverNs);
  for (size_t i = 0; i < blocks.size(); i += 32) {
    depot.Give(List({blocks.begin() + i, blocks.begin() + i + 32}));
    EXPECT_EQ(depot.Excess(), i <= 32 ? 0 : i - 32);
  }
  now += kRest;  // they were not all free when this time began
  EXPECT_EQ(depot.DiscardExcess(now, 1000), now + kRest);
  EXPECT_EQ(depot.DiscardExcess(now + kRest / 2, 1000), now + kRest);
  EXPECT_EQ(depot.Stats().resident_idle, 320u);
  // 56 are used meanwhile, so that only 200 have rested.
  depot.Give(List(TakeMany(depot, StackClass::k64KiB, 56)));
  now += kRest;
  EXPECT_EQ(depot.DiscardExcess(now, 150), now);
  EXPECT_EQ(depot.Stats().resident_idle, 170u);
  EXPECT_EQ(depot.DiscardExcess(now, 150), now + kRest);
  EXPECT_EQ(depot.Stats().resident_idle, 120u);
  now += kRest;
  EXPECT_EQ(depot.DiscardExcess(now, 1000), kNeverNs);
  EXPECT_EQ(depot.Stats().resident_idle, 64u);
  size_t pages = 0;
  for (WaitBlock* block : blocks) pages += ResidentPages(*block);
  EXPECT_EQ(pages, 64u * 3);
  EXPECT_EQ(depot.DiscardIdle(40), 40u);
  EXPECT_EQ(depot.DiscardIdle(40), 24u);
  EXPECT_EQ(depot.DiscardIdle(40), 0u);
  for (WaitBlock* block : blocks) EXPECT_EQ(ResidentPages(*block), 0u);
  EXPECT_EQ(TakeMany(depot, StackClass::k64KiB, 320).size(), 320u);
  EXPECT_EQ(depot.Stats().carved[0], 320u);
}

TEST(StackDepotTest, BeyondMaxStackMemoryTheErrorNamesTheOption) {
  StackDepot& depot = NewDepot({.max_stack_memory = 100 * kPageBytes});
  auto blocks = TakeMany(depot, StackClass::k64KiB, 100);
  absl::Status why;
  EXPECT_EQ(depot.Take(StackClass::k64KiB, 1, &why), nullptr);
  EXPECT_EQ(why.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(why.message().find("RuntimeOptions::max_stack_memory"), std::string::npos) << why;
  EXPECT_EQ(depot.Take(StackClass::k1MiB, 1, &why), nullptr);

  // Free stacks of one class keep pages, which another class can have.
  for (WaitBlock* block : blocks) Touch(*block);
  depot.Give(List({blocks.begin(), blocks.begin() + 30}));
  EXPECT_EQ(TakeMany(depot, StackClass::k1MiB, 30).size(), 30u);
  EXPECT_EQ(depot.Take(StackClass::k64KiB, 1, &why), nullptr);
  EXPECT_EQ(depot.Stats().resident_idle, 0u);

  depot.SetOptions({.max_stack_memory = 101 * kPageBytes});
  EXPECT_EQ(Blocks(depot.Take(StackClass::k64KiB, 32, &why)).size(), 1u);
}

TEST(StackDepotTest, MemoryIsCommittedByChunkWhereWhatIsMappedCounts) {
  StackDepot& depot = NewDepot({.commit_by_chunk = true});
  const size_t before = Mappings();
  for (int cls = 0; cls < kStackClasses; ++cls) {
    auto blocks = TakeMany(depot, static_cast<StackClass>(cls), 200);
    for (WaitBlock* block : blocks) {
      EXPECT_TRUE(block->is_stack_guarded);
      Touch(*block, 2);
    }
    EXPECT_TRUE(Faults(blocks[100]->stack_low - 1));
  }
  if (!kIsSanitized && HasGuardMarkers()) {
    EXPECT_LE(Mappings(), before + 4 * 6);
  }
}

TEST(StackDepotTest, UnderRlimitAsTheErrorNamesItAndTheProgramKeepsSome) {
  if (kIsSanitized) GTEST_SKIP() << "shadow memory does not fit";
  InFreshProcess([] {
    constexpr size_t kLimit = 4ull << 30;
    const rlimit limit = {kLimit, kLimit};
    ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    StackDepot& depot = NewDepot();
    size_t count = 0;
    absl::Status why;
    while (WaitBlock* list = depot.Take(StackClass::k256KiB, 32, &why)) {
      for (WaitBlock* block : Blocks(list)) Touch(*block);
      count += Blocks(list).size();
    }
    EXPECT_EQ(why.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(why.message().find("RLIMIT_AS"), std::string::npos) << why;
    EXPECT_NE(why.message().find("ulimit -v"), std::string::npos) << why;
    // At least three quarters of it became stacks, and an eighth is left.
    EXPECT_GT(count, kLimit / 4 * 3 / LayoutOf(StackClass::k256KiB).slot_bytes());
    EXPECT_NE(std::make_unique<char[]>(kLimit / 10), nullptr);
  });
}

TEST(StackDepotTest, UnderRlimitDataTheErrorNamesIt) {
  if (kIsSanitized) GTEST_SKIP() << "shadow memory does not fit";
  InFreshProcess([] {
    constexpr size_t kLimit = 1 << 30;
    const rlimit limit = {kLimit, kLimit};
    ASSERT_EQ(setrlimit(RLIMIT_DATA, &limit), 0);
    StackDepot& depot = NewDepot();
    absl::Status why;
    size_t count = 0;
    while (WaitBlock* list = depot.Take(StackClass::k256KiB, 32, &why))
      count += Blocks(list).size();
    EXPECT_GT(count, 3000u);
    EXPECT_NE(why.message().find("RLIMIT_DATA"), std::string::npos) << why;
  });
}

TEST(StackDepotTest, LockedMemoryMeansSmallReservationsAndOtherGuards) {
  if (kIsSanitized) GTEST_SKIP() << "locks the shadow memory, too";
  if (mlockall(MCL_FUTURE) != 0) GTEST_SKIP() << "locking memory is refused here (it takes root, or ulimit -l): " << strerror(errno);
  ASSERT_EQ(munlockall(), 0);
  InFreshProcess([] {
    ASSERT_EQ(mlockall(MCL_FUTURE), 0);
    StackDepot& depot = NewDepot({.max_resident_idle = 0});
    auto blocks = TakeMany(depot, StackClass::k64KiB, 64);
    ASSERT_EQ(blocks.size(), 64u);
    absl::Status why;
    if (depot.Take(StackClass::k64KiB, 1, &why) == nullptr) {
      EXPECT_NE(why.message().find("RLIMIT_MEMLOCK"), std::string::npos) << why;
    } else {
      EXPECT_EQ(depot.Stats().arenas, 2u);
    }
    EXPECT_TRUE(blocks[63]->is_stack_guarded);
    EXPECT_TRUE(Faults(blocks[63]->stack_low - 1));
    // Its pages cannot be given back, which is said once.
    testing::internal::CaptureStderr();
    Touch(*blocks[62]);
    Touch(*blocks[63]);
    depot.Give(List({blocks[62]}));
    EXPECT_EQ(depot.DiscardIdle(1), 0u);
    EXPECT_EQ(depot.Excess(), 0u) << "a monitor would try for ever";
    depot.Give(List({blocks[63]}));
    EXPECT_EQ(depot.DiscardIdle(1), 0u);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("mlockall"), std::string::npos);
    EXPECT_EQ(said.find("weft:"), said.rfind("weft:")) << said;
    EXPECT_TRUE(blocks[63]->is_stack_resident);
    EXPECT_EQ(TakeMany(depot, StackClass::k64KiB, 1), std::vector<WaitBlock*>{blocks[63]});
  });
}

TEST(StackDepotTest, PagesThatWereLockedForAWhileAreTriedAgain) {
  StackDepot& depot = NewDepot({.max_resident_idle = 0});
  const auto blocks = TakeMany(depot, StackClass::k64KiB, 8);
  for (WaitBlock* block : blocks) Touch(*block);
  char* const locked = blocks[0]->stack_high - 1;
  // Sanitizers make of mlock() a function that does nothing.
  ASSERT_EQ(syscall(SYS_mlock, locked, 1), 0) << "a page may be locked by anybody: ulimit -l";
  testing::internal::CaptureStderr();
  depot.Give(List(blocks));
  EXPECT_EQ(depot.DiscardIdle(4), 4u) << "the one is passed over";
  EXPECT_EQ(depot.DiscardIdle(8), 3u);
  EXPECT_EQ(depot.Excess(), 1u);
  EXPECT_EQ(depot.DiscardIdle(8), 0u);
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(depot.Excess(), 0u);
  ASSERT_EQ(syscall(SYS_munlock, locked, 1), 0);
  const int64_t now = fiber::internal::MonotonicNs();
  const int64_t retry = depot.DiscardExcess(now, 1000);
  EXPECT_GT(retry, now + StackDepot::kRestNs) << "not so soon";
  EXPECT_LE(retry, now + StackDepot::kDiscardRetryNs);
  EXPECT_EQ(depot.DiscardExcess(retry, 1000), kNeverNs);
  EXPECT_EQ(depot.Stats().resident_idle, 0u);
  EXPECT_EQ(ResidentPages(*blocks[0]), 0u);
}

TEST(StackDepotTest, ForkedChildrenUseTheDepotWhateverTheParentsThreadsWereDoing) {
  StackDepot& depot = StackDepot::Get();
  std::atomic<bool> is_stopping{false};
  std::thread busy([&] {
    while (!is_stopping.load(std::memory_order_relaxed)) {
      absl::Status why;
      depot.Give(depot.Take(StackClass::k64KiB, 5, &why));
    }
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto blocks = TakeMany(StackDepot::Get(), StackClass::k64KiB, 100);
      for (WaitBlock* block : blocks) Touch(*block);
      StackDepot::Get().Give(List(blocks));
      _exit(HasFailure() ? 1 : 0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  is_stopping.store(true, std::memory_order_relaxed);
  busy.join();
}

TEST(StackCacheTest, TheOwnerUsesLastInFirstOutAndOthersTakeAll) {
  StackDepot& depot = NewDepot();
  auto blocks = TakeMany(depot, StackClass::k64KiB, 4);
  StackCache cache;
  EXPECT_EQ(cache.Pop(), nullptr);
  EXPECT_EQ(cache.TakeAll(), nullptr);
  for (WaitBlock* block : blocks) cache.Push(block);
  EXPECT_EQ(cache.size(), 4u);
  EXPECT_EQ(cache.Pop(), blocks[3]);
  EXPECT_TRUE(blocks[3]->is_stack_resident);
  EXPECT_EQ(Blocks(cache.TakeAll()), (std::vector<WaitBlock*>{blocks[2], blocks[1], blocks[0]}));
  EXPECT_EQ(cache.Pop(), nullptr);
  EXPECT_EQ(cache.size(), 0u);
  cache.Push(blocks[0]);
  EXPECT_EQ(cache.size(), 1u);
  depot.Give(List(blocks));
}

// A depot that has `stacks` stacks and no more.
StackPoolOptions AtMost(size_t stacks) { return {.max_stack_memory = stacks * kPageBytes}; }

// Whether the kernel makes pages resident for many ranges at once.
bool IsPopulatingKnown() {
  void* const page = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const iovec range = {page, kPageBytes};
  const bool is_known = AdvisePages(&range, 1, 23 /* MADV_POPULATE_WRITE */) == 1;
  munmap(page, kPageBytes);
  return is_known;
}

class StackWaitTest : public testing::Test {
 protected:
  StackWaitTest() { testing::internal::CaptureStderr(); }  // waiting is announced
  ~StackWaitTest() override { testing::internal::GetCapturedStderr(); }

  Record& NewFiber() {
    fibers_.push_back(std::make_unique<Record>());
    fibers_.back()->scheduler = &scheduler_;
    return *fibers_.back();
  }

  RequeueScheduler scheduler_;
  std::vector<std::unique_ptr<Record>> fibers_;
};

TEST_F(StackWaitTest, TakingForACacheFillsIt) {
  StackDepot& depot = NewDepot();
  StackCache cache;
  WaitBlock* block = depot.TakeForCache(StackClass::k64KiB, cache, NewFiber());
  ASSERT_NE(block, nullptr);
  EXPECT_TRUE(block->is_stack_resident);
  EXPECT_EQ(cache.size(), 31u);
  depot.GiveFrom(cache);
  EXPECT_EQ(depot.Stats().free[0], 63u);
}

// A million fibers would fault a million times; one fiber needs no 32 pages.
TEST_F(StackWaitTest, ASecondHandfulComesWithItsUppermostPages) {
  StackDepot& depot = NewDepot();
  StackCache cache;
  std::vector<WaitBlock*> blocks;
  const auto take_handful = [&] {
    const size_t before = blocks.size();
    blocks.push_back(depot.TakeForCache(StackClass::k64KiB, cache, NewFiber()));
    while (WaitBlock* block = cache.Pop()) blocks.push_back(block);
    return std::vector(blocks.begin() + before, blocks.end());
  };
  for (WaitBlock* block : take_handful()) EXPECT_EQ(ResidentPages(*block), 0u);
  const auto second = take_handful();
  ASSERT_EQ(second.size(), 32u);
  const size_t pages = IsPopulatingKnown() ? 1 : 0;
  for (WaitBlock* block : second) EXPECT_EQ(ResidentPages(*block), pages);
  EXPECT_TRUE(Faults(second[7]->stack_low - 1));
  EXPECT_FALSE(Faults(second[7]->stack_high - 1));
  // What is given back is given back to the kernel.
  for (WaitBlock* block : second) depot.Give(List({block}));
  depot.DiscardIdle(second.size());
  for (WaitBlock* block : second) EXPECT_EQ(ResidentPages(*block), 0u);
  blocks.resize(blocks.size() - second.size());
  depot.Give(List(blocks));
}

TEST_F(StackWaitTest, FibersThatFoundNoneStartInOrderAsStacksComeBack) {
  StackDepot& depot = NewDepot(AtMost(2));
  auto blocks = TakeMany(depot, StackClass::k64KiB, 2);
  StackCache cache;
  std::vector<Record*> waiting;
  for (int i = 0; i < 4; ++i) {
    waiting.push_back(&NewFiber());
    EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache, *waiting.back()), nullptr);
  }
  EXPECT_TRUE(depot.HasWaiters());
  EXPECT_EQ(depot.Stats().waiting, 4u);
  EXPECT_EQ(scheduler_.TakeRequeued(), std::vector<Record*>{});

  depot.Give(List(blocks));
  EXPECT_EQ(scheduler_.TakeRequeued(), (std::vector<Record*>{waiting[0], waiting[1]}));
  EXPECT_EQ(depot.Stats().waiting, 2u);

  // Somebody was faster: the first is last in line now.
  blocks = TakeMany(depot, StackClass::k64KiB, 2);
  EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache, *waiting[0]), nullptr);
  for (Record* expected : {waiting[2], waiting[3], waiting[0]}) {
    depot.Give(List({blocks[0]}));
    EXPECT_EQ(scheduler_.TakeRequeued(), std::vector<Record*>{expected});
    EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache, *expected), blocks[0]);
  }
  EXPECT_FALSE(depot.HasWaiters());
}

TEST_F(StackWaitTest, AStackInAnotherWorkersCacheIsFound) {
  StackDepot& depot = NewDepot(AtMost(1));
  auto blocks = TakeMany(depot, StackClass::k64KiB, 1);
  StackCache busy[kStackClasses];
  StackCache mine[kStackClasses];
  depot.RegisterCaches(busy);
  depot.RegisterCaches(mine);
  Touch(*blocks[0]);
  busy[0].Push(blocks[0]);
  EXPECT_FALSE(depot.HasWaiters());
  EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, mine[0], NewFiber()), blocks[0]);
  EXPECT_EQ(busy[0].Pop(), nullptr);

  // So is what one of another class keeps from being used.
  busy[0].Push(blocks[0]);
  WaitBlock* larger = depot.TakeForCache(StackClass::k1MiB, mine[2], NewFiber());
  ASSERT_NE(larger, nullptr);
  EXPECT_EQ(larger->stack_class, StackClass::k1MiB);
  EXPECT_EQ(ResidentPages(*blocks[0]), 0u);
  depot.UnregisterCaches(busy);
  depot.UnregisterCaches(mine);
}

TEST_F(StackWaitTest, UnregisteredCachesGiveBackWhatTheyHoldAndStartWaiters) {
  StackDepot& depot = NewDepot(AtMost(1));
  auto blocks = TakeMany(depot, StackClass::k64KiB, 1);
  StackCache cache[kStackClasses];
  depot.RegisterCaches(cache);
  Record& fiber = NewFiber();
  EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache[0], fiber), nullptr);
  cache[0].Push(blocks[0]);
  depot.UnregisterCaches(cache);
  EXPECT_EQ(scheduler_.TakeRequeued(), std::vector<Record*>{&fiber});
}

TEST_F(StackWaitTest, AStackOfOneClassLetsAFiberOfAnotherStart) {
  StackDepot& depot = NewDepot(AtMost(3));
  auto blocks = TakeMany(depot, StackClass::k64KiB, 3);
  StackCache cache;
  Record& fiber = NewFiber();
  EXPECT_EQ(depot.TakeForCache(StackClass::k1MiB, cache, fiber), nullptr);
  Touch(*blocks[0]);
  depot.Give(List({blocks[0]}));
  EXPECT_EQ(scheduler_.TakeRequeued(), std::vector<Record*>{&fiber});
  EXPECT_NE(depot.TakeForCache(StackClass::k1MiB, cache, fiber), nullptr);
}

TEST_F(StackWaitTest, MoreMemoryStartsWaiters) {
  StackDepot& depot = NewDepot(AtMost(1));
  TakeMany(depot, StackClass::k64KiB, 1);
  StackCache cache;
  Record& fiber = NewFiber();
  EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache, fiber), nullptr);
  depot.RetryWaiters();
  EXPECT_EQ(scheduler_.TakeRequeued(), std::vector<Record*>{&fiber});
  EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache, fiber), nullptr);
  depot.SetOptions(AtMost(2));
  EXPECT_EQ(scheduler_.TakeRequeued(), std::vector<Record*>{&fiber});
  EXPECT_NE(depot.TakeForCache(StackClass::k64KiB, cache, fiber), nullptr);
}

// Fibers of two classes, far more than there are stacks, on threads that cache stacks as workers
// do. A lost wake-up leaves some in line for ever.
TEST_F(StackWaitTest, NoFiberIsLeftInLineWhenStacksAreScarce) {
  constexpr int kRounds = kIsSanitized ? 20 : 200;
  constexpr int kThreads = 3;
  constexpr size_t kFibers = 300;
  for (int round = 0; round < kRounds; ++round) {
    StackDepot& depot = NewDepot(AtMost(1 + round % 4));
    struct Queue : RequeueScheduler {
      void RequeueNew(Record& fiber) override {
        SpinLockHolder hold(lock);
        ready.push_back(&fiber);
      }
      SpinLock lock;
      std::vector<Record*> ready ABSL_GUARDED_BY(lock);
    } queue;
    std::vector<Record> fibers(kFibers);
    for (size_t i = 0; i < kFibers; ++i) {
      fibers[i].scheduler = &queue;
      fibers[i].id.store(i % 3 == 0 ? 2 : 0, std::memory_order_relaxed);  // its class
      queue.RequeueNew(fibers[i]);
    }
    std::atomic<size_t> ended{0};
    const auto work = [&] {
      StackCache caches[kStackClasses];
      depot.RegisterCaches(caches);
      Backoff backoff;
      while (ended.load(std::memory_order_relaxed) < kFibers) {
        Record* fiber = nullptr;
        {
          SpinLockHolder hold(queue.lock);
          if (!queue.ready.empty()) {
            fiber = queue.ready.back();
            queue.ready.pop_back();
          }
        }
        if (fiber == nullptr) {
          backoff.Pause();
          continue;
        }
        backoff = {};
        const auto cls = static_cast<int>(fiber->id.load(std::memory_order_relaxed));
        WaitBlock* block = caches[cls].Pop();
        if (block == nullptr) {
          block = depot.TakeForCache(static_cast<StackClass>(cls), caches[cls], *fiber);
        }
        if (block == nullptr) continue;
        // Runs: nobody else has this stack.
        ASSERT_EQ(block->fiber.exchange(fiber, std::memory_order_relaxed), nullptr);
        ++block->outcome;  // not atomic: ThreadSanitizer looks
        block->fiber.store(nullptr, std::memory_order_relaxed);
        caches[cls].Push(block);
        if (depot.HasWaiters()) depot.GiveFrom(caches[cls]);
        ended.fetch_add(1, std::memory_order_relaxed);
      }
      depot.UnregisterCaches(caches);
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    const StackPoolStats stats = depot.Stats();
    EXPECT_EQ(stats.waiting, 0u);
    EXPECT_FALSE(depot.HasWaiters());
    for (int cls : {0, 2}) EXPECT_EQ(stats.free[cls], stats.carved[cls]);
  }
}

TEST(StackWaitMessageTest, TheFirstFiberInLineIsAnnouncedWithTheLimit) {
  StackDepot& depot = NewDepot(AtMost(1));
  TakeMany(depot, StackClass::k64KiB, 1);
  RequeueScheduler scheduler;
  Record fiber;
  fiber.scheduler = &scheduler;
  StackCache cache;
  testing::internal::CaptureStderr();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(depot.TakeForCache(StackClass::k64KiB, cache, fiber), nullptr);
    depot.RetryWaiters();
  }
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("max_stack_memory"), std::string::npos) << said;
  EXPECT_EQ(said.find("weft:"), said.rfind("weft:")) << "said more than once: " << said;
  EXPECT_EQ(depot.Stats().waits, 3u);
}

size_t Trim(WaitBlock& block, const char* below, size_t threshold_pages) {
  return TrimStackBelow(block, below, threshold_pages, *std::make_unique<Residency>());
}

TEST(TrimTest, PagesBelowAreGivenBackAndTheRestIsKept) {
  StackDepot& depot = NewDepot();
  WaitBlock& block = *TakeMany(depot, StackClass::k256KiB, 1).front();
  Touch(block, 65);
  char* const below = PagesEnd(block) - 10 * kPageBytes + 100;
  EXPECT_EQ(Trim(block, below, 54), 0u);  // just so many may stay
  EXPECT_EQ(ResidentPages(block), 65u);
  // 55 whole pages lie below, one of which is left as a margin.
  EXPECT_EQ(Trim(block, below, 8), 54 * kPageBytes);
  EXPECT_EQ(ResidentPages(block), 11u);
  for (char* at = PagesEnd(block) - 11 * kPageBytes; at < block.stack_high; ++at)
    ASSERT_EQ(*at, 0x5a);
  EXPECT_EQ(PagesEnd(block)[-11 * static_cast<int>(kPageBytes) - 1], 0);
  EXPECT_EQ(Trim(block, below, 8), 0u);
  EXPECT_TRUE(Faults(block.stack_low - 1));
}

TEST(TrimTest, AStackUsedToTheLowEndHasNothingBelow) {
  StackDepot& depot = NewDepot();
  WaitBlock& block = *TakeMany(depot, StackClass::k64KiB, 1).front();
  Touch(block, 16);
  EXPECT_EQ(Trim(block, block.stack_high, 0), 0u) << "a fiber may wait on another stack";
  EXPECT_EQ(Trim(block, block.stack_high + (1 << 20), 0), 0u);
  EXPECT_EQ(Trim(block, block.stack_low, 0), 0u);
  EXPECT_EQ(Trim(block, block.stack_low + kPageBytes + 1, 0), 0u);
  EXPECT_EQ(Trim(block, block.stack_low + 2 * kPageBytes, 0), kPageBytes);
  EXPECT_EQ(ResidentPages(block), 15u);
}

// What is asked about many at once is what is asked about each.
TEST(TrimTest, NeighboursInAnyOrderAreCountedAsOneByOne) {
  StackDepot& depot = NewDepot();
  for (const StackClass cls : {StackClass::k64KiB, StackClass::k256KiB, StackClass::k8MiB}) {
    std::vector<WaitBlock*> blocks = TakeMany(depot, cls, 100);
    uint32_t seed = 1;
    for (size_t i = blocks.size(); i > 1; --i) {
      seed = seed * 1664525 + 1013904223;
      std::swap(blocks[i - 1], blocks[(seed >> 8) % i]);
    }
    for (size_t i = 0; i < blocks.size(); ++i) Touch(*blocks[i], 1 + i % 16);
    const auto residency = std::make_unique<Residency>();
    for (WaitBlock* block : blocks) {
      const size_t pages = LayoutOf(cls).stack_bytes / kPageBytes;
      const size_t resident = ResidentPages(*block);
      ASSERT_EQ(residency->Count(block->stack_low, pages), resident);
      ASSERT_EQ(residency->Count(block->stack_low, pages - 8), resident - std::min(resident, 8ul));
    }
    Touch(*blocks[0], 16);
    residency->Forget();
    ASSERT_EQ(residency->Count(blocks[0]->stack_low, LayoutOf(cls).stack_bytes / kPageBytes), 16u);
  }
}

}  // namespace
}  // namespace fiber::internal
