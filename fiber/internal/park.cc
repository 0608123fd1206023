// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/park.h"

#include "fiber/internal/futex.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"

namespace fiber::internal {

bool TakeForUnparkFrom(State state, Record& fiber) {
  for (;;) {
    State next;
    switch (state) {
      case State::kParking: next = State::kWoken; break;
      case State::kParked: next = State::kReady; break;
      case State::kHeld: next = State::kHeldWoken; break;
      default:
        Fatal("%s was unparked without waiting (state %d)", Describe(fiber).c_str(),
              static_cast<int>(state));
    }
    if (fiber.state.compare_exchange_weak(state, next, std::memory_order_acq_rel,  // order: park
                                          std::memory_order_acquire)) {
      return next == State::kReady;
    }
  }
}

void Release(Record& held) {
  State expected = State::kHeld;
  if (held.state.compare_exchange_strong(expected, State::kParked,
                                         std::memory_order_acq_rel,  // order: park
                                         std::memory_order_acquire)) {
    return;
  }
  held.state.store(State::kReady, std::memory_order_relaxed);
  held.scheduler->QueueReady(held);
}

void UnparkThread(WaitBlock& block) {
  // The thread may go on, and wait anew, as soon as the store is seen: the wake-up may then be a spurious one, which
  // its loop tolerates. The block itself is never discarded.
  block.signal.store(1, std::memory_order_release);  // order: thread-signal
  FutexWake(block.signal, 1);
}

namespace {

// What is filed, once no scheduler is looking at it.
int64_t FiledNs(const WaitBlock& block) {
  Backoff backoff;
  for (;;) {
    const int64_t filed = block.timer.filed_ns.load(std::memory_order_seq_cst);  // order: timer
    if (filed != DeadlineTimer::kBusyNs) return filed;
    backoff.Pause();
  }
}

}  // namespace

bool TryFile(WaitBlock& block, int64_t deadline_ns, int64_t lateness_ns,
             bool is_lateness_tolerable, const void* by) {
  const int64_t early_enough = is_lateness_tolerable ? deadline_ns : deadline_ns - lateness_ns;
  int64_t filed;
  do {
    filed = FiledNs(block);
    if (filed <= early_enough) return false;
    if (filed == kNeverNs) block.timer.filed_by.store(by, std::memory_order_seq_cst);  // order: timer
  } while (!block.timer.filed_ns.compare_exchange_weak(filed, deadline_ns,
                                                       std::memory_order_seq_cst,  // order: timer
                                                       std::memory_order_relaxed));
  return true;
}

void ForgetTimer(WaitBlock& block) {
  int64_t filed;
  do {
    filed = FiledNs(block);
    if (filed == kNeverNs) return;
  } while (!block.timer.filed_ns.compare_exchange_weak(filed, kNeverNs,
                                                       std::memory_order_seq_cst,  // order: timer
                                                       std::memory_order_relaxed));
}

int64_t OnTimer(WaitBlock& block, int64_t entry_ns, int64_t now_ns, const void* by) {
  Atomic<int64_t>& filed_ns = block.timer.filed_ns;
  int64_t filed;
  do {
    // Busy: by an entry of the same instant, which may be another runtime's and not count.
    filed = FiledNs(block);
    if (filed != entry_ns) return kNeverNs;
  } while (!filed_ns.compare_exchange_weak(filed, DeadlineTimer::kBusyNs,
                                           std::memory_order_seq_cst,  // order: timer
                                           std::memory_order_relaxed));
  if (block.timer.filed_by.load(std::memory_order_seq_cst) != by) {  // order: timer
    filed_ns.store(entry_ns, std::memory_order_seq_cst);             // order: timer
    return kNeverNs;
  }
  // The word first: the claim can only succeed if this very wait was open when its deadline was read.
  const uint64_t word = block.word.Load();
  const int64_t deadline = block.timer.deadline_ns.load(std::memory_order_seq_cst);  // order: timer
  const bool is_due = deadline <= now_ns;
  // An alarm starts a fiber: from before its claim on, a runtime that ends waits for that, or nothing is claimed any more.
  const bool is_alarm = is_due && block.is_alarm.load(std::memory_order_relaxed);
  const bool may_claim = is_due && WaitWord::IsOpen(word) &&
                         (!is_alarm || ThisThread().scheduler->EnterFromTimer());
  // A wait that opened after the word was read arms later still, finds nothing filed, and is filed by its owner.
  const bool is_claimed = may_claim && block.word.TryClaim(word);
  const int64_t later = is_due ? kNeverNs : deadline;
  filed_ns.store(later, std::memory_order_seq_cst);  // order: timer
  if (is_alarm && may_claim) [[unlikely]] {
    if (is_claimed) {
      auto& ringer = *static_cast<Ringer*>(const_cast<void*>(block.object));
      ringer.ring(ringer);
    }
    ThisThread().scheduler->LeaveFromTimer();
  } else if (is_claimed) {
    block.outcome = kOutcomeDeadline;
    Unpark(block);
  }
  return later;
}

}  // namespace fiber::internal
