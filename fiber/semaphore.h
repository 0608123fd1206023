// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SEMAPHORE_H_
#define WEFT_FIBER_SEMAPHORE_H_

#include <cstdint>
#include <mutex>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

// Semaphore holds a number of permits; Acquire() takes some, Release() returns some.
//
//   fiber::Semaphore slots(8);                 // at most 8 downloads at once
//   std::vector<fiber::JoinHandle<void>> downloads;
//   for (const Url& url : urls) {
//     if (!slots.Acquire().ok()) break;        // cancelled: no permit was taken
//     downloads.push_back(fiber::Spawn([&] { Download(url); slots.Release(); }));
//   }
//
// Thread safety: any fiber, any thread. Permits belong to nobody: who releases need not be who
// acquired.
// Fairness: permits are handed over in the order of coming, and nobody passes by who waits,
// TryAcquire() included. One who waits for many holds up those behind, until it has got them or
// gives up.
// Memory ordering: what happened before Release() is visible after the Acquire() it serves.
// Lifetime: may be destroyed as soon as the last Acquire() has returned, even while the Release()
// that served it is about to return; but no other call may be under way. Destroying it while
// somebody waits ends the process.
class Semaphore {
 public:
  // Never blocks. REQUIRES: permits >= 0
  constexpr explicit Semaphore(int permits)
      : word_(static_cast<uint64_t>(permits) << kPermitShift) {
    if (permits < 0) DieOfCount("Semaphore", permits);
  }
  ~Semaphore() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  Semaphore(const Semaphore&) = delete;
  Semaphore& operator=(const Semaphore&) = delete;

  // Takes `n` permits, all at once. Parks the fiber while there are fewer or others wait; blocks
  // the thread when called from a plain one. kDeadlineExceeded or kCancelled: none was taken.
  // REQUIRES: n >= 0
  [[nodiscard]] absl::Status Acquire(int n = 1, Deadline deadline = {});

  // Takes `n` permits if there are as many and nobody waits. Never blocks. REQUIRES: n >= 0
  [[nodiscard]] bool TryAcquire(int n = 1);

  // Returns `n` permits, and hands over what those who wait can have. Never blocks.
  // REQUIRES: n >= 0, and no more than INT_MAX permits in all
  void Release(int n = 1);

 private:
  // The word's upper half. Never more than INT_MAX.
  static constexpr int kPermitShift = 32;

  static uint64_t PermitsIn(uint64_t word) { return word >> kPermitShift; }
  static uint64_t Permits(uint64_t n) { return n << kPermitShift; }

  // Hands permits over from the front of the queue. Returns the word to unlock with.
  uint64_t GrantLocked(uint64_t word, internal::ClaimedWaiters& granted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_);
  [[noreturn]] void DieOfCount(const char* operation, int n) const;
  [[noreturn]] void DieWithWaiters();

  // While the queue is unlocked, the first waiter has given up or wants more than there is.
  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
};

// Permit holds permits of a Semaphore, and returns them when it is destroyed.
//
//   absl::StatusOr<fiber::Permit> slot = fiber::Permit::Acquire(slots);
//   if (!slot.ok()) return slot.status();
//   downloads.push_back(fiber::Spawn([&url, slot = *std::move(slot)] { Download(url); }));
//
// Thread safety: one fiber or thread at a time. Lifetime: not longer than the semaphore's.
class [[nodiscard]] Permit {
 public:
  // Acquires `n` permits, as Semaphore::Acquire(). Parks the fiber while there are fewer or others
  // wait; blocks the thread when called from a plain one. kDeadlineExceeded or kCancelled: none was
  // taken. REQUIRES: n >= 0
  static absl::StatusOr<Permit> Acquire(Semaphore& semaphore, int n = 1, Deadline deadline = {}) {
    if (absl::Status status = semaphore.Acquire(n, deadline); !status.ok()) return status;
    return Permit(semaphore, n, std::adopt_lock);
  }

  // Holds none. Never blocks.
  constexpr Permit() = default;
  // Takes over `n` permits that have been acquired already. Never blocks.
  Permit(Semaphore& semaphore, int n, std::adopt_lock_t) : semaphore_(&semaphore), count_(n) {}
  Permit(Permit&& other) noexcept
      : semaphore_(other.semaphore_), count_(std::exchange(other.count_, 0)) {}
  // Release() of what it had. Never blocks.
  Permit& operator=(Permit&& other) noexcept {
    if (this != &other) {
      Release();
      semaphore_ = other.semaphore_;
      count_ = std::exchange(other.count_, 0);
    }
    return *this;
  }
  // As Release().
  ~Permit() { Release(); }

  // Returns what it holds; a second time, nothing. Never blocks.
  void Release() {
    if (const int n = std::exchange(count_, 0); n > 0) semaphore_->Release(n);
  }

  // How many it holds. Never blocks.
  int count() const { return count_; }

 private:
  Semaphore* semaphore_ = nullptr;
  int count_ = 0;
};

}  // namespace fiber

#endif  // WEFT_FIBER_SEMAPHORE_H_
