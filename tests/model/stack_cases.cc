// SPDX-License-Identifier: Apache-2.0
//
// New fibers and stacks: the depot, its line, a fiber's binding and the return of its stack, as
// stack_pool.cc, stack_line.cc and context.cc ship. What carves stacks is a stand-in: it makes as
// many as a case lets it.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "tests/model/case_list.h"
#include "tests/model/explorer.h"

#define private public  // the depot is made anew for each order
#include "fiber/internal/stack_pool.h"
//
#include "fiber/internal/context.cc"
#include "fiber/internal/stack_line.cc"
#include "fiber/internal/stack_list.cc"
#include "fiber/internal/stack_pool.cc"
#undef private

namespace model {
namespace {

using fiber::internal::BindStack;
using fiber::internal::kPageBytes;
using fiber::internal::Record;
using fiber::internal::ReturnStack;
using fiber::internal::StackArena;
using fiber::internal::StackClass;
using fiber::internal::StackDepot;
using fiber::internal::StackPoolOptions;
using fiber::internal::State;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;
using std::make_shared;

constexpr int kMostStacks = 64;

// What the stand-ins make stacks from.
struct Memory {
  StackArena arena;
  alignas(64) char blocks[kMostStacks * StackArena::kBlockStride];
  bool can_reserve = true;
};
Memory* memory_of_the_schedule = nullptr;

// A depot, with workers and fibers that have yet to start.
class World final : public fiber::Scheduler, public std::enable_shared_from_this<World> {
 public:
  // `most_stacks`: in use at once.
  World(int fibers, size_t most_stacks) : Scheduler(/*is_simulation=*/false), fibers_(fibers) {
    memory_of_the_schedule = &memory_;
    StackPoolOptions options;
    options.max_stack_memory = most_stacks * kPageBytes;
    new (&StackDepot::Get()) StackDepot(options);  // never destroyed
    for (size_t i = 0; i < fibers_.size(); ++i) {
      fibers_[i].record.scheduler = this;
      fibers_[i].record.id.store(i + 1, std::memory_order_relaxed);
    }
  }

  Memory& memory() { return memory_; }

  // A thread of the case: a worker that starts these fibers, one after the other, as soon as they
  // get a stack, and is done with each at once. It leaves what it has in its cache there.
  std::function<void()> Start(std::vector<int> fibers) {
    return [this, self = shared_from_this(), fibers] {
      ThreadState& thread = fiber::internal::ThisThread();
      StackDepot::Get().RegisterCaches(thread.stacks);
      for (int i : fibers) {
        Fiber& fiber = fibers_[i];
        while (!BindStack(thread, fiber.record, nullptr)) {
          Await(&fiber, [&fiber] { return fiber.is_queued; });
          fiber.is_queued = false;
        }
        WaitBlock& block = *fiber.record.block.load(std::memory_order_relaxed);
        Own(block, 1);
        Own(block, -1);
        fiber::internal::Unbind(fiber.record, block);
        ReturnStack(thread, block);
      }
      Touch(&done_);
      ++done_;
    };
  }
  // A thread of the case: what a worker does now and then while somebody waits.
  std::function<void()> Retry() {
    return [self = shared_from_this()] { StackDepot::Get().RetryWaiters(); };
  }

  // fiber::Scheduler.
  void RequeueNew(Record& record) override {
    Fiber& fiber = fibers_[record.id.load(std::memory_order_relaxed) - 1];
    Touch(&fiber);
    Check(!fiber.is_queued, "a fiber is queued twice");
    fiber.is_queued = true;
  }
  void QueueReady(Record&) override { Check(false, "unparked"); }
  bool ArmTimer(ThreadState&, WaitBlock&, int64_t) override { return true; }
  Record* TakeNext(ThreadState&, WaitBlock*) override { return nullptr; }
  bool TakeNextForYield(ThreadState&, Record**) override { return false; }
  int64_t NowNs() override { return clock_ns(); }
  void QueueNew(Record&) override { Check(false, "spawned"); }
  void QueueYielded(Record&) override { Check(false, "yielded"); }
  void OnFiberEnded(ThreadState&) override { Check(false, "ended"); }
  StackClass default_stack_class() const override { return {}; }

 private:
  struct Fiber {
    Record record;
    bool is_queued = false;
  };

  void Own(WaitBlock& block, int by) {
    Touch(&block.stack_low);
    int& owners = owners_[(reinterpret_cast<char*>(&block) - memory_.blocks) / StackArena::kBlockStride];
    owners += by;
    Check(owners <= 1, "a stack has two owners");
  }

  Memory memory_;
  std::vector<Fiber> fibers_;
  int owners_[kMostStacks] = {};
  int done_ = 0;
};

// One stack for three fibers of two workers: it comes free in the cache of either.
Case StackComesFree() {
  auto world = make_shared<World>(3, 1);
  return {.threads = {world->Start({0, 1}), world->Start({2})}};
}

// Two for three, all at once.
Case StacksForThree() {
  auto world = make_shared<World>(3, 2);
  return {.threads = {world->Start({0}), world->Start({1}), world->Start({2})}};
}

// One in line is let try again while the stack comes free.
Case WaiterIsRetried() {
  auto world = make_shared<World>(2, 1);
  return {.threads = {world->Start({0}), world->Start({1}), world->Retry()}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"StackComesFree", StackComesFree, 3},
      {"StacksForThree", StacksForThree, 2},
      {"WaiterIsRetried", WaiterIsRetried, 2},
  };
  return kCases;
}

}  // namespace model

// What stacks need besides the files that ship.
namespace fiber::internal {

StackArena* ReserveArena(StackClass cls, uint32_t, bool, absl::Status*) {
  StackArena& arena = model::memory_of_the_schedule->arena;
  arena.cls = cls;
  arena.blocks = model::memory_of_the_schedule->blocks;
  arena.slot_count = model::kMostStacks;
  return &arena;
}
absl::Status CommitSlots(StackArena&, uint32_t, uint32_t) { return absl::OkStatus(); }
void CheckCanarySlow(const WaitBlock&) {}
void PublishArena(StackArena&) {}
StackGuards::StackGuards(GuardMode mode, size_t budget) : mode_(mode), mprotect_budget_(budget) {}
void StackGuards::Install(const iovec*, size_t count, bool* is_guarded) {
  std::fill(is_guarded, is_guarded + count, true);
}
void PopulateTops(WaitBlock*) {}
void DiscardPages(const iovec*, size_t count, bool* is_discarded) {
  std::fill(is_discarded, is_discarded + count, true);
}

bool FinishJoin(ThreadState&, Record&) { return true; }
void DiscardIfDetached(Record&) {}
void ForgetTimer(WaitBlock&) {}
void DropValues(WaitBlock&) {}
void SetName(WaitBlock&, std::string*) {}

}  // namespace fiber::internal
