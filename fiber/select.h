// SPDX-License-Identifier: Apache-2.0
//
// Select: do the first of several things that can be done.
//
//   absl::StatusOr<size_t> which = fiber::Select(
//       fiber::OnReceive(jobs, [&](Job job) { Run(job); }),
//       fiber::OnSend(results, std::move(result), [&] { have_result = false; }),
//       fiber::OnEvent(stop, [&] { done = true; }),
//       fiber::OnDeadline(absl::Seconds(5), [] { LOG_IDLE(); }));
#ifndef WEFT_FIBER_SELECT_H_
#define WEFT_FIBER_SELECT_H_

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/clause.h"
#include "fiber/internal/join.h"
#include "fiber/scope.h"

namespace fiber {

namespace internal {

struct RecordOf {
  template <class T>
  static Record& Get(JoinHandle<T>& handle) {
    return handle.Checked("OnJoin");
  }
};

template <class T, class H>
class ReceiveClause final : public Clause {
  static constexpr bool kTakesStatus = std::is_invocable_v<H&, absl::StatusOr<T>>;
  static_assert(kTakesStatus || std::is_invocable_v<H&, T>,
                "the handler takes a T or an absl::StatusOr<T>");
  static_assert(!std::is_convertible_v<absl::StatusOr<T>, T>,
                "nobody could tell which of the two the handler takes: make the item a struct with this member");

 public:
  ReceiveClause(Channel<T>& channel, H handler)
      : channel_(channel), handler_(std::move(handler)) {}

  StateWord* lock() override { return &channel_.word_; }
  bool TryLocked(ClaimedWaiters& claimed) override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    uint64_t word = channel_.word_.LockedWord();
    const auto attempt = channel_.ReceiveLocked(place_, word, claimed);
    channel_.word_.SetLockedWord(word);
    if (attempt == Channel<T>::Attempt::kWouldPark) return false;
    waiter.clause = attempt == Channel<T>::Attempt::kDone ? 0 : ChannelCore::kClosedOutcome;
    return true;
  }
  void LinkLocked() override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    waiter.value = place_;
    channel_.receivers_.PushBack(waiter);
    channel_.word_.SetLockedWord(channel_.word_.LockedWord() | Channel<T>::kHasWaiters);
  }
  void UnlinkLocked() override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!waiter.is_linked) return;
    channel_.receivers_.Remove(waiter);
    channel_.word_.SetLockedWord(channel_.WithWaiters(channel_.word_.LockedWord()));
  }
  absl::Status Finish(uint32_t outcome) override {
    if (outcome != 0) {
      if constexpr (kTakesStatus) {
        handler_(absl::StatusOr<T>(Channel<T>::ClosedAndDrained()));
        return absl::OkStatus();
      } else {
        return Channel<T>::ClosedAndDrained();
      }
    }
    if constexpr (kTakesStatus) {
      handler_(absl::StatusOr<T>(absl::in_place, Channel<T>::TakeItem(place_)));
    } else {
      handler_(Channel<T>::TakeItem(place_));
    }
    return absl::OkStatus();
  }

 private:
  Channel<T>& channel_;
  H handler_;
  alignas(T) std::byte place_[sizeof(T)];  // for the item
};

template <class T, class H>
class SendClause final : public Clause {
 public:
  SendClause(Channel<T>& channel, T* item, H handler)
      : channel_(channel), item_(item), handler_(std::move(handler)) {}
  SendClause(Channel<T>& channel, const T* original, H handler)
      : channel_(channel), original_(original), handler_(std::move(handler)) {}

  void Prepare() override {
    if constexpr (std::is_copy_constructible_v<T>) {
      if (original_ != nullptr) item_ = &copy_.emplace(*original_);
    }
  }
  StateWord* lock() override { return &channel_.word_; }
  bool TryLocked(ClaimedWaiters& claimed) override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    uint64_t word = channel_.word_.LockedWord();
    const auto attempt = channel_.SendLocked(*item_, word, claimed);
    channel_.word_.SetLockedWord(word);
    if (attempt == Channel<T>::Attempt::kWouldPark) return false;
    waiter.clause = attempt == Channel<T>::Attempt::kDone ? 0 : ChannelCore::kClosedOutcome;
    return true;
  }
  void LinkLocked() override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    waiter.value = item_;
    channel_.senders_.PushBack(waiter);
    channel_.word_.SetLockedWord(channel_.word_.LockedWord() | Channel<T>::kHasWaiters);
  }
  void UnlinkLocked() override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!waiter.is_linked) return;
    channel_.senders_.Remove(waiter);
    channel_.word_.SetLockedWord(channel_.WithWaiters(channel_.word_.LockedWord()));
  }
  absl::Status Finish(uint32_t outcome) override {
    if (outcome != 0) return Channel<T>::ClosedForSend();
    handler_();
    return absl::OkStatus();
  }

 private:
  Channel<T>& channel_;
  T* item_ = nullptr;            // what is sent
  const T* original_ = nullptr;  // what is copied first; null: *item_ itself is moved from
  std::optional<T> copy_;
  H handler_;
};

template <class H>
class JoinClause final : public Clause {
 public:
  JoinClause(Record& fiber, H handler) : fiber_(fiber), handler_(std::move(handler)) {}

  void Prepare() override { CheckJoinable(fiber_, "OnJoin"); }
  bool IsReady() override { return IsDone(fiber_); }
  bool TryLink(Wait&) override { return TryLinkJoin(fiber_, waiter); }
  void Unlink(Wait&) override { UnlinkJoin(fiber_, waiter); }
  absl::Status Finish(uint32_t) override {
    handler_();
    return absl::OkStatus();
  }

 private:
  Record& fiber_;
  H handler_;
};

template <class H>
class EventClause final : public Clause {
 public:
  EventClause(Event& event, H handler) : event_(event), handler_(std::move(handler)) {}

  bool IsReady() override { return event_.is_set(); }
  bool TryLink(Wait&) override { return event_.TryLink(waiter); }
  void Unlink(Wait&) override { event_.Unlink(waiter); }
  absl::Status Finish(uint32_t) override {
    handler_();
    return absl::OkStatus();
  }

 private:
  Event& event_;
  H handler_;
};

template <class H>
class CancelClause final : public Clause {
 public:
  CancelClause(CancelToken token, H handler)
      : token_(std::move(token)), handler_(std::move(handler)) {}

  bool IsReady() override { return token_.is_cancelled(); }
  bool TryLink(Wait&) override { return token_.node_ == nullptr || token_.node_->Link(waiter); }
  void Unlink(Wait&) override {
    if (token_.node_ != nullptr) token_.node_->Unlink(waiter);
  }
  absl::Status Finish(uint32_t) override {
    handler_();
    return absl::OkStatus();
  }

 private:
  CancelToken token_;
  H handler_;
};

template <class H>
class DeadlineClause final : public Clause {
 public:
  DeadlineClause(Deadline deadline, H handler)
      : deadline_(deadline), handler_(std::move(handler)) {}

  bool IsReady() override { return deadline_.is_past(); }
  Deadline deadline() const override { return deadline_; }
  absl::Status Finish(uint32_t) override {
    handler_();
    return absl::OkStatus();
  }

 private:
  const Deadline deadline_;
  H handler_;
};

template <class H>
class OtherwiseClause final : public Clause {
 public:
  explicit OtherwiseClause(H handler) : handler_(std::move(handler)) { is_otherwise = true; }

  absl::Status Finish(uint32_t) override {
    handler_();
    return absl::OkStatus();
  }

 private:
  H handler_;
};

template <class C>
concept IsClause = std::derived_from<std::remove_cvref_t<C>, Clause>;

}  // namespace internal

// Goes ahead with the first of the clauses that can, and calls its handler; with one of them at random, all alike, if
// several can. The others leave no trace. The index of the clause that went ahead.
//
// kCancelled, kDeadlineExceeded (the ambient one): no clause did. kOutOfRange, kFailedPrecondition: the clause that went
// ahead found its channel closed, and its handler takes no status, see there. kResourceExhausted: no memory for a timer.
//
// Parks the fiber; blocks the thread when called from a plain one; with an Otherwise clause it waits for nobody.
//
// Handlers are called once nothing is locked or linked any more, in this fiber: they may park, return and throw.
// What a clause names must exist until Select returns.
//
// Without any clause that is enabled it waits to be cancelled.
template <internal::IsClause... C>
[[nodiscard]] absl::StatusOr<size_t> Select(C&&... clauses) {
  constexpr size_t kCount = sizeof...(C);
  std::array<internal::Clause*, kCount> all = {&clauses...};
  std::array<uint32_t, kCount> order;
  std::array<internal::StateWord*, kCount> locks;
  return internal::RunSelect({.clauses = all, .order = order, .locks = locks});
}

// ClauseList is a number of clauses that is known at run time only. It can be used again and again.
//
//   fiber::ClauseList inputs;
//   for (fiber::Channel<int>* each : channels) {
//     inputs.Add(fiber::OnReceive(*each, [&](absl::StatusOr<int> n) { … }));
//   }
//   while (fiber::Select(inputs).ok()) { … }
//
// A clause that sends refers to the item that it was given, which must exist as long as the list.
//
// Thread safety: one fiber or thread.
class ClauseList {
 public:
  // Its index is how many were added before. Throws std::bad_alloc. Never blocks.
  template <internal::IsClause C>
  void Add(C clause) {
    auto owned = std::make_unique<C>(std::move(clause));
    order_.reserve(owned_.size() + 1);
    locks_.reserve(owned_.size() + 1);
    clauses_.reserve(owned_.size() + 1);
    owned_.push_back(std::move(owned));
    clauses_.push_back(owned_.back().get());
    order_.push_back(0);
    locks_.push_back(nullptr);
  }
  // Not by a handler of the list: it is what is cleared. Never blocks.
  void Clear() {
    if (selects_ > 0) internal::Fatal("ClauseList::Clear during a Select over it: a handler of the list must not clear it");
    owned_.clear();
    clauses_.clear();
    order_.clear();
    locks_.clear();
  }
  // Never blocks.
  size_t size() const { return owned_.size(); }

 private:
  friend absl::StatusOr<size_t> Select(ClauseList& list);

  int selects_ = 0;  // under way: a handler may select over its list again
  std::vector<std::unique_ptr<internal::Clause>> owned_;
  std::vector<internal::Clause*> clauses_;
  std::vector<uint32_t> order_;
  std::vector<internal::StateWord*> locks_;
};

// As above, over a list.
[[nodiscard]] inline absl::StatusOr<size_t> Select(ClauseList& list) {
  struct Counted {
    explicit Counted(int& count) : count(count) { ++count; }
    ~Counted() { --count; }
    int& count;
  } counted(list.selects_);
  return internal::RunSelect({.clauses = list.clauses_, .order = list.order_, .locks = list.locks_});
}

// What follows makes clauses. Each is a value, used by one Select at a time. Never blocks.

// Receives an item. handler(absl::StatusOr<T>): kOutOfRange if the channel is closed and drained. handler(T): it is not
// called then, and Select returns kOutOfRange.
template <class T, class H>
auto OnReceive(Channel<T>& channel, H handler) {
  return internal::ReceiveClause<T, H>(channel, std::move(handler));
}

// Sends `item`, which is moved from if and only if this clause goes ahead; then handler(). If the channel is closed, Select
// returns kFailedPrecondition.
template <class T, class H>
auto OnSend(Channel<T>& channel, std::type_identity_t<T>&& item, H handler) {
  return internal::SendClause<T, H>(channel, &item, std::move(handler));
}
// The same with a copy of `item`.
template <class T, class H>
  requires std::is_copy_constructible_v<T>
auto OnSend(Channel<T>& channel, const std::type_identity_t<T>& item, H handler) {
  return internal::SendClause<T, H>(channel, &item, std::move(handler));
}

// The fiber has ended. Its outcome stays for Join(). REQUIRES: the handle is valid, and nobody else joins it.
template <class T, class H>
auto OnJoin(JoinHandle<T>& handle, H handler) {
  return internal::JoinClause<H>(internal::RecordOf::Get(handle), std::move(handler));
}

template <class T, class H>
auto OnJoin(Child<T>& child, H handler) {
  return internal::EventClause<H>(internal::ChildEvent::Get(child), std::move(handler));
}

// The event is set.
template <class H>
auto OnEvent(Event& event, H handler) {
  return internal::EventClause<H>(event, std::move(handler));
}

// The time has come.
template <class H>
auto OnDeadline(Deadline deadline, H handler) {
  return internal::DeadlineClause<H>(deadline, std::move(handler));
}

// The token's source is cancelled.
template <class H>
auto OnCancel(CancelToken token, H handler) {
  return internal::CancelClause<H>(std::move(token), std::move(handler));
}

// If nothing else can go ahead at once.
template <class H>
auto Otherwise(H handler) {
  return internal::OtherwiseClause<H>(std::move(handler));
}

// `clause`, if `is_enabled`; otherwise it never goes ahead. Like a nil channel in Go.
template <internal::IsClause C>
C When(bool is_enabled, C clause) {
  clause.is_enabled = is_enabled;
  return clause;
}

}  // namespace fiber

#endif  // WEFT_FIBER_SELECT_H_
