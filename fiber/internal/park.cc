// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/park.h"

#include "fiber/internal/futex.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/scheduler.h"

namespace fiber::internal {

bool TakeForUnpark(Record& fiber) {
  State state = fiber.state.load(std::memory_order_acquire);  // order: park
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

void Unpark(WaitBlock& block) {
  if (Record* fiber = block.fiber.load(std::memory_order_acquire); fiber != nullptr) {  // order: owner
    if (TakeForUnpark(*fiber)) fiber->scheduler->QueueReady(*fiber);
    return;
  }
  // The thread may go on, and wait anew, as soon as the store is seen: the wake-up may then be a spurious one, which
  // its loop tolerates. The block itself is never discarded.
  block.signal.store(1, std::memory_order_release);  // order: thread-signal
  FutexWake(block.signal, 1);
}

bool TryFile(WaitBlock& block, int64_t deadline_ns, int64_t lateness_ns,
             bool is_lateness_tolerable) {
  Atomic<int64_t>& filed_ns = block.timer.filed_ns;
  int64_t filed = filed_ns.load(std::memory_order_seq_cst);  // order: timer
  do {
    const int64_t early_enough = is_lateness_tolerable ? deadline_ns : deadline_ns - lateness_ns;
    if (filed <= early_enough) return false;
  } while (!filed_ns.compare_exchange_weak(filed, deadline_ns,
                                           std::memory_order_seq_cst,  // order: timer
                                           std::memory_order_seq_cst));
  return true;
}

int64_t OnTimer(WaitBlock& block, int64_t entry_ns, int64_t now_ns) {
  Atomic<int64_t>& filed_ns = block.timer.filed_ns;
  if (!filed_ns.compare_exchange_strong(entry_ns, kNeverNs,
                                        std::memory_order_seq_cst,  // order: timer
                                        std::memory_order_relaxed)) {
    return kNeverNs;
  }
  // The word first: the claim can only succeed if this very wait was open when its deadline was read.
  const uint64_t word = block.word.Load();
  const int64_t deadline = block.timer.deadline_ns.load(std::memory_order_seq_cst);  // order: timer
  if (deadline > now_ns) {
    int64_t nothing = kNeverNs;
    const bool is_ours = deadline != kNeverNs &&
                         filed_ns.compare_exchange_strong(nothing, deadline,
                                                          std::memory_order_seq_cst,  // order: timer
                                                          std::memory_order_relaxed);
    return is_ours ? deadline : kNeverNs;
  }
  // A wait that opened after the word was read arms after filed_ns was cleared, and is filed by its owner.
  if (WaitWord::IsOpen(word) && block.word.TryClaim(word)) {
    block.outcome = kOutcomeDeadline;
    Unpark(block);
  }
  return kNeverNs;
}

}  // namespace fiber::internal
