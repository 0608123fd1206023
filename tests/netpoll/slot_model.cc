// SPDX-License-Identifier: Apache-2.0
#include "tests/netpoll/slot_model.h"

// In place of fiber/internal/atomic.h; the namespaces are renamed, so that nothing here meets what the test links.
#define WEFT_FIBER_INTERNAL_ATOMIC_H_
#define fiber slot_model_fiber
#define netpoll slot_model_netpoll

#include <atomic>
#include <cstdint>
#include <utility>

namespace slot_model_fiber::internal {

template <class T>
class Atomic {
 public:
  constexpr Atomic() = default;
  constexpr Atomic(T value) : value_(value) {}  // NOLINT: as std::atomic
  T load(std::memory_order) const {
    slot_model::SchedulePoint();
    return value_;
  }
  void store(T value, std::memory_order) {
    slot_model::SchedulePoint();
    value_ = value;
  }
  T exchange(T value, std::memory_order) {
    slot_model::SchedulePoint();
    const T before = value_;
    value_ = value;
    return before;
  }
  bool compare_exchange_strong(T& expected, T desired, std::memory_order, std::memory_order) {
    slot_model::SchedulePoint();
    if (value_ == expected) {
      value_ = desired;
      return true;
    }
    expected = value_;
    return false;
  }
  bool compare_exchange_weak(T& expected, T desired, std::memory_order a, std::memory_order b) {
    return compare_exchange_strong(expected, desired, a, b);
  }

 private:
  T value_{};
};

inline void CpuRelax() {}

}  // namespace slot_model_fiber::internal

#include "fiber/internal/wait_block.h"
#include "netpoll/internal/poll_slot.h"

namespace fiber::internal {

void Unpark(WaitBlock&) { slot_model::Unpark(); }

}  // namespace fiber::internal

namespace slot_model {

using fiber::internal::Atomic;
using fiber::internal::WaitWord;
using netpoll::internal::PollSlot;

constexpr uint32_t kDeadlineOutcome = 1000;

namespace {
// As in the real thing, a block is never given back: its numbers go on from one socket to the next.
fiber::internal::WaitBlock the_block;
}  // namespace

struct Socket::State {
  PollSlot slot;
  PollSlot other;
  int tokens = 0;
  Atomic<bool> is_closed{false};
  fiber::internal::WaitBlock& block = the_block;

  Outcome WaitIn(PollSlot& slot, bool looks_for_close);
};

Socket::Socket() : state_(std::make_unique<State>()) {}
Socket::~Socket() = default;

// A fiber only gives way at an access, so this is one step, as it is under the kernel's lock of a socket.
void Socket::Send() {
  SchedulePoint();
  if (state_->tokens++ == 0) state_->slot.MarkReady();
}

int Socket::Receive() {
  state_->slot.ClearReady();
  SchedulePoint();
  return std::exchange(state_->tokens, 0);
}

bool Socket::is_ready() const { return state_->slot.is_ready(); }

void Socket::MoveDeadline() {
  if (state_->slot.ClaimWaiter(netpoll::internal::kOutcomeLookAgain) != nullptr) Unpark();
}

void Socket::Close() {
  state_->is_closed.store(true, std::memory_order_seq_cst);
  if (state_->slot.ClaimWaiter(netpoll::internal::kOutcomeClosed) != nullptr) Unpark();
}

void Socket::ExpireTimer() {
  const uint64_t word = state_->block.word.Load();
  if (!WaitWord::IsOpen(word) || !state_->block.word.TryClaim(word)) return;
  state_->block.outcome = kDeadlineOutcome;
  Unpark();
}

void Socket::MarkOther() { state_->other.MarkReady(); }

Outcome Socket::Wait() { return state_->WaitIn(state_->slot, true); }

Outcome Socket::WaitForOther() {
  const Outcome outcome = state_->WaitIn(state_->other, false);
  if (outcome == Outcome::kReady || outcome == Outcome::kNotLinked) state_->other.ClearReady();
  return outcome;
}

bool Socket::is_closed() const { return state_->is_closed.load(std::memory_order_seq_cst); }

Outcome Socket::State::WaitIn(PollSlot& slot, bool looks_for_close) {
  const uint64_t open_word = block.word.Open(false);
  if (!slot.TryLink(block)) {
    if (block.word.TryClaim(open_word)) return Outcome::kNotLinked;
    Park();
    return Outcome::kDeadline;
  }
  if (looks_for_close && is_closed.load(std::memory_order_seq_cst) && block.word.TryClaim(open_word)) {
    slot.Unlink();
    return Outcome::kClosed;
  }
  Park();
  switch (block.outcome) {
    case netpoll::internal::kOutcomeReady: return Outcome::kReady;
    case netpoll::internal::kOutcomeLookAgain: return Outcome::kLookAgain;
    case netpoll::internal::kOutcomeClosed: return Outcome::kClosed;
    default: slot.Unlink(); return Outcome::kDeadline;
  }
}

}  // namespace slot_model
