// SPDX-License-Identifier: Apache-2.0
//
// Kernels that refuse to guard stacks, or to take pages back, from the start or from some moment on.
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/this_fiber.h"
#include "tests/limits/at_work.h"
#include "tests/netpoll/seccomp.h"

namespace limits_test {
namespace {

using netpoll_test::RefuseSyscallWhere;
using tests::kCannotTest;
using tests::kFine;

constexpr long kSysProcessMadvise = 440;
constexpr int kMadvGuardInstall = 102;

size_t Guarded(GuardMode way) { return StackDepot::Get().Stats().guards[static_cast<int>(way)]; }

int CannotTest(const char* what) {
  fprintf(stderr, "%s is refused here: %s\n", what, strerror(errno));
  return kCannotTest;
}

// As the kernels that are not ours would: from here on nothing but mprotect makes guards, and nothing discards in batches.
bool RefuseGuardMarkers(int error) {
  return RefuseSyscallWhere(kSysProcessMadvise, 0, -1, error) &&
         RefuseSyscallWhere(SYS_madvise, 2, kMadvGuardInstall, EINVAL);
}

// As a frame that reaches below the stack it is called on.
__attribute__((noinline, no_sanitize("address"))) void Overrun() {
  char* low = nullptr;
  fiber::internal::ForEachRecord([&low](fiber::internal::Record& record) {
    if (record.id.load() == fiber::CurrentId()) low = record.block.load()->stack_low;
  });
  *const_cast<volatile char*>(low - 1) = 1;
}

// Without mappings for more guards, stacks would be unguarded without a word, or fibers end with what other programs' do: a
// crash at 32,000.
TEST(GuardsTest, FortyThousandFibersHaveGuardsUpToTheBudgetThenCanaries) {
  std::string said;
  InChild(
      [] {
        StackDepot::Get().SetOptions({.guard = GuardMode::kMprotect});
        AtWork at_work;
        const int kFibers = tests::Scaled(40'000);
        at_work.ExpectCrowd(kFibers);
        at_work.ExpectCrowd(kFibers);
        EXPECT_EQ(Guarded(GuardMode::kAuto) + Guarded(GuardMode::kMadvise), 0u);
        if (!tests::kIsSlow) {
          EXPECT_GT(Guarded(GuardMode::kMprotect), 20'000u);
          EXPECT_GT(Guarded(GuardMode::kCanary), 10'000u);
        }
        // The rest of the program finds mappings.
        void* own[1000];
        for (size_t i = 0; i < 1000; ++i) {
          own[i] = mmap(nullptr, 4096, i % 2 == 0 ? PROT_READ : PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          EXPECT_NE(own[i], MAP_FAILED);
        }
        for (void* each : own) munmap(each, 4096);
        return kFine;
      },
      &said);
  EXPECT_EQ(tests::CountIn(said, "weft:"), tests::kIsSlow ? 0 : 1) << said;
  if (!tests::kIsSlow) {
    EXPECT_NE(said.find("have only a canary"), std::string::npos) << said;
    EXPECT_NE(said.find("raise vm.max_map_count, or use Linux 6.13"), std::string::npos) << said;
  }
}

// An overflow that goes on unseen overwrites another fiber's locals, or is laid at the door of whoever has the stack next.
TEST(GuardsTest, AnOverrunCanaryEndsTheProcessWhenItsFiberParksOrEndsAndNamesIt) {
  for (const bool is_parking : {true, false}) {
    const tests::ChildEnd end = tests::RunChild([is_parking] {
      StackDepot::Get().SetOptions({.guard = GuardMode::kMprotect, .mprotect_budget = 64});
      // One worker: its crowd takes all that are guarded, where those in another's cache could be anyone's.
      sched::Runtime runtime({.workers = 1});
      Crowd crowd(runtime, 100);
      crowd.AwaitAll();
      fiber::Event never;
      runtime.Spawn({.name = "wide", .stack_bytes = kSmallStack}, [&never, is_parking] {
        Overrun();
        if (is_parking) (void)never.Wait();
      }).Join();
      return kFine;
    });
    EXPECT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGABRT) << end.status;
    EXPECT_NE(end.said.find("fatal: stack overflow: fiber"), std::string::npos) << end.said;
    EXPECT_NE(end.said.find("'wide' (spawned at"), std::string::npos) << end.said;
    EXPECT_NE(end.said.find("give it a larger one"), std::string::npos) << end.said;
  }
}

// What the probe at the start has found out may be wrong later: a process may filter its own calls.
TEST(GuardsTest, WhereGuardMarkersAreRefusedFromTheStartOrLaterStacksAreGuardedByMprotect) {
  for (const bool is_late : {false, true}) {
    for (const int error : {ENOSYS, EPERM}) {
      std::string said;
      InChild(
          [=] {
            if (!is_late && !RefuseGuardMarkers(error)) return CannotTest("seccomp");
            AtWork at_work;
            at_work.ExpectCrowd(500);
            if (is_late && !RefuseGuardMarkers(error)) return CannotTest("seccomp");
            const size_t before = Guarded(GuardMode::kMprotect);
            at_work.ExpectCrowd(1500);
            EXPECT_GT(Guarded(GuardMode::kMprotect), before + 900);
            EXPECT_EQ(Guarded(GuardMode::kCanary), 0u);
            // Pages go back one range at a time.
            StackDepot::Get().DiscardIdle(SIZE_MAX);
            EXPECT_EQ(StackDepot::Get().Stats().resident_idle, 0u);
            at_work.ExpectCrowd(1500);
            return kFine;
          },
          &said);
      EXPECT_EQ(said, "");
      if (IsSkipped()) return;
    }
  }
}

// Before Linux 6.15, or in a sandbox that knows no batches: what batches would do is done one range at a time, and nobody is told.
TEST(GuardsTest, WhereBatchesAreRefusedFromTheStartOrLaterEachRangeHasItsCall) {
  for (const bool is_late : {false, true}) {
    for (const int error : {ENOSYS, EPERM, EBADF}) {
      std::string said;
      InChild(
          [=] {
            const auto refuse = [error] { return RefuseSyscallWhere(kSysProcessMadvise, 0, -1, error); };
            if (!is_late && !refuse()) return CannotTest("seccomp");
            AtWork at_work;
            at_work.ExpectCrowd(500);
            if (is_late && !refuse()) return CannotTest("seccomp");
            const size_t one_by_one = Guarded(GuardMode::kMadvise) + Guarded(GuardMode::kMprotect);
            const size_t in_batches = Guarded(GuardMode::kAuto);
            at_work.ExpectCrowd(1500);
            EXPECT_GT(Guarded(GuardMode::kMadvise) + Guarded(GuardMode::kMprotect), one_by_one + 900);
            EXPECT_EQ(Guarded(GuardMode::kAuto), in_batches);
            EXPECT_EQ(Guarded(GuardMode::kCanary), 0u);
            EXPECT_GT(StackDepot::Get().DiscardIdle(SIZE_MAX), 900u);
            EXPECT_EQ(StackDepot::Get().Stats().resident_idle, 0u);
            at_work.ExpectCrowd(1500);
            return kFine;
          },
          &said);
      EXPECT_EQ(said, "");
      if (IsSkipped()) return;
    }
  }
}

// The same, and mprotect too: a sandbox that lets nothing change what is mapped.
TEST(GuardsTest, WhereNothingGuardsStacksHaveCanariesAndItIsSaidWhy) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        at_work.ExpectCrowd(500);
        if (!RefuseGuardMarkers(EPERM) ||
            !RefuseSyscallWhere(SYS_mprotect, 2, PROT_NONE, EACCES)) {
          return CannotTest("seccomp");
        }
        at_work.ExpectCrowd(1500);
        EXPECT_GT(Guarded(GuardMode::kCanary), 900u);
        return kFine;
      },
      &said);
  if (IsSkipped()) return;
  EXPECT_EQ(tests::CountIn(said, "weft:"), 1) << said;
  EXPECT_NE(said.find("have only a canary"), std::string::npos) << said;
  EXPECT_NE(said.find("since mprotect says: Permission denied"), std::string::npos) << said;
}

// In locked memory the kernel installs no guards and takes no pages back, in mappings that are there already neither.
constexpr char kPagesStay[] = "idle stacks keep their pages: madvise(MADV_DONTNEED)";

// Those who took the trouble of locking memory would lose the process.
TEST(GuardsTest, WherePagesAreNotTakenBackFromSomeMomentOnTheyStayAndItIsSaidOnce) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        at_work.ExpectCrowd(900);
        EXPECT_GT(StackDepot::Get().DiscardIdle(300), 200u);
        if (!RefuseGuardMarkers(EINVAL) ||
            !RefuseSyscallWhere(SYS_madvise, 2, MADV_DONTNEED, EINVAL)) {
          return CannotTest("seccomp");
        }
        at_work.ExpectCrowd(1800);
        EXPECT_EQ(Guarded(GuardMode::kCanary), 0u);
        EXPECT_EQ(StackDepot::Get().DiscardIdle(SIZE_MAX), 0u);
        EXPECT_EQ(StackDepot::Get().Excess(), 0u) << "somebody would try for ever";
        EXPECT_GT(StackDepot::Get().Stats().resident_idle, 1000u);
        at_work.ExpectCrowd(1800);
        return kFine;
      },
      &said);
  if (IsSkipped()) return;
  EXPECT_EQ(tests::CountIn(said, "weft:"), 1) << said;
  EXPECT_NE(said.find(kPagesStay), std::string::npos) << said;
  EXPECT_NE(said.find("mlockall"), std::string::npos) << said;
}

bool MayLock(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool may = syscall(SYS_mlock2, memory, bytes, MLOCK_ONFAULT) == 0;
  munmap(memory, bytes);
  return may;
}

TEST(GuardsTest, LockedMemoryBeforeAndAfterTheStartMeansOtherGuardsAndPagesThatStay) {
  if (tests::kIsSlow) GTEST_SKIP() << "locks the shadow memory, too";
  enum When { kBefore, kAfter, kAfterOnFault };
  for (const When when : {kBefore, kAfter, kAfterOnFault}) {
    std::string said;
    InChild(
        [when] {
          if (!MayLock(64 << 20)) return CannotTest("locking more than ulimit -l");
          const auto lock = [when] {
            const int on_fault = when == kAfterOnFault ? MCL_ONFAULT : 0;
            return mlockall(MCL_CURRENT | MCL_FUTURE | on_fault) == 0;
          };
          // Or all that is reserved would be touched: mlockall() does that to what is there, but for MCL_ONFAULT.
          StackDepot::Get().SetOptions({.max_arena_slots = 1024});
          if (when == kBefore && !lock()) return CannotTest("mlockall");
          AtWork at_work;
          at_work.ExpectCrowd(300);
          if (when != kBefore && !lock()) return CannotTest("mlockall");
          const size_t before = Guarded(GuardMode::kMprotect);
          at_work.ExpectCrowd(900);
          EXPECT_GT(Guarded(GuardMode::kMprotect), before + 300);
          EXPECT_EQ(Guarded(GuardMode::kCanary), 0u);
          EXPECT_EQ(StackDepot::Get().DiscardIdle(SIZE_MAX), 0u);
          at_work.ExpectCrowd(900);
          if (munlockall() != 0) return 2;
          at_work.ExpectCrowd(900);
          EXPECT_GT(StackDepot::Get().DiscardIdle(SIZE_MAX), 500u);
          return kFine;
        },
        &said);
    if (IsSkipped()) return;
    EXPECT_EQ(tests::CountIn(said, "weft:"), 1) << said;
    EXPECT_NE(said.find(kPagesStay), std::string::npos) << said;
  }
}

}  // namespace
}  // namespace limits_test
