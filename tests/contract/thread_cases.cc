// SPDX-License-Identifier: Apache-2.0
//
// What is kept per thread, right after a move: errno, which the runtime takes along; the runtime's own state, which must
// be the new thread's; and what user code must not rely on.
#include <cxxabi.h>
#include <errno.h>
#include <pthread.h>

#include <mutex>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/thread_state.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"
#include "tests/contract/cases.h"
#include "tests/contract/moving.h"

namespace contract {
namespace {

using fiber::internal::ThisThread;
using fiber::internal::ThreadState;

thread_local int of_the_thread = 0;

// The way out of the limit below: functions that are not inlined, of which the compiler can prove nothing.
#define WEFT_ASKED_ANEW __attribute__((noinline))
WEFT_ASKED_ANEW int* ErrnoNow() {
  asm volatile("" ::: "memory");
  return &errno;
}
WEFT_ASKED_ANEW int* ThreadLocalNow() {
  asm volatile("" ::: "memory");
  return &of_the_thread;
}
WEFT_ASKED_ANEW pthread_t SelfNow() {
  asm volatile("" ::: "memory");
  return pthread_self();
}
WEFT_ASKED_ANEW void* ExceptionsNow() {
  asm volatile("" ::: "memory");
  return abi::__cxa_get_globals();
}

template <class F>
void KeepsErrno(int value, F park) {
  *ErrnoNow() = value;
  park();
  HOLDS(*ErrnoNow() == value);
}

void ErrnoIsKeptByWhateverParks() {
  const int value = static_cast<int>(fiber::CurrentId() % 1000) + 1;
  KeepsErrno(value, [] { Move(); });
  KeepsErrno(value + 1, [] { fiber::Yield(); });
  KeepsErrno(value + 2, [] { HOLDS(fiber::Sleep(absl::Microseconds(10)).ok()); });
  KeepsErrno(value + 3, [] {
    auto child = fiber::Spawn([] {
      Move();
      *ErrnoNow() = 0;
    });
    child.Join();
  });
  fiber::Mutex mutex;
  mutex.lock();
  auto locker = fiber::Spawn([&mutex] {
    *ErrnoNow() = 4321;
    mutex.lock();
    HOLDS(*ErrnoNow() == 4321);
    mutex.unlock();
  });
  Move();
  *ErrnoNow() = value + 4;
  mutex.unlock();
  HOLDS(*ErrnoNow() == value + 4);
  locker.Join();
}

// A pointer of the thread that was left, used once more, gives its free records to two threads, or its errno to another's
// fiber.
void TheRuntimesStateIsTheNewThreads() {
  for (int i = 0; i < 3; ++i) {
    ThreadState& before = ThisThread();
    const fiber::internal::Record* self = before.current;
    const fiber::FiberId id = fiber::CurrentId();
    Move();
    ThreadState& after = ThisThread();
    HOLDS(&after != &before);
    HOLDS(after.current == self);
    HOLDS(after.errno_address == ErrnoNow());
    HOLDS(after.exceptions == ExceptionsNow());
    HOLDS(fiber::CurrentId() == id);
  }
}

// Each thread hands out ids and records of its own.
std::mutex ids_mutex;  // never held across a park
std::set<fiber::FiberId> ids;  // guarded by ids_mutex

void SpawnsOnBothSidesOfAMoveDoNotMix() {
  const auto spawn = [] {
    auto child = fiber::Spawn([] {
      const fiber::FiberId id = fiber::CurrentId();
      std::lock_guard<std::mutex> hold(ids_mutex);
      return ids.insert(id).second;
    });
    fiber::Yield();
    return child;
  };
  auto first = spawn();
  auto second = spawn();
  Move();
  HOLDS(first.Join());
  auto third = spawn();
  Move();
  HOLDS(third.Join());
  HOLDS(second.Join());
}

// The limit for user code (README): in one function the compiler may keep an address of the thread's from before a call
// that parks. Whether it does is its affair, and said in a note; what is promised is the way out.
void NotedLimitOfUserCode() {
  const auto note = [](const char* what, bool is_kept) {
    Note(absl::StrCat(what, is_kept ? " is kept by the compiler across a park: the other thread's"
                                    : " is asked for anew after a park"));
  };
  int* const errno_before = &errno;
  int* const thread_local_before = &of_the_thread;
  const pthread_t self_before = pthread_self();
  const int* const errno_asked = ErrnoNow();
  const int* const thread_local_asked = ThreadLocalNow();
  const pthread_t self_asked = SelfNow();
  Move();
  note("errno", &errno == errno_before);
  note("a thread_local", &of_the_thread == thread_local_before);
  note("pthread_self()", pthread_self() == self_before);
  HOLDS(ErrnoNow() != errno_asked);
  HOLDS(ThreadLocalNow() != thread_local_asked);
  HOLDS(SelfNow() != self_asked);
  HOLDS(ErrnoNow() == ThisThread().errno_address);
}

constexpr Case kThreadCases[] = {
    {"ErrnoIsKeptByWhateverParks", ErrnoIsKeptByWhateverParks},
    {"TheRuntimesStateIsTheNewThreads", TheRuntimesStateIsTheNewThreads},
    {"SpawnsOnBothSidesOfAMoveDoNotMix", SpawnsOnBothSidesOfAMoveDoNotMix},
    {"NotedLimitOfUserCode", NotedLimitOfUserCode},
};

}  // namespace

std::span<const Case> ThreadCases() { return kThreadCases; }

}  // namespace contract
