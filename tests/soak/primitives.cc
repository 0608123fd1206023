// SPDX-License-Identifier: Apache-2.0
#include "tests/soak/primitives.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "fiber/event.h"

namespace soak {
namespace {

// A wait that may end without what was waited for.
bool Came(const absl::Status& status) {
  if (status.ok()) return true;
  if (absl::IsDeadlineExceeded(status)) {
    Count(Op::kTimeout);
  } else {
    ExpectCode(status, absl::StatusCode::kCancelled);
  }
  return false;
}

fiber::Deadline SoonOrNever(Random& random) {
  return random.OneIn(2) ? fiber::Deadline::Never() : fiber::Deadline(random.ShortTime());
}

// In one of the three ways; the lock may come back without the mutex.
std::unique_lock<fiber::Mutex> LockSomehow(fiber::Mutex& mutex, Random& random) {
  switch (random.Below(4)) {
    case 0:
      return std::unique_lock(mutex, std::try_to_lock);
    case 1:
      if (!Came(mutex.Lock(random.ShortTime()))) return std::unique_lock(mutex, std::defer_lock);
      return std::unique_lock(mutex, std::adopt_lock);
    default:
      return std::unique_lock(mutex);
  }
}

}  // namespace

void Primitives::Guide(uint64_t seed) {
  Random random(seed);
  while (!world_.ending()) {
    const int steps = random.Between(1, 100);
    auto wanderer =
        world_.Spawn(random, [this, seed = random.Next(), steps] { Wander(seed, steps, 2); });
    if (random.OneIn(3)) {
      if (random.OneIn(2)) (void)Came(wanderer.Wait(random.ShortTime()));
      wanderer.Cancel();
      Count(Op::kCancel);
    }
    wanderer.Join();
  }
}

void Primitives::Wander(uint64_t seed, int steps, int depth) {
  Random random(seed);
  for (int i = 0; i < steps && !world_.ending(); ++i) {
    switch (random.Below(depth > 0 ? 14 : 11)) {
      case 0:
      case 1:
        Transfer(random);
        break;
      case 2:
        UsePermits(random);
        break;
      case 3:
        Put(random);
        break;
      case 4:
        Take(random);
        break;
      case 5:
        Gather(random);
        break;
      case 6:
        AwaitEvent(random);
        break;
      case 7:
        Sleep(random);
        break;
      case 8:
        Throw(random);
        break;
      case 9:
        Raise(random);
        break;
      case 10:
        Pause(random);
        break;
      case 11:
      case 12:
        HaveChild(random, depth);
        break;
      case 13:
        LeaveChild(random, depth);
        break;
    }
    if (fiber::CurrentId() == 0) Count(Op::kThread);
  }
}

// Mutex: two at once, in the order of their addresses.
void Primitives::Transfer(Random& random) {
  size_t a = random.Below(kAccounts);
  size_t b = random.Below(kAccounts);
  if (a == b) return;
  const std::unique_lock first = LockSomehow(accounts_[std::min(a, b)].mutex, random);
  if (!first.owns_lock()) return;
  const std::unique_lock second = LockSomehow(accounts_[std::max(a, b)].mutex, random);
  if (!second.owns_lock()) return;
  const int64_t amount = random.Between(1, 100);
  const int64_t left = accounts_[a].balance - amount;
  const int64_t right = accounts_[b].balance + amount;
  if (random.OneIn(4)) Pause(random);
  accounts_[a].balance = left;
  accounts_[b].balance = right;
  Count(Op::kTransfer);
}

void Primitives::UsePermits(Random& random) {
  const int n = random.Between(1, kPermits);
  if (random.OneIn(4)) {
    if (!permits_.TryAcquire(n)) return;
  } else if (!Came(permits_.Acquire(n, SoonOrNever(random)))) {
    return;
  }
  const int in_use = permits_in_use_.fetch_add(n, std::memory_order_relaxed) + n;
  Expect(in_use <= kPermits, "more permits in use than there are");
  Pause(random);
  permits_in_use_.fetch_sub(n, std::memory_order_relaxed);
  permits_.Release(n);
  Count(Op::kPermits);
}

void Primitives::Put(Random& random) {
  if (!Came(room_.Acquire(1, random.ShortTime()))) return;
  const uint64_t value = random.Below(1000);
  {
    const fiber::MutexLock hold(queue_mutex_);
    queue_.push_back(value);
    Expect(queue_.size() <= kRoom, "more in the queue than there is room for");
  }
  put_.fetch_add(value, std::memory_order_relaxed);
  filled_.Release();
  Count(Op::kPut);
}

void Primitives::Take(Random& random) {
  if (!Came(filled_.Acquire(1, random.ShortTime()))) return;
  {
    const fiber::MutexLock hold(queue_mutex_);
    Expect(!queue_.empty(), "a permit for an empty queue");
    taken_.fetch_add(queue_.front(), std::memory_order_relaxed);
    queue_.pop_front();
  }
  room_.Release();
  Count(Op::kTake);
}

// WaitGroup: destroyed as soon as the wait returns, while the last Done() may be about to.
void Primitives::Gather(Random& random) {
  auto group = std::make_unique<fiber::WaitGroup>();
  std::atomic<int> done{0};
  const int n = random.Between(1, 4);
  group->Add(n);
  std::vector<fiber::JoinHandle<void>> handles;
  for (int i = 0; i < n; ++i) {
    handles.push_back(world_.Spawn(random, [&done, group = group.get(), seed = random.Next()] {
      Random pause(seed);
      Pause(pause);
      done.fetch_add(1, std::memory_order_relaxed);
      group->Done();
    }));
  }
  if (Came(group->Wait(SoonOrNever(random)))) {
    group = nullptr;
    Expect(done.load(std::memory_order_relaxed) == n, "a wait ended before the work");
  }
  handles.clear();  // joins
  Count(Op::kWaitGroup);
}

void Primitives::AwaitEvent(Random& random) {
  auto event = std::make_unique<fiber::Event>();
  auto setter = world_.Spawn(random, [event = event.get(), seed = random.Next()] {
    Random pause(seed);
    Pause(pause);
    event->Set();
  });
  if (Came(event->Wait(SoonOrNever(random)))) event = nullptr;
  setter.Join();
  Count(Op::kEvent);
}

void Primitives::Sleep(Random& random) {
  const absl::Duration asked = random.ShortTime();
  const absl::Duration start = fiber::Now();
  if (Came(fiber::Sleep(asked))) Expect(fiber::Now() - start >= asked, "a sleep ended early");
  Count(Op::kSleep);
}

// An exception is the fiber's while others throw theirs on the same worker.
void Primitives::Throw(Random& random) {
  try {
    throw random.Next();
  } catch (const uint64_t& thrown) {
    const uint64_t value = thrown;
    const std::exception_ptr before = std::current_exception();
    Pause(random);
    Expect(std::current_exception() == before, "another exception than before the pause");
    Expect(thrown == value && std::uncaught_exceptions() == 0, "the exception has changed");
  }
  Count(Op::kException);
}

void Primitives::Raise(Random& random) {
  const uint64_t value = random.Next();
  auto child = world_.Spawn(random, [value]() -> int { throw value; });
  if (random.OneIn(4)) return;  // dropped with the exception
  try {
    child.Join();
    Fail("an exception got lost");
  } catch (const uint64_t thrown) {
    Expect(thrown == value, "another fiber's exception");
  }
  Count(Op::kException);
}

void Primitives::HaveChild(Random& random, int depth) {
  const uint64_t seed = random.Next();
  auto child = world_.Spawn(random, [this, seed, depth] {
    Wander(seed, 6, depth - 1);
    return seed;
  });
  switch (random.Below(4)) {
    case 0:
      return;  // dropped: cancelled and joined
    case 1:
      child.Cancel();
      Count(Op::kCancel);
      break;
    case 2:
      (void)Came(child.Wait(SoonOrNever(random)));
      break;
  }
  Expect(child.Join() == seed, "another child's value");
}

void Primitives::LeaveChild(Random& random, int depth) {
  detached_.Add();
  auto child = world_.Spawn(random, [this, seed = random.Next(), depth] {
    Wander(seed, 4, depth - 1);
    detached_.Done();
  });
  if (random.OneIn(3)) child.Cancel();
  child.Detach();
  Count(Op::kDetached);
}

void Primitives::CheckNothingIsLost() {
  ExpectCode(detached_.Wait(), absl::StatusCode::kOk);
  int64_t sum = 0;
  for (Account& account : accounts_) {
    const std::unique_lock hold(account.mutex, std::try_to_lock);
    Expect(hold.owns_lock(), "an account is locked by nobody");
    sum += account.balance;
  }
  Expect(sum == kAccounts * kDeposit, "money came to be or got lost");
  Expect(permits_in_use_.load(std::memory_order_relaxed) == 0, "permits in use by nobody");
  Expect(permits_.TryAcquire(kPermits), "permits got lost");
  Expect(!permits_.TryAcquire(), "permits came to be");
  for (const uint64_t value : queue_) taken_.fetch_add(value, std::memory_order_relaxed);
  const int left = static_cast<int>(queue_.size());
  Expect(taken_.load(std::memory_order_relaxed) == put_.load(std::memory_order_relaxed),
         "what was taken is not what was put");
  Expect(filled_.TryAcquire(left) && !filled_.TryAcquire(),
         "the queue's permits are not what is in it");
  Expect(room_.TryAcquire(kRoom - left) && !room_.TryAcquire(),
         "the queue's room is not what is free");
}

}  // namespace soak
