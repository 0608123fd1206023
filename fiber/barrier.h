// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_BARRIER_H_
#define WEFT_FIBER_BARRIER_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

// Barrier lets a number of parties through when all of them have arrived. Then the next phase
// begins, with as many.
//
//   fiber::Barrier step(workers);
//   for (int i = 0; i < workers; ++i) {
//     scope.Go([&, i]() -> absl::Status {
//       for (int round = 0; round < rounds; ++round) {
//         Compute(i, round);                     // from what all have computed in the round before
//         if (absl::Status status = step.ArriveAndWait(); !status.ok()) return status;
//       }
//       return absl::OkStatus();
//     });
//   }
//
// One that gives up has not arrived: the others go on waiting for as many as before.
//
// Thread safety: any fiber, any thread. It counts arrivals, and does not care whose they are.
// Fairness: the last to arrive releases the others in the order of their coming.
// Memory ordering: what happened before any of a phase's arrivals is visible after all of them.
// Lifetime: may be destroyed when the last phase is complete and those who waited have returned,
// even while the one that came last is about to return. Destroying it while somebody waits ends
// the process.
class Barrier {
 public:
  // Never blocks. REQUIRES: parties > 0
  constexpr explicit Barrier(int parties) : parties_(static_cast<uint32_t>(parties)) {
    if (parties <= 0) DieOfParties(parties);
  }
  ~Barrier() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  // Arrives, and waits until as many have as there are parties: OK. Parks the fiber; blocks the
  // thread when called from a plain one. kDeadlineExceeded or kCancelled: not all came in time, and
  // the arrival was taken back. When the phase is complete already, though this one has not noticed
  // yet, it is OK.
  [[nodiscard]] absl::Status ArriveAndWait(Deadline deadline = {});

 private:
  // The word's upper half: how many of this phase have arrived, who are those that are linked.
  // Never as many as there are parties.
  static constexpr int kArrivedShift = 32;

  static uint64_t WordOf(uint32_t arrived) {
    return uint64_t{arrived} << kArrivedShift |
           (arrived == 0 ? 0 : internal::StateWord::kHasWaiters);
  }

  [[noreturn]] void DieOfParties(int parties) const;
  [[noreturn]] void DieWithWaiters();

  const uint32_t parties_;
  internal::StateWord word_;
  internal::WaitQueue waiters_ ABSL_GUARDED_BY(word_);
};

}  // namespace fiber

#endif  // WEFT_FIBER_BARRIER_H_
