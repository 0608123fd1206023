// SPDX-License-Identifier: Apache-2.0
//
// Parking: the transitions of a fiber's state, the one protocol everything waits with.
//
// | from    | to        | by                       | when                                        | the stack is then |
// |---------|-----------|--------------------------|---------------------------------------------|-------------------|
// | New     | Running   | worker                   | taken from a queue, a stack was bound       | the worker's      |
// | Ready   | Running   | worker                   | taken from a run queue                      | the worker's      |
// | Running | Ready     | worker, after the switch | it yielded                                  | the run queue's   |
// | Running | Parking   | itself                   | before its first waiter becomes visible     | the worker's      |
// | Parking | Running   | itself                   | it claimed its own wait: no unpark comes    | the worker's      |
// | Parking | Parked    | worker, after the switch | nobody unparked it meanwhile                | nobody's          |
// | Parking | Woken     | anyone                   | unparked before the switch                  | the worker's      |
// | Woken   | Running   | itself                   | seen before the switch                      | the worker's      |
// | Woken   | Ready     | worker, after the switch |                                             | the run queue's   |
// | Parked  | Ready     | anyone                   | unparked                                    | the run queue's   |
// | Parked  | Held      | dumper, trimmer          | wants to read or change a parked stack      | the holder's      |
// | Held    | Parked    | the holder               | done                                        | nobody's          |
// | Held    | HeldWoken | anyone                   | unparked while held                         | the holder's      |
// | HeldWoken | Ready   | the holder               | done                                        | the run queue's   |
// | Running | Done      | itself                   | its closure is destroyed; the stack goes to | the worker's      |
// |         |           |                          | the next fiber, or to the cache after the switch |              |
//
// "After the switch" is first thing on the next context, whichever that is: only then is the stack left.
//
// Why no wake-up is lost. To park: open the wait, become Parking, link waiters, switch, then CAS Parking → Parked. To
// unpark (after winning the claim, so exactly one comes per wait): CAS the state. Both CASes are on one word:
//
//   worker, after the switch                        unparker
//   CAS Parking → Parked succeeds first             sees Parked: → Ready, queues it
//   fails, it is Woken: → Ready, queues it          CAS Parking → Woken came first: leaves it to the worker
//
// Why no stack is run twice: a fiber enters a run queue only by the two lines above or after a yield, each after the
// switch away from it, each by whoever's CAS took the state there.
//
// order: park — acq_rel on every CAS: what the fiber did before it left its stack happens before whoever runs it next;
// what the unparker did happens before the fiber goes on.
#ifndef WEFT_FIBER_INTERNAL_PARK_H_
#define WEFT_FIBER_INTERNAL_PARK_H_

#include "fiber/internal/record.h"
#include "fiber/scheduler.h"

namespace fiber::internal {

// Running → Parking. By the fiber itself.
inline void BeginPark(Record& self) {
  self.state.store(State::kParking, std::memory_order_relaxed);
}

// Parking → Running. By the fiber itself, which won its own claim.
inline void AbandonPark(Record& self) {
  self.state.store(State::kRunning, std::memory_order_relaxed);
}

// Woken → Running: true if the unpark came already and no switch is needed. By the fiber itself.
[[nodiscard]] inline bool TryFinishParkEarly(Record& self) {
  if (self.state.load(std::memory_order_acquire) != State::kWoken) return false;  // order: park
  self.state.store(State::kRunning, std::memory_order_relaxed);
  return true;
}

// Parking → Parked, or Woken → Ready. False: the caller queues the fiber. By the worker, after the switch.
[[nodiscard]] inline bool FinishPark(Record& fiber) {
  State expected = State::kParking;
  if (fiber.state.compare_exchange_strong(expected, State::kParked,
                                          std::memory_order_acq_rel,  // order: park
                                          std::memory_order_acquire)) {
    return true;
  }
  fiber.state.store(State::kReady, std::memory_order_relaxed);
  return false;
}

// The rest of what follows, for a fiber that was seen in `state`.
[[nodiscard]] bool TakeForUnparkFrom(State state, Record& fiber);
// The state side of an unpark. True: the fiber is now Ready and the caller queues it; false: whoever has its stack
// will. By whoever claimed its wait.
[[nodiscard]] inline bool TakeForUnpark(Record& fiber) {
  State state = fiber.state.load(std::memory_order_acquire);  // order: park
  if (state == State::kParked &&
      fiber.state.compare_exchange_weak(state, State::kReady, std::memory_order_acq_rel,  // order: park
                                        std::memory_order_acquire)) [[likely]] {
    return true;
  }
  return TakeForUnparkFrom(state, fiber);
}

// Parked → Held: the right to touch the stack of a parked fiber. False: it is not parked. Anyone.
[[nodiscard]] inline bool TryHold(Record& fiber) {
  State expected = State::kParked;
  return fiber.state.compare_exchange_strong(expected, State::kHeld,
                                             std::memory_order_acq_rel,  // order: park
                                             std::memory_order_relaxed);
}

// Held → Parked, or HeldWoken → Ready and queued. By the holder.
void Release(Record& held);

void UnparkThread(WaitBlock& block);
// Makes runnable the fiber or thread whose wait through `block` the caller has claimed. Any thread.
inline void Unpark(WaitBlock& block) {
  if (Record* fiber = block.fiber.load(std::memory_order_acquire); fiber != nullptr) {  // order: owner
    if (TakeForUnpark(*fiber)) fiber->scheduler->QueueReady(*fiber);
  } else {
    UnparkThread(block);
  }
}

// For a scheduler's ArmTimer, once the block's wish is stored. False: what is filed already falls due early enough.
// True: the caller files an entry (block, deadline_ns). An entry may fall due late by up to `lateness_ns`; the caller
// says whether a reuse may cost the wish as much (is_lateness_tolerable), and by whose entries it goes: its scheduler's.
[[nodiscard]] bool TryFile(WaitBlock& block, int64_t deadline_ns, int64_t lateness_ns,
                           bool is_lateness_tolerable, const void* by = nullptr);

// The block's fiber has ended: no entry counts any more. By its worker.
void ForgetTimer(WaitBlock& block);

// An entry (block, entry_ns) is due. If it counts: claims the wait and unparks it (rings, if it is an alarm) if its deadline
// has passed at `now_ns`; if the deadline is still to come, returns it, and the caller files an entry under it. Otherwise kNeverNs.
int64_t OnTimer(WaitBlock& block, int64_t entry_ns, int64_t now_ns, const void* by = nullptr);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_PARK_H_
