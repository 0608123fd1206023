// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_HELD_LOCKS_HELD_LOCKS_H_
#define WEFT_FIBER_HELD_LOCKS_HELD_LOCKS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace fiber::held_locks {

// Finds locks of threads that a fiber holds while it parks or yields. Such a lock belongs to the thread: the fiber may come back
// on another and unlock it there, a fiber that wants it blocks a worker, perhaps the one that is to run the holder, and a
// recursive one lets in any fiber of the same thread.
//
// A program that links //fiber/held_locks is watched, with nothing to call; it is for tests and debug builds: locking and
// unlocking cost some 30 ns more in a fiber, 10 elsewhere. What is found is written to stderr, once for each place that
// acquires, its callers included:
//
//   weft: fiber 12 'resize' (spawned at image.cc:40) parks (sleep) and holds a mutex (0x7ffc5a1b2c30), acquired at
//   weft:   0x5581f3a2c1d4  Cache::Get()
//   weft: and parks at
//   weft:   0x5581f3a2d8e0  fiber::Sleep()
//   …
//
// Seen are, if acquired by a fiber and held by it when it parks, or yields, or would if others were ready:
//
//   std::mutex and its timed and recursive kin, pthread_mutex_t    pthread_mutex_lock, trylock, timedlock, clocklock
//   std::shared_mutex and its timed kin, pthread_rwlock_t          pthread_rwlock_rdlock, wrlock, and try, timed, clock of these
//   pthread_spinlock_t                                             pthread_spin_lock, trylock
//   a static variable of a function, while it is initialised       __cxa_guard_acquire
//   std::call_once, pthread_once, while they run                   pthread_once
//
// Not seen: absl::Mutex and others that go to the kernel by themselves, semaphores, flockfile, C11's mtx_t; what a C library or a
// library linked with -Bsymbolic locks inside; what is held when a fiber ends; more than 32 locks of one fiber at a time. A wait
// of a condition variable of threads gives its mutex back meanwhile, but is no park: it blocks the worker, which this does not
// report. fiber::Mutex and the like may be held across anything.
//
// A mutex that another fiber unlocks than has locked it, on whatever thread, is forgotten; one that a plain thread unlocks is not.
// The calls above are those of the dynamic C and C++ libraries: a program that links them statically does not start. With clang's
// and g++'s sanitizers theirs are called.

enum class Kind : uint8_t { kMutex, kReadLock, kWriteLock, kSpinLock, kStaticGuard, kOnce };

// HeldLock is what was found.
struct HeldLock {
  Kind kind = Kind::kMutex;
  const void* address = nullptr;  // the lock
  uint64_t fiber_id = 0;
  std::string fiber = {};    // as messages have it: "fiber 12 'resize' (spawned at image.cc:40)"
  std::string leaving = {};  // "parks (sleep)", "yields"
  // Return addresses, innermost first, at most 6; one only if the code has no frame pointers.
  std::vector<void*> acquired = {};
  std::vector<void*> left = {};  // likewise, at most 32: where it parks or yields

  // What is written to stderr, some lines without a newline at the end. Reads the program's symbols from disk. Blocks the thread.
  std::string ToString() const;
};

// Called on the stack of the fiber that leaves, before it does. Must not park; locks it takes are not seen.
using Handler = void (*)(const HeldLock& held);

// In place of writing to stderr; null: that again. Returns the one before, null if that was it. A test makes it fatal so:
//
//   fiber::held_locks::SetHandler([](const fiber::held_locks::HeldLock& held) { ADD_FAILURE() << held.ToString(); });
//
// Thread safety: any thread. Never blocks.
Handler SetHandler(Handler handler);

// Places that were reported are from now on reported once more. For tests. Never blocks.
void ForgetReported();

}  // namespace fiber::held_locks

#endif  // WEFT_FIBER_HELD_LOCKS_HELD_LOCKS_H_
