// SPDX-License-Identifier: Apache-2.0
//
// What fibers need besides the files that ship: cases of fibers include it.
#include "tests/model/fibers.h"

#include <string>

namespace fiber::internal {
ThreadState& Switch(ThreadState& thread, Record*, After after) {
  static_cast<model::World*>(thread.scheduler)->Leave(*thread.current, after);
  return thread;
}
void YieldFiber() { Switch(ThisThread(), nullptr, After::kYield); }
std::string Describe(const Record&) { return "a fiber"; }
std::string DescribeUnheld(Record&) { return "a fiber"; }
void CheckCanarySlow(const WaitBlock&) {}
void FreeRecord(ThreadState&, Record&) {}
}  // namespace fiber::internal
