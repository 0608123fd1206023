// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SHARED_MUTEX_H_
#define WEFT_FIBER_SHARED_MUTEX_H_

#include <cstdint>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

namespace internal {
class Wait;
}

// SharedMutex is held by one writer, or by any number of readers, at a time. It may be held across
// calls that park.
//
//   class Routes {
//    public:
//     std::string Find(const std::string& host) const {
//       fiber::ReaderLock hold(mu_);
//       auto it = table_.find(host);
//       return it == table_.end() ? "" : it->second;
//     }
//     void Replace(std::map<std::string, std::string> table) {
//       fiber::WriterLock hold(mu_);
//       table_ = std::move(table);
//     }
//
//    private:
//     mutable fiber::SharedMutex mu_;
//     std::map<std::string, std::string> table_ ABSL_GUARDED_BY(mu_);
//   };
//
// std::unique_lock and std::shared_lock work too. Every hold writes to the one word of the mutex,
// so a Mutex is as good where it is held for a few lines only. Not recursive: one who holds it for
// reading and asks again waits for a writer that waits for him. It belongs to nobody: who unlocks
// need not be who locked.
//
// Thread safety: any fiber, any thread.
// Fairness: it is handed over, and nobody passes by who waits. A writer that waits holds back the
// readers that come after it. When a writer leaves, all readers that wait by then go in together,
// then the writer that came first: neither side starves.
// Memory ordering: what happened before unlock() is visible after the next lock() and
// lock_shared(); what happened before unlock_shared(), after the next lock().
// Lifetime: may be destroyed as soon as the last holder has unlocked it: an unlock that let the
// last one in may still be about to return. Destroying it while somebody waits ends the process.
class ABSL_LOCKABLE SharedMutex {
 public:
  constexpr SharedMutex() = default;
  ~SharedMutex() {
    if (word_.Peek() & internal::StateWord::kHasWaiters) [[unlikely]] DieWithWaiters();
  }
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  // Takes it for writing. Parks the fiber while anybody else holds it or waits; blocks the thread
  // when called from a plain one. Not interrupted by cancellation: Lock() is.
  void lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { LockUninterrupted(kWriter); }
  // Takes it for writing if it is free. Never blocks.
  [[nodiscard]] bool try_lock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) { return TryTake(kWriter); }
  // Gives it up. Never blocks. REQUIRES: it is held for writing
  void unlock() ABSL_UNLOCK_FUNCTION();
  // Takes it for writing, or gives up: kDeadlineExceeded or kCancelled: it was not taken. Parks the
  // fiber while anybody else holds it or waits; blocks the thread when called from a plain one.
  [[nodiscard]] absl::Status Lock(Deadline deadline) { return LockOrFail(kWriter, deadline); }

  // Takes it for reading. Parks the fiber while a writer holds it or waits; blocks the thread when
  // called from a plain one. Not interrupted by cancellation: LockShared() is.
  void lock_shared() ABSL_SHARED_LOCK_FUNCTION() { LockUninterrupted(kReader); }
  // Takes it for reading if no writer holds it or waits. Never blocks.
  [[nodiscard]] bool try_lock_shared() ABSL_SHARED_TRYLOCK_FUNCTION(true) {
    return TryTake(kReader);
  }
  // Gives it up. Never blocks. REQUIRES: it is held for reading
  void unlock_shared() ABSL_UNLOCK_FUNCTION();
  // Takes it for reading, or gives up: kDeadlineExceeded or kCancelled: it was not taken. Parks the
  // fiber while a writer holds it or waits; blocks the thread when called from a plain one.
  [[nodiscard]] absl::Status LockShared(Deadline deadline) { return LockOrFail(kReader, deadline); }

  // End the process unless a writer holds it, unless anybody does; they tell clang's analysis,
  // which cannot read a Status. Never blocks.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {
    if ((word_.Peek() & kWriter) == 0) [[unlikely]] DieUnheld("AssertHeld");
  }
  // Never blocks.
  void AssertReaderHeld() const ABSL_ASSERT_SHARED_LOCK() {
    if (word_.Peek() < kWriter) [[unlikely]] DieUnheld("AssertReaderHeld");
  }

 private:
  // | state                | word                         | a reader comes | a writer comes |
  // |----------------------|------------------------------|----------------|----------------|
  // | free                 | 0                            | goes in        | goes in        |
  // | read                 | n × kReader                  | goes in        | queues         |
  // | read, a writer waits | n × kReader, kHasWaiters     | queues         | queues         |
  // | written              | kWriter, perhaps kHasWaiters | queues         | queues         |
  static constexpr uint64_t kWriter = uint64_t{1} << internal::StateWord::kFirstBit;
  static constexpr uint64_t kReader = kWriter << 1;  // the rest is a count, too wide to overflow

  // What is taken is what is added to the word: kWriter or kReader.
  static bool MayTake(uint64_t word, uint64_t hold) {
    return hold == kWriter ? word == 0 : (word & (kWriter | internal::StateWord::kHasWaiters)) == 0;
  }
  bool TryTake(uint64_t hold);
  void LockUninterrupted(uint64_t hold);
  absl::Status LockOrFail(uint64_t hold, Deadline deadline);
  absl::Status LockQueued(internal::Wait& wait, uint64_t hold, Deadline deadline);
  // Lets in all readers that wait. Returns the word with them.
  uint64_t AdmitReaders(uint64_t word, internal::ClaimedWaiters& admitted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_);
  // Lets in who is next, if there is room. Returns the word to unlock with.
  uint64_t Admit(uint64_t word, internal::ClaimedWaiters& admitted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_);
  [[noreturn]] void DieUnheld(const char* operation) const;
  [[noreturn]] void DieWithWaiters();

  // While the queues are unlocked: kHasWaiters if and only if one of them is not empty; readers
  // wait only where a writer holds it or waits, and writers only where it is held.
  internal::StateWord word_;
  internal::WaitQueue readers_ ABSL_GUARDED_BY(word_);
  internal::WaitQueue writers_ ABSL_GUARDED_BY(word_);
};

// ReaderLock holds a SharedMutex for reading for the length of a scope.
//
//   fiber::ReaderLock hold(mu_);
//
// Thread safety: one fiber or thread.
class ABSL_SCOPED_LOCKABLE [[nodiscard]] ReaderLock {
 public:
  // Takes it. Parks the fiber; blocks the thread when called from a plain one.
  explicit ReaderLock(SharedMutex& mutex) ABSL_SHARED_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex.lock_shared();
  }
  // Takes over one that is held already. Never blocks.
  ReaderLock(SharedMutex& mutex, std::adopt_lock_t) ABSL_SHARED_LOCKS_REQUIRED(mutex)
      : mutex_(mutex) {}
  // Gives it up. Never blocks.
  ~ReaderLock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock_shared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& mutex_;
};

// WriterLock holds a SharedMutex for writing for the length of a scope.
//
//   fiber::WriterLock hold(mu_);
//
// Thread safety: one fiber or thread.
class ABSL_SCOPED_LOCKABLE [[nodiscard]] WriterLock {
 public:
  // Takes it. Parks the fiber; blocks the thread when called from a plain one.
  explicit WriterLock(SharedMutex& mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex.lock();
  }
  // Takes over one that is held already. Never blocks.
  WriterLock(SharedMutex& mutex, std::adopt_lock_t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex)
      : mutex_(mutex) {}
  // Gives it up. Never blocks.
  ~WriterLock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_SHARED_MUTEX_H_
