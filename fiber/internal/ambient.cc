// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/ambient.h"

#include <utility>

#include "fiber/internal/thread_state.h"

namespace fiber::internal {

void Release(Ambient* ambient) {
  while (ambient != nullptr &&
         ambient->references.fetch_sub(1, std::memory_order_acq_rel) == 1) {  // order: count
    Ambient* const outer = ambient->outer;
    ambient->destroy(ambient);
    ambient = outer;
  }
}

namespace {

Ambient* NewDeadline(Ambient* outer, int64_t deadline_ns) {
  auto* ambient = new Ambient;
  ambient->outer = outer;
  ambient->deadline_ns = deadline_ns;
  ambient->destroy = [](Ambient* self) { delete self; };
  return ambient;
}

}  // namespace

void PushDeadline(WaitBlock& block, int64_t deadline_ns) {
  block.ambient = NewDeadline(block.ambient, deadline_ns);
}

void Push(WaitBlock& block, Ambient& inner) {
  inner.outer = block.ambient;
  inner.deadline_ns = block.ambient == nullptr ? kNeverNs : block.ambient->deadline_ns;
  block.ambient = &inner;
}

void Pop(WaitBlock& block) {
  Ambient* const inner = block.ambient;
  block.ambient = Retain(inner->outer);
  Release(inner);
}

Ambient* BoundBy(Ambient* outer, int64_t deadline_ns) {
  const int64_t outer_ns = outer == nullptr ? kNeverNs : outer->deadline_ns;
  return deadline_ns < outer_ns ? NewDeadline(outer, deadline_ns) : outer;
}

WaitBlock& CallersBlock() {
  ThreadState& thread = ThisThread();
  return thread.current == nullptr ? PlainBlock(thread)
                                   : *thread.current->block.load(std::memory_order_relaxed);
}

void DropAmbient(WaitBlock& block) {
  while (block.ambient != nullptr) Release(std::exchange(block.ambient, nullptr));
}

}  // namespace fiber::internal
