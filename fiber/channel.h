// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_CHANNEL_H_
#define WEFT_FIBER_CHANNEL_H_

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/deadline.h"
#include "fiber/internal/state_word.h"
#include "fiber/internal/wait.h"
#include "fiber/internal/wait_queue.h"

namespace fiber {

template <class T>
class Channel;

namespace internal {

template <class T, class H>
class ReceiveClause;
template <class T, class H>
class SendClause;

// What of a channel does not depend on the type of its items. channel.cc has the protocol.
class ChannelCore {
 public:
  ChannelCore(const ChannelCore&) = delete;
  ChannelCore& operator=(const ChannelCore&) = delete;

  // How a waiter's wait ended, in its outcome beside the clause.
  static constexpr uint32_t kClosedOutcome = 1u << 30;

 protected:
  static constexpr uint64_t kHasWaiters = StateWord::kHasWaiters;
  static constexpr uint64_t kClosed = uint64_t{1} << StateWord::kFirstBit;
  static constexpr uint64_t kOne = kClosed << 1;  // the rest of the word counts what is in the buffer

  enum class Attempt { kDone, kClosed, kWouldPark };

  explicit ChannelCore(size_t capacity) : capacity_(capacity) {}
  ~ChannelCore() {
    if ((word_.Peek() & kHasWaiters) != 0) [[unlikely]] DieWithWaiters();
  }

  static size_t CountIn(uint64_t word) { return word / kOne; }
  // `word` with kHasWaiters as it should be.
  uint64_t WithWaiters(uint64_t word) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_) {
    const bool has_waiters = !senders_.is_empty() || !receivers_.is_empty();
    return has_waiters ? word | kHasWaiters : word & ~kHasWaiters;
  }
  // The first of `queue` that has not given up, claimed; null: there is none.
  static Waiter* ClaimFirst(WaitQueue& queue, ClaimedWaiters& claimed);

  size_t Wrap(size_t index) const { return index < capacity_ ? index : index - capacity_; }

  // Parks in `queue`; `value` is where the peer finds or puts the item. Unlocks. OK: it has.
  absl::Status ParkLocked(Wait wait, WaitQueue& queue, void* value, uint64_t word,
                          Deadline deadline) ABSL_UNLOCK_FUNCTION(word_);
  bool CloseNow();

  static absl::Status ClosedForSend();
  static absl::Status ClosedAndDrained();
  static absl::Status WouldPark();
  [[noreturn]] void DieWithWaiters();

  // kHasWaiters: somebody waits, or has given up and not taken himself out yet. Guards everything below.
  StateWord word_;
  const size_t capacity_;
  size_t head_ ABSL_GUARDED_BY(word_) = 0;  // the index of the oldest item
  WaitQueue senders_ ABSL_GUARDED_BY(word_);
  WaitQueue receivers_ ABSL_GUARDED_BY(word_);
};

}  // namespace internal

// Channel hands items from those who send to those who receive, first in first out. It holds up to `capacity` of them;
// with none (a rendezvous) a send takes until somebody receives.
//
//   fiber::Channel<std::string> lines(100);
//   auto reader = fiber::Spawn([&] {
//     for (const std::string& line : lines) Use(line);      // until it is closed and drained
//   });
//   for (std::string line; std::getline(in, line);) {
//     if (absl::Status status = lines.Send(std::move(line)); !status.ok()) return status;
//   }
//   lines.Close();
//   reader.Join();
//
// | operation  | room or a receiver | full                           | an item or a sender | empty             | closed              |
// |------------|--------------------|--------------------------------|---------------------|-------------------|---------------------|
// | Send       | OK                 | parks                          |                     |                   | kFailedPrecondition |
// | TrySend    | OK                 | kDeadlineExceeded              |                     |                   | kFailedPrecondition |
// | Receive    |                    |                                | the oldest item     | parks             | what is left, then kOutOfRange |
// | TryReceive |                    |                                | the oldest item     | kDeadlineExceeded | likewise            |
// | Close      | true               | true; who sends keeps the item | true                | true; who receives gets kOutOfRange | false |
//
// A send that fails, for whatever reason, has not touched its item. A receive that fails has taken none.
//
// T needs a move constructor and a destructor that do not throw, and no more: they run under the channel's lock, so they
// must not park or use the channel either. Waiting allocates nothing, sending neither.
//
// Thread safety: any fiber, any thread.
// Fairness: those who wait are served in the order of their coming; nobody who comes later goes ahead of them. A fiber whose
// sends and receives all go through at once yields now and then; one that only tries (Try…) does not: call Yield().
// Memory ordering: what happened before a Send is visible after the Receive of its item; what happened before the k-th
// Receive is visible after the (k + capacity)-th Send; what happened before Close is visible to who learns of it.
// Lifetime: may be destroyed as soon as no call is under way but for one that another has let through and that is about to
// return. What it holds is destroyed with it. Destroying it while somebody waits ends the process.
template <class T>
class Channel : private internal::ChannelCore {
 public:
  static_assert(std::is_same_v<T, std::remove_cvref_t<T>>, "items are values");
  static_assert(std::is_nothrow_move_constructible_v<T> && std::is_nothrow_destructible_v<T>,
                "items are moved under a lock: move constructor and destructor must be noexcept");

  using value_type = T;

  // A rendezvous. Never blocks.
  Channel() : Channel(0) {}
  // One that holds up to `capacity` items, whose memory is taken at once. Throws std::bad_alloc. Never blocks.
  explicit Channel(size_t capacity)
      : ChannelCore(capacity), slots_(capacity == 0 ? nullptr : new Slot[capacity]) {}
  ~Channel() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (size_t count = CountIn(word_.Load()); count > 0; --count) {
      std::destroy_at(ItemAt(head_));
      head_ = Wrap(head_ + 1);
    }
  }

  // Sends `value`, which is moved from if and only if it is OK. kFailedPrecondition: closed, before or meanwhile;
  // kDeadlineExceeded, kCancelled. Parks the fiber; blocks the thread when called from a plain one.
  [[nodiscard]] absl::Status Send(T&& value, Deadline deadline = {}) {
    internal::Wait wait(WaitReason::kSend, this);
    if (absl::Status status = wait.Check(deadline); !status.ok()) [[unlikely]] return status;
    internal::ClaimedWaiters claimed;
    uint64_t word = word_.LockQueue();
    const Attempt attempt = SendLocked(value, word, claimed);
    if (attempt != Attempt::kWouldPark) {
      word_.UnlockQueue(word);
      claimed.Unpark();
      wait.SpendTurn();
      return attempt == Attempt::kDone ? absl::OkStatus() : ClosedForSend();
    }
    return ParkLocked(std::move(wait), senders_, &value, word, deadline);
  }
  // The same with a copy.
  [[nodiscard]] absl::Status Send(const T& value, Deadline deadline = {})
    requires std::is_copy_constructible_v<T>
  {
    return Send(T(value), deadline);
  }

  // The oldest item. kOutOfRange: closed and drained; kDeadlineExceeded, kCancelled. Parks the fiber; blocks the thread when
  // called from a plain one.
  absl::StatusOr<T> Receive(Deadline deadline = {}) {
    internal::Wait wait(WaitReason::kReceive, this);
    if (absl::Status status = wait.Check(deadline); !status.ok()) [[unlikely]] return status;
    internal::ClaimedWaiters claimed;
    Slot place;
    uint64_t word = word_.LockQueue();
    const Attempt attempt = ReceiveLocked(place.bytes, word, claimed);
    if (attempt != Attempt::kWouldPark) {
      word_.UnlockQueue(word);
      claimed.Unpark();
      wait.SpendTurn();
      if (attempt == Attempt::kClosed) return ClosedAndDrained();
      return TakeFrom(place);
    }
    absl::Status status = ParkLocked(std::move(wait), receivers_, place.bytes, word, deadline);
    if (!status.ok()) return status;
    return TakeFrom(place);
  }

  // Sends it if that takes no waiting; else kDeadlineExceeded. Never blocks.
  [[nodiscard]] absl::Status TrySend(T&& value) {
    internal::SchedulePoint();
    // The word alone says that nobody could take it: who asks in a loop disturbs nobody.
    if (const uint64_t seen = word_.Load();
        (seen & kClosed) == 0 && CountIn(seen) == capacity_ && (capacity_ > 0 || (seen & kHasWaiters) == 0)) {
      return WouldPark();
    }
    internal::ClaimedWaiters claimed;
    uint64_t word = word_.LockQueue();
    const Attempt attempt = SendLocked(value, word, claimed);
    word_.UnlockQueue(word);
    claimed.Unpark();
    if (attempt == Attempt::kDone) return absl::OkStatus();
    return attempt == Attempt::kClosed ? ClosedForSend() : WouldPark();
  }
  [[nodiscard]] absl::Status TrySend(const T& value)
    requires std::is_copy_constructible_v<T>
  {
    return TrySend(T(value));
  }

  // The oldest item if there is one, or somebody waits with one; kOutOfRange: closed and drained; else kDeadlineExceeded.
  // Never blocks.
  absl::StatusOr<T> TryReceive() {
    internal::SchedulePoint();
    // The word alone says that there is nothing to be had: who asks in a loop disturbs nobody.
    if (const uint64_t seen = word_.Load(); (seen & ~kClosed) == 0) {
      return seen == kClosed ? ClosedAndDrained() : WouldPark();
    }
    internal::ClaimedWaiters claimed;
    Slot place;
    uint64_t word = word_.LockQueue();
    const Attempt attempt = ReceiveLocked(place.bytes, word, claimed);
    word_.UnlockQueue(word);
    claimed.Unpark();
    if (attempt == Attempt::kDone) return TakeFrom(place);
    return attempt == Attempt::kClosed ? ClosedAndDrained() : WouldPark();
  }

  // Nothing can be sent from now on; what is in it can still be received. Who waits to send gets kFailedPrecondition and
  // keeps his item, who waits to receive gets kOutOfRange. True: this call closed it. Never blocks.
  bool Close() { return CloseNow(); }

  // How many items it holds at this moment. Never blocks.
  size_t size() const { return CountIn(word_.Load()); }
  // How many it can hold. Never blocks.
  size_t capacity() const { return capacity_; }
  // Never blocks.
  bool is_closed() const { return (word_.Load() & kClosed) != 0; }

  // An input iterator that receives. Its increment parks the fiber; blocks the thread when called from a plain one.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = T;
    using difference_type = std::ptrdiff_t;
    using pointer = T*;
    using reference = T&;

    Iterator() = default;
    explicit Iterator(Channel& channel) : channel_(&channel) { ++*this; }
    T& operator*() const { return *item_; }
    T* operator->() const { return &*item_; }
    Iterator& operator++() {
      item_.reset();
      if (absl::StatusOr<T> next = channel_->Receive(); next.ok()) {
        item_.emplace(*std::move(next));
      } else if (absl::IsResourceExhausted(next.status())) {
        throw std::bad_alloc();  // or it would look like the end, and nothing would tell otherwise
      }
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return !item_.has_value(); }

   private:
    Channel* channel_ = nullptr;
    mutable std::optional<T> item_;
  };
  // For a range-for: receives until it is closed and drained, or this fiber is cancelled or out of time; CheckCancelled()
  // tells which. Throws std::bad_alloc if there is no memory for the timer of this fiber's deadline. Parks the fiber; blocks
  // the thread when called from a plain one.
  Iterator begin() { return Iterator(*this); }
  // Never blocks.
  std::default_sentinel_t end() const { return {}; }

 private:
  template <class U, class H>
  friend class internal::ReceiveClause;
  template <class U, class H>
  friend class internal::SendClause;

  // Room for an item.
  struct Slot {
    alignas(T) std::byte bytes[sizeof(T)];
  };

  T* ItemAt(size_t index) const { return std::launder(reinterpret_cast<T*>(slots_[index].bytes)); }

  static absl::StatusOr<T> TakeFrom(Slot& place) {
    T& item = *std::launder(reinterpret_cast<T*>(place.bytes));
    absl::StatusOr<T> result(absl::in_place, std::move(item));
    std::destroy_at(&item);
    return result;
  }
  static T TakeItem(void* place) {
    T& item = *std::launder(static_cast<T*>(place));
    T result(std::move(item));
    std::destroy_at(&item);
    return result;
  }

  // Claim, move, and only then (by the caller, with the lock dropped) unpark: the peer finds everything in its place.
  Attempt SendLocked(T& value, uint64_t& word, internal::ClaimedWaiters& claimed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_) {
    if ((word & (kHasWaiters | kClosed)) != 0) [[unlikely]] {
      if ((word & kClosed) != 0) return Attempt::kClosed;
      internal::Waiter* receiver = ClaimFirst(receivers_, claimed);
      if (receiver != nullptr) new (receiver->value) T(std::move(value));
      word = WithWaiters(word);
      if (receiver != nullptr) return Attempt::kDone;
    }
    const size_t count = CountIn(word);
    if (count == capacity_) return Attempt::kWouldPark;
    new (static_cast<void*>(slots_[Wrap(head_ + count)].bytes)) T(std::move(value));
    word += kOne;
    return Attempt::kDone;
  }

  // Puts the item into raw memory at `place`.
  Attempt ReceiveLocked(void* place, uint64_t& word, internal::ClaimedWaiters& claimed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(word_) {
    const size_t count = CountIn(word);
    if (count > 0) {
      T* const item = ItemAt(head_);
      new (place) T(std::move(*item));
      std::destroy_at(item);
      const size_t tail = Wrap(head_ + count);  // where there is room now if it was full
      head_ = Wrap(head_ + 1);
      word -= kOne;
      if ((word & kHasWaiters) != 0) [[unlikely]] {
        if (internal::Waiter* sender = ClaimFirst(senders_, claimed); sender != nullptr) {
          new (static_cast<void*>(slots_[tail].bytes)) T(std::move(*static_cast<T*>(sender->value)));
          word += kOne;
        }
        word = WithWaiters(word);
      }
      return Attempt::kDone;
    }
    if ((word & kHasWaiters) != 0) {
      internal::Waiter* sender = ClaimFirst(senders_, claimed);
      if (sender != nullptr) new (place) T(std::move(*static_cast<T*>(sender->value)));
      word = WithWaiters(word);
      if (sender != nullptr) return Attempt::kDone;
    }
    return (word & kClosed) != 0 ? Attempt::kClosed : Attempt::kWouldPark;
  }

  const std::unique_ptr<Slot[]> slots_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_CHANNEL_H_
