// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_OVERFLOW_H_
#define WEFT_FIBER_INTERNAL_OVERFLOW_H_

namespace fiber::internal {

// AlternateStack is what signal handlers run on while the thread runs fibers, whose stacks may be the fault, or too small.
//
// Lifetime: made and destroyed by the thread it is for. Without memory for it, an overflow still ends the process at the
// guard, but without our message.
class AlternateStack {
 public:
  AlternateStack();
  ~AlternateStack();
  AlternateStack(const AlternateStack&) = delete;
  AlternateStack& operator=(const AlternateStack&) = delete;

 private:
  void* memory_ = nullptr;
};

// From now on a fault in the guard of a fiber's stack says which fiber overflowed which stack, and what to set. Other
// faults go to whoever handled them before. Once a process.
void InstallOverflowHandler();

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_OVERFLOW_H_
