// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_DESCRIPTOR_H_
#define WEFT_NETPOLL_INTERNAL_DESCRIPTOR_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait_queue.h"
#include "fiber/wait_reason.h"
#include "netpoll/internal/backend.h"
#include "netpoll/internal/direction.h"
#include "netpoll/internal/poll_slot.h"

namespace netpoll::internal {

class Poller;

// Flow is one direction of a descriptor: who has it, who waits for it, until when.
struct Flow {
  [[no_unique_address]] PollSlot slot;
  bool is_drained = false;           // the last system call took all there was; by whoever has the flow locked
  Atomic<int64_t> deadline_ns{fiber::internal::kNeverNs};  // SetReadDeadline, SetWriteDeadline; order: poll-slot
  fiber::internal::WaitQueue queue;  // for the lock; guarded by the descriptor's state word
};

// Descriptor is an open file descriptor that a poller watches, from Create() until it is closed, once for its life.
//
// Who keeps what. The *owner* (a TcpStream, say) keeps the record. *References* keep the descriptor open: each call that
// uses it holds one, a call that locks a flow or queues for it too. Close() marks it closing: no new references from then
// on. Whoever drops the last one closes it, so nobody ever uses a number that has been closed and given out anew. Calls
// that wait do not hold that up: Close() claims them, gives up their references for them, and unparks them last of all.
//
// | word           | set by         | means                                                                      |
// |----------------|----------------|----------------------------------------------------------------------------|
// | kQueueLock     | (StateWord)    | flows' queues are being worked on                                          |
// | kHasWaiters    | a late call    | somebody is queued for a flow                                              |
// | kClosing       | Close          | no new references                                                          |
// | kReadLocked    | FlowLock       | a call has the read flow, and a reference                                  |
// | kWriteLocked   | FlowLock       | likewise                                                                   |
// | kHasOwner      | Create … Drop  | the record may not be used again                                           |
// | kClosed        | the last reference | the descriptor is closed; without owner, the record is free            |
// | refs           | calls          | kRef each                                                                  |
//
// Records are never given back: a poller that comes with a stale event finds a record, compares the tag (which holds a
// generation), and if it is used again in that very moment marks a slot without need: somebody tries a system call in vain.
//
// order: poll-end — store-load: Close and Orphan store ended_, then look at the slots; a call links its wait, then loads
// ended_. One of them sees the other. seq_cst. Likewise Create and the poller's end: the one makes the record this process's, then
// looks whether the poller has ended; the other says so, then goes through the records of this process.
class alignas(128) Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  // Takes over `fd`, which is non-blocking, unless it fails: kResourceExhausted, kInvalidArgument (nothing that can be
  // watched), kFailedPrecondition (the poller's runtime has ended). `is_tcp`: a read that returns less than
  // asked for has emptied it, but for urgent data, the end and errors. Of unix sockets that is not true: they stop short
  // where descriptors were sent along, with more behind and no further edge.
  static absl::StatusOr<Descriptor*> Create(Poller& poller, int fd, bool is_tcp);

  // The owner's side. ------------------------------------------------------------------------------------------------

  // See above. A second one does nothing.
  void Close();
  // Close(), but the number is given to the caller. REQUIRES: no call is under way; -1 if it was closed, or is a copy.
  int Release();
  // Close(), and the record is the owner's no longer.
  void Drop();
  bool is_closing() const { return (state_.Load() & kClosing) != 0; }
  // Its runtime has ended, or is that of the process this one was forked from: there will be no news.
  bool is_orphan() const {
    return ended_.load(std::memory_order_relaxed) == kOrphaned || !IsOwnProcess();
  }

  // For the next calls and those parked. Any time before Drop.
  void SetDeadline(Direction direction, fiber::Deadline deadline);

  // -1 when closing.
  int OpenFd() const { return is_closing() ? -1 : fd_; }

  // Anybody's. -------------------------------------------------------------------------------------------------------

  // False: closing, or a copy in a child of fork().
  [[nodiscard]] bool TryRef();
  void Unref();
  // Its runtime has ended, if it was that of `poller`.
  void Orphan(Poller& poller);

  // The following need a reference.
  int fd() const { return fd_; }
  Poller& poller() const { return *poller_; }
  // Whether a short read has emptied it.
  bool short_read_drains() const {
    return is_tcp_ && sticky_.load(std::memory_order_relaxed) == 0;
  }
  Flow& flow(Direction direction) { return flows_[static_cast<int>(direction)]; }
  // By whoever has the read flow locked: an accepted descriptor that could not be watched yet.
  int& pending_fd() { return pending_fd_; }

  // The poller's side: any thread, whatever state it is in. ------------------------------------------------------------

  uint64_t tag() const {
    constexpr uint64_t kMask = (uint64_t{1} << kGenerationBits) - 1;
    return reinterpret_cast<uint64_t>(this) / alignof(Descriptor) << kGenerationBits |
           (generation_.load(std::memory_order_relaxed) & kMask);
  }
  static Descriptor* OfTag(uint64_t tag) {
    return reinterpret_cast<Descriptor*>((tag >> kGenerationBits) * alignof(Descriptor));
  }
  void OnEvent(uint32_t bits);

  Descriptor* next_free = nullptr;  // the slab's

 private:
  friend class FlowClause;
  friend class FlowLock;
  enum Ended : uint32_t { kAlive, kClosedByOwner, kOrphaned };

  static constexpr int kGenerationBits = 23;  // 48 bits of address, of which alignment leaves 41
  static constexpr uint64_t kClosing = 4;
  static constexpr uint64_t kReadLocked = 8;
  static constexpr uint64_t kWriteLocked = 16;
  static constexpr uint64_t kHasOwner = 32;
  static constexpr uint64_t kClosed = 64;
  static constexpr uint64_t kRef = 256;
  static constexpr uint64_t kHasWaiters = fiber::internal::StateWord::kHasWaiters;
  static constexpr uint64_t kQueueLock = fiber::internal::StateWord::kQueueLock;

  static uint64_t LockBit(Direction direction) {
    return direction == Direction::kRead ? kReadLocked : kWriteLocked;
  }
  static bool IsUnused(uint64_t state) { return (state & kClosing) != 0 && state < kRef; }

  [[nodiscard]] bool TryLock(Direction direction);
  absl::Status LockSlow(Direction direction, fiber::WaitReason reason, fiber::Deadline deadline);
  // Of who was queued for a flow and has given up: takes him out, with his reference.
  void LeaveQueue(Flow& flow, fiber::internal::Waiter& waiter);
  void Unlock(Direction direction);
  void UnlockSlow(Direction direction);
  bool AreQueuesEmpty() const { return flows_[0].queue.is_empty() && flows_[1].queue.is_empty(); }
  absl::Status CheckAlive() const;
  bool IsOwnProcess() const;
  uint64_t Change(uint64_t set, uint64_t clear);
  void CloseNow();
  void CloseInFork();
  void Recycle();

  fiber::internal::StateWord state_{kClosing | kClosed};
  Atomic<uint32_t> ended_{kAlive};   // order: poll-end
  int fd_ = -1;                      // const while there are references
  Poller* poller_ = nullptr;         // likewise
  Flow flows_[2];
  Atomic<uint32_t> sticky_{0};       // events after which a short read means nothing
  Atomic<uint32_t> generation_{0};   // counts the record's uses
  int pending_fd_ = -1;
  bool is_tcp_ = false;
  Atomic<uint64_t> fork_generation_{0};  // of the process that made it; const while there is an owner. order: poll-end
};
static_assert(sizeof(Descriptor) == 128);

// FlowLock is a call that uses a flow: it has a reference and, one at a time, the flow.
//
//   FlowLock lock(*descriptor, Direction::kRead, WaitReason::kRead, deadline);
//   if (!lock.status().ok()) return lock.status();
//   for (;;) {
//     lock.flow().slot.ClearReady();
//     system call; not EAGAIN: return
//     if (absl::Status status = lock.Await(); !status.ok()) return status;
//   }
class FlowLock {
 public:
  // Queues for the flow, then looks at cancellation and deadlines: after that the caller may go ahead, if status() is
  // OK. Parks the fiber while somebody else has the flow.
  FlowLock(Descriptor& descriptor, Direction direction, fiber::WaitReason reason,
           fiber::Deadline deadline);
  ~FlowLock() {
    if (has_lock_) descriptor_.Unlock(direction_);
  }
  FlowLock(const FlowLock&) = delete;
  FlowLock& operator=(const FlowLock&) = delete;

  const absl::Status& status() const { return status_; }
  // Whether it still has the flow, and the reference: false after Close() has ended a wait.
  bool has_lock() const { return has_lock_; }
  Flow& flow() const { return descriptor_.flow(direction_); }
  Descriptor& descriptor() const { return descriptor_; }

  // For calls that take several system calls: whether the next may be made. Fails as Await() does, without waiting.
  absl::Status Check() const;
  // Waits for news. Parks the fiber. If it is not OK, the descriptor may be gone.
  absl::Status Await() { return AwaitUntil(fiber::Deadline::Never()); }
  // Waits for time to pass, whatever news there is.
  absl::Status Pause(fiber::Deadline until) { return AwaitUntil(until); }

 private:
  absl::Status CheckCaller() const;
  absl::Status AwaitUntil(fiber::Deadline pause);

  Descriptor& descriptor_;
  const fiber::Deadline deadline_;
  const Direction direction_;
  const fiber::WaitReason reason_;
  bool has_lock_ = false;
  absl::Status status_;
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_DESCRIPTOR_H_
