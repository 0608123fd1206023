// SPDX-License-Identifier: Apache-2.0
//
// Fibers for cases: each is a thread of the explorer that parks as a fiber does, with the states,
// claims and timers that ship. It stands for the fiber and for its worker: where a real one
// switches, it does what the next context would do for it, and goes on when it has been queued and
// taken.
#ifndef WEFT_TESTS_MODEL_FIBERS_H_
#define WEFT_TESTS_MODEL_FIBERS_H_

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber/internal/context.h"
#include "fiber/internal/park.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"
#include "tests/model/explorer.h"

namespace model {

using fiber::internal::Record;
using fiber::internal::State;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

class World final : public fiber::Scheduler, public std::enable_shared_from_this<World> {
 public:
  explicit World(int fibers) : Scheduler(/*is_simulation=*/false), fibers_(fibers) {
    for (int i = 0; i < fibers; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.record.scheduler = this;
      fiber.record.id.store(i + 1, std::memory_order_relaxed);
      fiber.record.state.store(State::kRunning, std::memory_order_relaxed);
      fiber.record.block.store(&fiber.block, std::memory_order_relaxed);
      fiber.block.fiber.store(&fiber.record, std::memory_order_relaxed);
    }
  }

  Record& record(int fiber) { return fibers_[fiber].record; }
  WaitBlock& block(int fiber) { return fibers_[fiber].block; }

  // A thread of the case that is fiber `index` and runs `body`.
  std::function<void()> Run(int index, std::function<void()> body) {
    return [this, self = shared_from_this(), index, body = std::move(body)] {
      ThreadState& thread = fiber::internal::ThisThread();
      thread.scheduler = this;
      thread.current = &fibers_[index].record;
      body();
      Check(thread.current->state.load(std::memory_order_relaxed) == State::kRunning,
            "a fiber that ends in another state than Running");
      Touch(&filed_);
      ++ended_;
    };
  }

  // A thread of the case that expires what is filed, `most` entries in all, each at any time after
  // its filing.
  std::function<void()> ExpireTimers(int most) {
    return [this, self = shared_from_this(), most] {
      for (int i = 0; i < most; ++i) {
        Await(&filed_,
              [this] { return !filed_.empty() || ended_ == static_cast<int>(fibers_.size()); });
        if (filed_.empty()) return;
        const Entry entry = filed_.front();
        filed_.pop_front();
        const int64_t later = OnTimer(*entry.block, entry.ns, entry.ns, this);
        Check(later == fiber::internal::kNeverNs || later > entry.ns,
              "an entry is filed anew for the past");
        if (later != fiber::internal::kNeverNs) File({entry.block, later});
      }
    };
  }

  // A thread of the case that cancels fiber `index`, as JoinHandle::Cancel does.
  std::function<void()> Cancel(int index) {
    return [this, self = shared_from_this(), index] {
      fiber::internal::Cancel(fibers_[index].record, absl::CancelledError("cancelled by the case"));
    };
  }

  // A thread of the case that holds fiber `index` if it is parked, as the trimmer does.
  std::function<void()> Hold(int index) {
    return [this, self = shared_from_this(), index] {
      Record& fiber = fibers_[index].record;
      if (!TryHold(fiber)) return;
      TouchStack(fiber);
      Release(fiber);
    };
  }

  // The end of a turn on a worker. By the stand-in for Switch().
  void Leave(Record& self, fiber::internal::After after) {
    if (after == fiber::internal::After::kPark) {
      if (!FinishPark(self)) QueueReady(self);
    } else {
      self.state.store(State::kReady, std::memory_order_relaxed);
      QueueReady(self);
    }
    Fiber& fiber = FiberOf(self);
    Await(&fiber, [&fiber] { return fiber.is_queued; });
    fiber.is_queued = false;
    TouchStack(self);
    self.state.store(State::kRunning, std::memory_order_relaxed);
  }

  // fiber::Scheduler.
  void QueueReady(Record& record) override {
    Fiber& fiber = FiberOf(record);
    Touch(&fiber);
    Check(!fiber.is_queued, "a fiber is queued twice");
    Check(record.state.load(std::memory_order_relaxed) == State::kReady,
          "a fiber is queued that is not Ready");
    fiber.is_queued = true;
  }
  bool ArmTimer(ThreadState&, WaitBlock& block, int64_t deadline_ns) override {
    if (TryFile(block, deadline_ns, /*lateness_ns=*/0, /*is_lateness_tolerable=*/true, this)) {
      File({&block, deadline_ns});
    }
    return true;
  }
  Record* TakeNext(ThreadState&, WaitBlock*) override { return nullptr; }
  bool TakeNextForYield(ThreadState&, Record** next) override {
    *next = nullptr;
    return true;
  }
  int64_t NowNs() override { return clock_ns(); }
  void QueueNew(Record&) override { Check(false, "spawned"); }
  void RequeueNew(Record&) override { Check(false, "requeued"); }
  void QueueYielded(Record&) override { Check(false, "yielded"); }
  void OnFiberEnded(ThreadState&) override { Check(false, "ended"); }
  fiber::internal::StackClass default_stack_class() const override { return {}; }

 private:
  struct Fiber {
    Record record;
    WaitBlock block;
    bool is_queued = false;
    bool is_stack_used = false;
  };
  struct Entry {
    WaitBlock* block;
    int64_t ns;
  };

  Fiber& FiberOf(Record& record) { return fibers_[record.id.load(std::memory_order_relaxed) - 1]; }

  void File(Entry entry) {
    Touch(&filed_);
    filed_.push_back(entry);
  }

  // Whoever runs or holds a fiber has its stack for himself.
  void TouchStack(Record& record) {
    Fiber& fiber = FiberOf(record);
    Touch(&fiber.is_stack_used);
    Check(!std::exchange(fiber.is_stack_used, true), "two have the stack");
    Touch(&fiber.is_stack_used);
    fiber.is_stack_used = false;
  }

  std::deque<Fiber> fibers_;  // which do not move
  std::deque<Entry> filed_;
  int ended_ = 0;
};

}  // namespace model

#endif  // WEFT_TESTS_MODEL_FIBERS_H_
