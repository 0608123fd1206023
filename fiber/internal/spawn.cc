// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/spawn.h"

#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "fiber/internal/ambient.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/join.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"

namespace fiber::internal {
namespace {

void ForgetSchedulers();

// The schedulers that spawns from plain threads could mean.
struct Schedulers {
  Schedulers() {
    HoldAcrossForks(lock);
    CallInForkedChildren(&ForgetSchedulers);
  }
  SpinLock lock;
  std::vector<Scheduler*> all ABSL_GUARDED_BY(lock);
};

Schedulers& AllSchedulers() {
  static Schedulers* const schedulers = new Schedulers;
  return *schedulers;
}

[[maybe_unused]] const Schedulers& schedulers_made_before_main = AllSchedulers();

// Their workers stayed in the parent.
void ForgetSchedulers() {
  Schedulers& schedulers = AllSchedulers();
  SpinLockHolder hold(schedulers.lock);
  schedulers.all.clear();
}

// Entered: its owner knows nothing of the caller, and may be about to end it.
Scheduler& EnterOnlyScheduler(std::source_location site) {
  Schedulers& schedulers = AllSchedulers();
  SpinLockHolder hold(schedulers.lock);
  if (schedulers.all.size() == 1) {
    schedulers.all[0]->EnterFromOutside();
    return *schedulers.all[0];
  }
  Fatal("spawn at %s:%u from a plain thread, but %s", site.file_name(), static_cast<unsigned>(site.line()),
        schedulers.all.empty()
            ? "no runtime is running; run it in a sched::Run(), or make a sched::Runtime first"
            : "more than one runtime is running; use sched::Runtime::Go to say which");
}

Record& AllocateRecordOrDelete(ThreadState& thread, SpawnExtras* extras) {
  try {
    if (thread.current == nullptr) (void)PlainBlock(thread);  // to join it without fail, as destructors do
    return AllocateRecord(thread);
  } catch (...) {
    delete extras;
    throw;
  }
}

}  // namespace

StackClass StackClassFor(size_t bytes) {
  for (int i = 0; i < kStackClasses; ++i) {
    if (bytes <= kStackClassBytes[i]) return static_cast<StackClass>(i);
  }
  Fatal("a stack of %zu bytes is asked for, but the largest has %zu", bytes,
        kStackClassBytes[kStackClasses - 1]);
}

void RegisterScheduler(Scheduler& scheduler) {
  Schedulers& schedulers = AllSchedulers();
  SpinLockHolder hold(schedulers.lock);
  schedulers.all.push_back(&scheduler);
}

void UnregisterScheduler(Scheduler& scheduler) {
  Schedulers& schedulers = AllSchedulers();
  SpinLockHolder hold(schedulers.lock);
  std::erase(schedulers.all, &scheduler);
}

std::unique_ptr<SpawnExtras> MakeExtras(std::string name) {
  auto extras = std::make_unique<SpawnExtras>();
  extras->name = std::make_unique<std::string>(std::move(name));
  return extras;
}

Record& NewFiber(Scheduler* scheduler, SpawnExtras* extras, size_t stack_bytes,
                 std::source_location site) {
  ThreadState& thread = ThisThread();
  Record& fiber = AllocateRecordOrDelete(thread, extras);
  uint32_t entered = 0;
  if (scheduler == nullptr) {
    // One whose fiber holds up this thread cannot end meanwhile.
    scheduler = thread.scheduler != nullptr ? thread.scheduler : thread.blocks_for;
    if (scheduler == nullptr) {
      scheduler = &EnterOnlyScheduler(site);
      entered = Record::kFlagEntered;
    }
  }
  std::atomic_ref<Scheduler*>(fiber.scheduler).store(scheduler, std::memory_order_relaxed);
  std::atomic_ref<std::source_location>(fiber.site).store(site, std::memory_order_relaxed);
  const WaitBlock* parent = thread.plain_block;
  fiber.parent_id = 0;
  if (thread.current != nullptr) {
    fiber.parent_id = thread.current->id.load(std::memory_order_relaxed);
    parent = thread.current->block.load(std::memory_order_relaxed);
  }
  // What it inherits waits where its stack pointer comes once it has one.
  fiber.context.store(parent == nullptr ? nullptr : Retain(parent->ambient), std::memory_order_relaxed);
  const StackClass cls =
      stack_bytes == 0 ? scheduler->default_stack_class() : StackClassFor(stack_bytes);
  fiber.flags = static_cast<uint16_t>(static_cast<uint32_t>(cls) << Record::kStackClassShift | entered);
  fiber.set_blocker(false);
  if (extras != nullptr) {
    fiber.flags |= Record::kFlagHeapTask;
    fiber.heap_task() = nullptr;
    fiber.extras() = extras;
  }
  return fiber;
}

void StartFiber(Record& fiber) {
  Scheduler* scheduler = fiber.scheduler;
  const bool is_entered = (fiber.flags & Record::kFlagEntered) != 0;
  scheduler->QueueNew(fiber);
  if (is_entered) [[unlikely]] scheduler->LeaveFromOutside();
  SchedulePoint();
}

void DropFiber(Record& fiber) {
  Release(static_cast<Ambient*>(fiber.context.load(std::memory_order_relaxed)));
  if ((fiber.flags & Record::kFlagHeapTask) != 0) delete fiber.extras();
  if ((fiber.flags & Record::kFlagEntered) != 0) fiber.scheduler->LeaveFromOutside();
  FreeRecord(ThisThread(), fiber);
}

void TerminateForEscaped(Record& fiber, std::exception_ptr error) {
  std::string who = "a fiber";
  try {
    who = Describe(fiber);
  } catch (const std::bad_alloc&) {  // which may be what escaped it
  }
  try {
    std::rethrow_exception(std::move(error));
  } catch (const std::exception& e) {
    LogLine("fatal: %s ended with an exception nobody joins: %s", who.c_str(), e.what());
  } catch (...) {
    LogLine("fatal: %s ended with an exception nobody joins, of unknown type", who.c_str());
  }
  std::terminate();
}

void CheckJoinable(Record& fiber, const char* operation) {
  if (ThisThread().current == &fiber) Fatal("%s joins itself (%s)", Describe(fiber).c_str(), operation);
}

void JoinOrCancel(Record& fiber) {
  CheckJoinable(fiber, "Join");
  if (IsDone(fiber)) return;
  const absl::Status status = WaitDone(fiber, Deadline::Never());
  if (status.ok()) return;
  Cancel(fiber, status);
  (void)WaitDone(fiber, Deadline::Never(), Interruptible::kNo);  // cannot fail
}

void CancelAndJoin(Record& fiber) {
  CheckJoinable(fiber, "dropped handle");
  if (IsDone(fiber)) return;
  Cancel(fiber, CancelledFor("its JoinHandle was dropped"));
  (void)WaitDone(fiber, Deadline::Never(), Interruptible::kNo);  // cannot fail
}

void DetachFiber(Record& fiber) {
  if (Detach(fiber)) ReleaseFiber(fiber);
}

void ReleaseFiber(Record& fiber) {
  if (fiber.run != nullptr) fiber.run(fiber);
  FreeRecord(ThisThread(), fiber);
}

}  // namespace fiber::internal
