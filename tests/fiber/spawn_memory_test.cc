// SPDX-License-Identifier: Apache-2.0
// What a spawned fiber costs that has not run yet: its record and its closure, no stack.
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <new>
#include <source_location>

#include "fiber/go.h"
#include "fiber/internal/record.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/thread_state.h"
#include "fiber/scheduler.h"
#include "fiber/sim/sim.h"
#include "gtest/gtest.h"

namespace {
std::atomic<size_t> allocations{0};
std::atomic<size_t> allocated_bytes{0};
}  // namespace

// Not inlined, or g++ sees malloc and free where it expects new and delete.
__attribute__((noinline)) void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated_bytes.fetch_add(size, std::memory_order_relaxed);
  void* memory = malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { free(memory); }

namespace fiber {
namespace {

using internal::Record;
using internal::ThreadState;
using internal::WaitBlock;

#if defined(WEFT_ASAN) || defined(WEFT_TSAN)
constexpr bool kIsMemoryPlain = false;  // shadow memory comes on top
constexpr size_t kFibers = 100'000;     // and everything takes its time
#else
constexpr bool kIsMemoryPlain = true;
constexpr size_t kFibers = 1'000'000;
#endif

// Keeps what is spawned in a list, and costs no memory of its own.
class ListScheduler final : public Scheduler {
 public:
  ListScheduler() : Scheduler(/*is_simulation=*/false) {}
  void QueueNew(Record& fiber) override {
    fiber.next = first_;
    first_ = &fiber;
  }
  void RequeueNew(Record&) override { ADD_FAILURE(); }
  void QueueReady(Record&) override { ADD_FAILURE(); }
  void QueueYielded(Record&) override { ADD_FAILURE(); }
  Record* TakeNext(ThreadState&, WaitBlock*) override { return nullptr; }
  bool TakeNextForYield(ThreadState&, Record**) override { return false; }
  bool ArmTimer(ThreadState&, WaitBlock&, int64_t) override {
    ADD_FAILURE();
    return false;
  }
  int64_t NowNs() override { return 0; }
  void OnFiberEnded(ThreadState&) override { ADD_FAILURE(); }
  internal::StackClass default_stack_class() const override { return internal::StackClass::k64KiB; }

  // Runs the closures on the caller's stack: all that is needed to be rid of them.
  void Drain() {
    ThreadState& thread = internal::ThisThread();
    while (Record* fiber = first_) {
      first_ = fiber->next;
      fiber->run(*fiber);
      internal::FreeRecord(thread, *fiber);
    }
  }

 private:
  Record* first_ = nullptr;
};

size_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

size_t CarvedStacks() {
  const internal::StackPoolStats stats = internal::StackDepot::Get().Stats();
  size_t carved = 0;
  for (const size_t of_class : stats.carved) carved += of_class;
  return carved;
}

TEST(SpawnMemoryTest, AMillionUnstartedFibersCostTheirRecordsOnly) {
  ListScheduler scheduler;
  size_t sum = 0;
  const size_t stacks_before = CarvedStacks();
  const size_t records_before = internal::CountRecordsInUse();
  const size_t resident_before = ResidentBytes();
  allocations = 0;
  allocated_bytes = 0;
  for (size_t i = 0; i < kFibers; ++i) {
    internal::GoOn(
        &scheduler, [&sum, i] { sum += i; }, std::source_location::current());
  }
  // The list of the records' chunks grows, which is nothing.
  EXPECT_LT(allocations.load(), 100u);
  EXPECT_LT(allocated_bytes.load(), kFibers / 8);
  EXPECT_EQ(internal::CountRecordsInUse() - records_before, kFibers);
  EXPECT_EQ(CarvedStacks(), stacks_before);
  if (kIsMemoryPlain) {
    const size_t per_fiber = (ResidentBytes() - resident_before) / kFibers;
    EXPECT_LE(per_fiber, sizeof(Record) + 8);
    RecordProperty("resident_bytes_per_fiber", static_cast<int>(per_fiber));
  }
  scheduler.Drain();
  EXPECT_EQ(sum, kFibers * (kFibers - 1) / 2);
  EXPECT_EQ(internal::CountRecordsInUse(), records_before);
}

TEST(SpawnMemoryTest, AClosureThatDoesNotFitCostsOneAllocationOfItsSize) {
  constexpr size_t kLarge = 1000;
  struct Large {
    char bytes[200];
  };
  ListScheduler scheduler;
  allocations = 0;
  allocated_bytes = 0;
  for (size_t i = 0; i < kLarge; ++i) {
    internal::GoOn(
        &scheduler, [large = Large()] { (void)large; }, std::source_location::current());
  }
  EXPECT_LE(allocations.load(), kLarge + 10);
  EXPECT_LE(allocated_bytes.load(), kLarge * (sizeof(Large) + 16));
  scheduler.Drain();
}

TEST(SpawnMemoryTest, AMillionFibersSpawnedBeforeAnyRunsAllRunOnAFewStacks) {
  const size_t stacks_before = CarvedStacks();
  size_t ended = 0;
  const sim::Result result = sim::Simulate(
      {.schedules = 1, .preempt_probability = 0, .max_steps = int64_t{10} * kFibers}, [&ended] {
        for (size_t i = 0; i < kFibers; ++i) Go([&ended] { ++ended; });
        EXPECT_EQ(ended, 0u);
      });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_EQ(ended, kFibers);
  EXPECT_LT(CarvedStacks() - stacks_before, 1000u);  // of these one or two are used
}

}  // namespace
}  // namespace fiber
