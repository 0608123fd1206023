// SPDX-License-Identifier: Apache-2.0
//
// A setting is a wait without anybody who waits: a block without a stack, whose wait is opened by Set(), and claimed, once,
// by whoever ends the setting. So what Stop() and Set() say is exact for the same reason that a wait ends one way, and
// entries of earlier settings do no harm for the same reason that late timers of earlier waits do none (wait_block.h).
//
//   Set(), Stop(), under the alarm's lock            a worker, when an entry falls due (OnTimer)
//   claim the open wait, if there is one             CAS filed_ns: the entry's deadline → Busy
//     it is ours: that setting never goes off        load the word, load the wish
//     it is not: it has gone off                     due: count a fiber to come, or let it be: the runtime ends
//   clear the wish                                        claim with that word
//   Set(): open the next wait, store the wish,       filed_ns: never, or the wish
//     arm a timer                                    claimed: make the fiber and queue it (RingNow)
//
// The owner's side must be one at a time, hence the lock. The worker takes none: it touches nothing of the alarm but the
// block, which is never discarded, until it has claimed, and then the setting keeps the alarm. Its fiber gives it up.
//
// Rejected: a fiber for each timer, parked until its deadline. A stack (4.5 KiB) for each, where this takes some 400 bytes;
// and to stop it would take a switch. Another: one fiber with a heap of alarms. All workers would meet at its lock, where
// the timers of waits are filed by each worker for itself.
#include "fiber/internal/alarm.h"

#include <new>
#include <utility>

#include "fiber/go.h"
#include "fiber/internal/ambient.h"
#include "fiber/internal/join.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/park.h"
#include "fiber/internal/schedule_point.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"

namespace fiber::internal {
namespace {

// What a fiber inherits from the caller; null: nothing, or the caller has never waited.
Ambient* CallersAmbient() {
  const ThreadState& thread = ThisThread();
  const WaitBlock* const mine = thread.current == nullptr
                                    ? thread.plain_block
                                    : thread.current->block.load(std::memory_order_relaxed);
  return mine == nullptr ? nullptr : Retain(mine->ambient);
}

}  // namespace

Alarm::Alarm(absl::AnyInvocable<void()> fn, std::source_location site)
    : fn_(std::move(fn)),
      site_(site),
      parent_id_(CurrentId()),
      block_(TakePlainBlock()),
      ambient_(CallersAmbient()) {
  if (fn_ == nullptr) {
    Fatal("fiber::Timer (at %s:%u) without a function", site.file_name(), static_cast<unsigned>(site.line()));
  }
  ring = &RingNow;
  block_.object = static_cast<Ringer*>(this);
  block_.is_alarm.store(true, std::memory_order_relaxed);
}

Alarm::~Alarm() {
  ForgetTimer(block_);
  block_.is_alarm.store(false, std::memory_order_relaxed);
  block_.object = nullptr;
  GivePlainBlock(block_);
  Release(ambient_);
}

bool Alarm::DisarmLocked() {
  const bool is_claimed = open_word_ != 0 && block_.word.TryClaim(open_word_);
  open_word_ = 0;
  block_.timer.deadline_ns.store(kNeverNs, std::memory_order_relaxed);
  if (is_claimed) {
    --unfinished_;
    --references_;  // never the last: whoever calls has another
  }
  return is_claimed;
}

bool Alarm::FileLocked(ThreadState& thread) {
  if (filed_with_ != thread.scheduler->serial()) {
    ForgetTimer(block_);
    filed_with_ = thread.scheduler->serial();
  }
  block_.timer.deadline_ns.store(deadline_ns_, std::memory_order_seq_cst);  // order: timer
  return thread.scheduler->ArmTimer(thread, block_, deadline_ns_) || !DisarmLocked();
}

bool Alarm::Set(Deadline deadline) {
  SchedulePoint();
  ThreadState& thread = ThisThread();
  bool was_set;
  bool is_filed = true;
  uint64_t handed_over = 0;
  {
    SpinLockHolder hold(lock_);
    if (is_closed_) return false;
    was_set = DisarmLocked();
    open_word_ = block_.word.Open(/*is_interruptible=*/false);
    deadline_ns_ = deadline.nanos();
    ++unfinished_;
    ++references_;
    if (!deadline.is_never()) {
      if (thread.scheduler != nullptr) {
        is_filed = FileLocked(thread);
      } else {
        handed_over = open_word_;
        ++references_;
      }
    }
  }
  if (!is_filed) throw std::bad_alloc();
  if (handed_over == 0) {
    if (thread.scheduler != nullptr) thread.scheduler->AnnounceTimer(thread);
    return was_set;
  }
  try {
    GoOn(nullptr, [this, handed_over] { FileSet(handed_over); }, site_);
  } catch (...) {
    SpinLockHolder hold(lock_);
    --references_;
    if (open_word_ == handed_over) DisarmLocked();
    throw;
  }
  return was_set;
}

void Alarm::FileSet(uint64_t open_word) {
  bool is_filed = true;
  bool is_last;
  {
    ThreadState& thread = ThisThread();
    SpinLockHolder hold(lock_);
    if (open_word_ == open_word) is_filed = FileLocked(thread);
    is_last = --references_ == 0;
  }
  DeleteIf(is_last, this);
  if (!is_filed) throw std::bad_alloc();  // which nobody is there to catch
}

bool Alarm::Stop() {
  SchedulePoint();
  SpinLockHolder hold(lock_);
  return DisarmLocked();
}

// A mutex that is held until then, and not an event: to wait for it cannot fail, and takes no shield, which takes memory.
void Alarm::Close() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  SchedulePoint();
  Mutex running;
  running.lock();  // at once
  bool is_within = false;
  bool is_waiting;
  {
    SpinLockHolder hold(lock_);
    is_closed_ = true;
    DisarmLocked();
    for (const Call* call = calls_; call != nullptr; call = call->next) {
      if (IsCallers(call->caller)) is_within = true;
    }
    is_abandoned_ = is_within;
    is_waiting = unfinished_ > 0 && !is_within;
    if (is_waiting) running_ = &running;
  }
  if (is_waiting) MutexLock until_unlocked(running);
  if (!is_within) fn_ = nullptr;  // here, and not by the fiber that is last to let go
  bool is_last;
  {
    SpinLockHolder hold(lock_);
    is_last = --references_ == 0;
  }
  DeleteIf(is_last, this);
}

// On a worker's own stack, or at a schedule point of a simulation: it must not park.
void Alarm::RingNow(Ringer& self) {
  auto& alarm = static_cast<Alarm&>(self);
  Scheduler* const scheduler = ThisThread().scheduler;
  auto run = [&alarm] { alarm.Run(); };
  Record& fiber = MakeFiber<DetachedTask<decltype(run)>>(scheduler, nullptr, 0, std::move(run),
                                                         alarm.site_, kJoinDetached);
  // In a simulation it has inherited from whoever happened to switch.
  Release(static_cast<Ambient*>(fiber.context.load(std::memory_order_relaxed)));
  fiber.context.store(Retain(alarm.ambient_), std::memory_order_relaxed);
  fiber.parent_id = alarm.parent_id_;
  scheduler->QueueNew(fiber);
}

void Alarm::Run() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  WaitBlock& mine = CallersBlock();
  Call call{.caller = &mine};
  bool is_abandoned;
  {
    SpinLockHolder hold(lock_);
    call.next = std::exchange(calls_, &call);
    is_abandoned = is_abandoned_;
  }
  if (!is_abandoned) fn_();
  DropValues(mine);  // before Close() goes on
  Mutex* finished;
  bool is_last;
  {
    SpinLockHolder hold(lock_);
    Call** link = &calls_;
    while (*link != &call) link = &(*link)->next;
    *link = call.next;
    finished = --unfinished_ == 0 ? running_ : nullptr;
    is_last = --references_ == 0;
  }
  if (finished != nullptr) finished->unlock();
  DeleteIf(is_last, this);
}

}  // namespace fiber::internal
