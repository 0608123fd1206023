// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SOAK_PRIMITIVES_H_
#define WEFT_TESTS_SOAK_PRIMITIVES_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>

#include "fiber/mutex.h"
#include "fiber/semaphore.h"
#include "fiber/wait_group.h"
#include "tests/soak/world.h"

namespace soak {

// Primitives are there to be used by all fibers and threads of a round in random ways. Nothing may
// come to be or get lost: money on accounts, permits, what goes through a queue.
//
// Thread safety: any fiber, any thread.
class Primitives {
 public:
  explicit Primitives(World& world) : world_(world) {}

  // Until the round ends: starts fibers that wander about one after the other, and cancels some. By
  // a fiber.
  void Guide(uint64_t seed);
  // Does `steps` random things. `depth` bounds the fibers that are started by fibers.
  void Wander(uint64_t seed, int steps, int depth);
  // Waits for the fibers nobody joins. Then nothing may be missing. REQUIRES: nobody wanders any
  // more
  void CheckNothingIsLost();

 private:
  static constexpr int kAccounts = 6;
  static constexpr int64_t kDeposit = 1000;
  static constexpr int kPermits = 4;
  static constexpr int kRoom = 8;

  struct Account {
    fiber::Mutex mutex;
    int64_t balance = kDeposit;  // guarded by mutex
  };

  void Transfer(Random& random);
  void UsePermits(Random& random);
  void Put(Random& random);
  void Take(Random& random);
  void Gather(Random& random);
  void AwaitEvent(Random& random);
  void Sleep(Random& random);
  void Throw(Random& random);
  void Raise(Random& random);
  void HaveChild(Random& random, int depth);
  void LeaveChild(Random& random, int depth);

  World& world_;
  std::array<Account, kAccounts> accounts_;
  fiber::Semaphore permits_{kPermits};
  std::atomic<int> permits_in_use_{0};
  // A queue with bounds.
  fiber::Semaphore room_{kRoom};
  fiber::Semaphore filled_{0};
  fiber::Mutex queue_mutex_;
  std::deque<uint64_t> queue_;  // guarded by queue_mutex_
  std::atomic<uint64_t> put_{0};
  std::atomic<uint64_t> taken_{0};
  fiber::WaitGroup detached_;
};

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_PRIMITIVES_H_
