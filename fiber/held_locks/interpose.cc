// SPDX-License-Identifier: Apache-2.0
//
// The C and C++ libraries' calls that acquire and release locks of threads, in front of theirs. A program's definition comes
// before that of a library; the library's is the next one of that name.
#include <cxxabi.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fiber/held_locks/held_list.h"

using fiber::held_locks::IsToBeNoted;
using fiber::held_locks::Kind;
using fiber::held_locks::NoteAcquired;
using fiber::held_locks::NoteReleased;

namespace {

// Called by the dynamic linker's own look-up, if at all: by an allocator that has a mutex.
constinit thread_local bool is_looking_up = false;

[[noreturn]] WEFT_EARLY void Die(const char* name) {
  constexpr char kText[] = "weft: fatal: //fiber/held_locks wants the C and C++ libraries to be dynamic: there is no other ";
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, kText, sizeof kText - 1);
  written = write(STDERR_FILENO, name, strlen(name));
  written = write(STDERR_FILENO, "\n", 1);
  abort();
}

// The library's. Null within the search for it, on this thread: what is locked there is nobody else's yet, or the search's own.
template <class F>
WEFT_EARLY F Next(F* cached, F sanitizers, const char* name) {
  F next = __atomic_load_n(cached, __ATOMIC_ACQUIRE);
  if (next != nullptr) return next;
  if (is_looking_up) return nullptr;
  is_looking_up = true;
  next = sanitizers != nullptr ? sanitizers : reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
  is_looking_up = false;
  if (next == nullptr) Die(name);
  __atomic_store_n(cached, next, __ATOMIC_RELEASE);
  return next;
}

WEFT_EARLY void Acquired(Kind kind, const void* address, int error, void* frame) {
  if (error != 0 && error != EOWNERDEAD) return;
  if (IsToBeNoted()) NoteAcquired(kind, address, static_cast<void* const*>(frame));
}

WEFT_EARLY void Released(const void* address) {
  if (IsToBeNoted()) NoteReleased(address);
}

}  // namespace

// A sanitizer that is linked into the program has its own under another name.
#define WEFT_NEXT(name)                                     \
  extern "C" __attribute__((weak)) decltype(name) __interceptor_##name; \
  namespace {                                               \
  constinit decltype(&name) next_##name = nullptr;          \
  }

#define WEFT_ACQUIRES(kind, name, parameters, ...)                                             \
  WEFT_NEXT(name)                                                                              \
  extern "C" WEFT_EARLY int name parameters noexcept {                                         \
    const auto next = Next(&next_##name, &__interceptor_##name, #name);                        \
    if (next == nullptr) return 0;                                                             \
    const int error = next(__VA_ARGS__);                                                       \
    Acquired(kind, const_cast<const void*>(static_cast<const volatile void*>(lock)), error, __builtin_frame_address(0)); \
    return error;                                                                              \
  }

#define WEFT_RELEASES(name, parameters)                                                        \
  WEFT_NEXT(name)                                                                              \
  extern "C" WEFT_EARLY int name parameters noexcept {                                         \
    const auto next = Next(&next_##name, &__interceptor_##name, #name);                        \
    if (next == nullptr) return 0;                                                             \
    Released(const_cast<const void*>(static_cast<const volatile void*>(lock)));                \
    return next(lock);                                                                         \
  }

WEFT_ACQUIRES(Kind::kMutex, pthread_mutex_lock, (pthread_mutex_t * lock), lock)
WEFT_ACQUIRES(Kind::kMutex, pthread_mutex_trylock, (pthread_mutex_t * lock), lock)
WEFT_ACQUIRES(Kind::kMutex, pthread_mutex_timedlock, (pthread_mutex_t * lock, const timespec* until), lock, until)
WEFT_ACQUIRES(Kind::kMutex, pthread_mutex_clocklock, (pthread_mutex_t * lock, clockid_t clock, const timespec* until), lock,
              clock, until)
WEFT_RELEASES(pthread_mutex_unlock, (pthread_mutex_t * lock))

WEFT_ACQUIRES(Kind::kReadLock, pthread_rwlock_rdlock, (pthread_rwlock_t * lock), lock)
WEFT_ACQUIRES(Kind::kReadLock, pthread_rwlock_tryrdlock, (pthread_rwlock_t * lock), lock)
WEFT_ACQUIRES(Kind::kReadLock, pthread_rwlock_timedrdlock, (pthread_rwlock_t * lock, const timespec* until), lock, until)
WEFT_ACQUIRES(Kind::kReadLock, pthread_rwlock_clockrdlock,
              (pthread_rwlock_t * lock, clockid_t clock, const timespec* until), lock, clock, until)
WEFT_ACQUIRES(Kind::kWriteLock, pthread_rwlock_wrlock, (pthread_rwlock_t * lock), lock)
WEFT_ACQUIRES(Kind::kWriteLock, pthread_rwlock_trywrlock, (pthread_rwlock_t * lock), lock)
WEFT_ACQUIRES(Kind::kWriteLock, pthread_rwlock_timedwrlock, (pthread_rwlock_t * lock, const timespec* until), lock, until)
WEFT_ACQUIRES(Kind::kWriteLock, pthread_rwlock_clockwrlock,
              (pthread_rwlock_t * lock, clockid_t clock, const timespec* until), lock, clock, until)
WEFT_RELEASES(pthread_rwlock_unlock, (pthread_rwlock_t * lock))

WEFT_ACQUIRES(Kind::kSpinLock, pthread_spin_lock, (pthread_spinlock_t * lock), lock)
WEFT_ACQUIRES(Kind::kSpinLock, pthread_spin_trylock, (pthread_spinlock_t * lock), lock)
WEFT_RELEASES(pthread_spin_unlock, (pthread_spinlock_t * lock))

// It runs the function, which may park, and come back on another thread: nothing of this one is kept across it.
WEFT_NEXT(pthread_once)
extern "C" WEFT_EARLY int pthread_once(pthread_once_t* once, void (*run)()) {
  const auto next = Next(&next_pthread_once, &__interceptor_pthread_once, "pthread_once");
  if (next == nullptr) Die("pthread_once");  // a search for a function does not depend on it
  struct Running {
    const pthread_once_t* const once;
    WEFT_EARLY ~Running() { Released(once); }
  } running{once};
  Acquired(Kind::kOnce, once, 0, __builtin_frame_address(0));
  return next(once, run);
}

namespace __cxxabiv1 {

WEFT_NEXT(__cxa_guard_acquire)
WEFT_NEXT(__cxa_guard_release)
WEFT_NEXT(__cxa_guard_abort)

// One that is to be initialised is acquired.
extern "C" WEFT_EARLY int __cxa_guard_acquire(__guard* guard) {
  const auto next = Next(&next___cxa_guard_acquire, &__interceptor___cxa_guard_acquire, "__cxa_guard_acquire");
  if (next == nullptr) Die("__cxa_guard_acquire");
  const int is_acquired = next(guard);
  if (is_acquired != 0) Acquired(Kind::kStaticGuard, guard, 0, __builtin_frame_address(0));
  return is_acquired;
}

extern "C" WEFT_EARLY void __cxa_guard_release(__guard* guard) noexcept {
  const auto next = Next(&next___cxa_guard_release, &__interceptor___cxa_guard_release, "__cxa_guard_release");
  if (next == nullptr) Die("__cxa_guard_release");
  Released(guard);
  next(guard);
}

extern "C" WEFT_EARLY void __cxa_guard_abort(__guard* guard) noexcept {
  const auto next = Next(&next___cxa_guard_abort, &__interceptor___cxa_guard_abort, "__cxa_guard_abort");
  if (next == nullptr) Die("__cxa_guard_abort");
  Released(guard);
  next(guard);
}

}  // namespace __cxxabiv1
