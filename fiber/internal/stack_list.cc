// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/stack_list.h"

#include <algorithm>
#include <cstdint>

namespace fiber::internal {

void StackList::Push(const StackChain& chain) {
  if (chain.count == 0) return;
  size_ += chain.count;
  size_t length = chain.count;
  WaitBlock* next = top_;
  // Short chains grow together, or taking many would become taking one.
  constexpr size_t kLongestMerged = 32;
  if (top_ != nullptr && length + top_->waiter.amount <= kLongestMerged) {
    SetNextFree(*chain.last, top_);
    length += top_->waiter.amount;
    next = static_cast<WaitBlock*>(top_->waiter.value);
  }
  top_ = chain.first;
  top_->waiter.amount = static_cast<uint32_t>(length);
  top_->waiter.value = next;
}

StackChain StackList::Pop(size_t most) {
  StackChain chain;
  if (top_ == nullptr || most == 0) return chain;
  chain.first = top_;
  const size_t length = top_->waiter.amount;
  WaitBlock* next = static_cast<WaitBlock*>(top_->waiter.value);
  chain.count = std::min(most, length);
  chain.last = chain.first;
  for (size_t i = 1; i < chain.count; ++i) chain.last = NextFree(*chain.last);
  if (chain.count < length) {
    WaitBlock* rest = NextFree(*chain.last);
    rest->waiter.amount = static_cast<uint32_t>(length - chain.count);
    rest->waiter.value = next;
    next = rest;
  }
  SetNextFree(*chain.last, nullptr);
  chain.first->waiter.value = nullptr;
  top_ = next;
  size_ -= chain.count;
  return chain;
}

}  // namespace fiber::internal
