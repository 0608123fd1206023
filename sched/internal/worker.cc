// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/worker.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "fiber/internal/block_signals.h"
#include "fiber/internal/context.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/overflow.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/system_calls.h"
#include "sched/internal/core.h"
#include "sched/internal/stall_probe.h"

namespace sched::internal {

using fiber::internal::After;
using fiber::internal::StackDepot;
using fiber::internal::State;
using fiber::internal::System;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

Worker::Worker(Core& core, RunQueue& queue, uint32_t index)
    : core_(core), queue_(queue), index_(index), random_((index + 1) * 0x9E3779B97F4A7C15u) {}

bool Worker::IsThreadGone() {
  if (has_thread_ && pthread_tryjoin_np(thread_, nullptr) == 0) has_thread_ = false;
  return !has_thread_;
}

bool Worker::Start() {
  first_state_ = fiber::internal::NewThreadState();
  if (first_state_ == nullptr) return false;
  has_thread_ = System().pthread_create(&thread_, nullptr, &Entry, this) == 0;
  return has_thread_;
}

void Worker::Join() {
  pthread_join(thread_, nullptr);  // cannot fail: it is joined once, and by others
  has_thread_ = false;
}

void Worker::Leave() {
  published_state_.store(nullptr, std::memory_order_release);  // order: publish
  mode_.store(Mode::kGone, std::memory_order_seq_cst);         // order: stand
}

void Worker::Call() {
  calls_.fetch_add(1, std::memory_order_release);  // order: call
  fiber::internal::FutexWake(calls_, 1);
}

void Worker::AwaitCall(int64_t deadline_ns) {
  while (!is_called() && fiber::internal::FutexWait(calls_, calls_before_rest_, deadline_ns)) {
  }
}

void* Worker::Entry(void* worker) {
  static_cast<Worker*>(worker)->Main();
  return nullptr;
}

namespace {

// Which asks the thread where it is.
void UnblockProbeSignal() {
  const int probe = InstallProbeSignal();
  if (probe == 0) return;
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, probe);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // cannot fail with these arguments
}

}  // namespace

void Worker::Main() {
  fiber::internal::AdoptThreadState(std::move(first_state_));
  fiber::internal::BlockSignals(core_.programs_signals());
  UnblockProbeSignal();
  fiber::internal::AlternateStack alternate_stack;
  pthread_setname_np(pthread_self(), "weft-worker");  // only a name: may fail
  // Sleeps of 100 us are to be honoured; the default lets the kernel be 50 us late. Refused: as late as it likes.
  System().prctl(PR_SET_TIMERSLACK, 10'000UL);
  state_ = &fiber::internal::ThisThread();
  fiber::internal::BecomeWorker(*state_, core_, this);
  thread_id_.store(gettid(), std::memory_order_relaxed);
  published_state_.store(state_, std::memory_order_release);  // order: publish
  role_ = Idle::Role::kBusy;
  if (core_.crew().AwaitSeat(*this)) {
    BeginTurns();
    RunFibers();
  }
  fiber::internal::StopBeingWorker(*state_);
  fiber::internal::LeaveSignalsBlocked();
}

// Until the runtime is stopped, or nobody needs this thread.
void Worker::RunFibers() {
  while (Record* next = FindNext()) {
    AddOne(queue_.runs);
    fiber::internal::Switch(*state_, next, After::kNothing);
  }
  if (core_.is_stopped()) core_.InterruptSleeper();  // the next one may sleep on
}

// What the fiber's thread would have run goes to others, first the fibers that are queued here, then the seat.
void Worker::BeginBlocking() {
  PayKeeper();
  // The monitor may have made it stand, too early for what it took since.
  if (core_.crew().has_spares()) (void)core_.crew().StandUp(*this);
  core_.HandOver(queue_);
  // Somebody who is awake next looks for fibers, events and timers anyway; the monitor calls for another if that is not enough.
  if (is_standing() && core_.idle().idle() == 0) core_.crew().FillSeats();
}

// The fiber goes on here, beside whoever has the seat now, until its next scheduling point.
void Worker::EndBlocking() {
  if (is_standing() && !core_.crew().TryTakeSeat(*this)) {
    queue_.maintenance_at.store(tick_, std::memory_order_relaxed);
    return;
  }
  core_.monitor().WakeIfAsleep();
}

// At a scheduling point, on the thread's own stack, without a seat or with one too many. True: seated again, maybe much
// later. False: the thread is to end.
bool Worker::StopStanding() {
  if (core_.crew().TryTakeSeat(*this)) return true;
  core_.HandOver(queue_);
  PayKeeper();
  // It may have been the keeper, who comes back for these too: the next is to be that.
  if (StackDepot::Get().HasWaiters()) core_.InterruptSleeper();
  if (role_ == Idle::Role::kSearcher) {
    role_ = Idle::Role::kBusy;
    (void)core_.idle().StopSearching();
    core_.WakeIfIdle();  // whoever relied on it
  }
  // And what came to the shared queues from its own poll, without a word.
  if (core_.HasFibersToFind()) core_.WakeIfIdle();
  fiber::internal::GiveStacks(*state_);
  queue_.waiting_since_ns.store(0, std::memory_order_relaxed);
  if (!core_.crew().Rest(*this)) return false;
  BeginTurns();
  return true;
}

// When it is called: first what is due, then what is ready, and then what has not started. Where many block one after the
// other, those who wait for an event or a timer would otherwise come after all of them. Not always: each may have one turn only.
void Worker::BeginTurns() {
  queue_.maintenance_at.store(tick_, std::memory_order_relaxed);
  poll_at_ = tick_ + kMaintenanceRounds;
  is_unstarted_turn_ = core_.CountCall() % kUnstartedShare != 0;  // the next is the other's
}

void Worker::LeaveInFork() { fiber::internal::LeaveInFork(*state_); }

// xorshift64* (Marsaglia; Vigna): for the order of victims only.
uint64_t Worker::Random() {
  random_ ^= random_ >> 12;
  random_ ^= random_ << 25;
  random_ ^= random_ >> 27;
  return random_ * 0x2545F4914F6CDD1Du;
}

void Worker::PushReady(Record& fiber) {
  if (queue_.ring.Push(fiber)) [[likely]] return;
  // Full: the older half moves to the shared queue, and the fiber goes behind it, so that order is kept there too. In
  // portions: this may be on the stack of a fiber.
  Record* oldest[64];
  for (size_t moved = 0; moved < RunQueue::kRingSlots / 2;) {
    const size_t count = queue_.ring.TakeHalf(oldest);
    if (count == 0) break;  // thieves
    for (size_t i = 0; i + 1 < count; ++i) oldest[i]->next = oldest[i + 1];
    oldest[count - 1]->next = nullptr;
    core_.inject().PushList(oldest[0], oldest[count - 1], count);
    moved += count;
  }
  core_.WakeIfIdle();
  if (!queue_.ring.Push(fiber)) core_.inject().Push(fiber);
}

void Worker::PushUnstarted(Record& fiber) {
  if (queue_.unstarted.Push(fiber)) [[likely]] return;
  // Full: the older half moves to the shared queue.
  Record* first = nullptr;
  Record* last = nullptr;
  size_t count = 0;
  while (count < RunQueue::kUnstartedSlots / 2) {
    Record* oldest = queue_.unstarted.TakeOldest();
    if (oldest == nullptr) break;
    oldest->next = nullptr;
    if (first == nullptr) {
      first = oldest;
    } else {
      last->next = oldest;
    }
    last = oldest;
    ++count;
  }
  if (first != nullptr) core_.unstarted().PushList(first, last, count);
  core_.WakeIfIdle();
  if (!queue_.unstarted.Push(fiber)) core_.unstarted().Push(fiber);
}

// False: look again, the next-slot first.
bool Worker::TakeQueued(WaitBlock* spare, Record** taken) {
  // Not by ticks: a fiber that starts and joins others in a loop may leave every eighth to the next-slot.
  Record* fiber = nullptr;
  if (++turns_ % kUnstartedShare == 0) fiber = queue_.unstarted.TakeOldest();
  if (fiber == nullptr) {
    fiber = queue_.ring.Pop();
    // While it runs, the caches get what those behind it will miss: of the next its frames, and first its record.
    if (const Record* next = queue_.ring.Peek(0); next != nullptr) fiber::internal::PrefetchStack(*next);
    if (const Record* later = queue_.ring.Peek(2); later != nullptr) __builtin_prefetch(later);
  }
  if (fiber == nullptr) fiber = queue_.unstarted.TakeNewest();
  *taken = fiber;
  if (fiber == nullptr) {
    if (next_runs_ == 0) return true;
    next_runs_ = 0;  // nobody else was kept out
    return queue_.next_slot.load(std::memory_order_relaxed) == nullptr;
  }
  next_runs_ = 0;
  AddOne(queue_.runs);
  if (fiber->state.load(std::memory_order_relaxed) != State::kNew) return true;
  if (fiber::internal::BindStack(*state_, *fiber, spare)) return true;
  OweKeeper();  // who is to come back for those that wait for a stack
  return false;
}

// A fiber taken from elsewhere, ready to run; null: it is New and waits for a stack.
Record* Worker::Bound(Record* fiber) {
  if (fiber == nullptr || fiber->state.load(std::memory_order_relaxed) != State::kNew) return fiber;
  if (fiber::internal::BindStack(*state_, *fiber, nullptr)) return fiber;
  OweKeeper();
  return nullptr;
}

Record* Worker::FindNext() {
  fiber::internal::Backoff backoff;
  for (const Record* yielded = std::exchange(yielded_, nullptr);; yielded = nullptr) {
    if (core_.is_stopped()) return nullptr;
    if (blocker_ != nullptr) [[unlikely]] LookBack();
    if (core_.crew().has_surplus()) [[unlikely]] (void)core_.crew().StandUp(*this);
    if (is_standing()) [[unlikely]] {
      if (!StopStanding()) return nullptr;
    }
    if (is_maintenance_due()) {
      if (Record* fiber = Maintain(yielded); fiber != nullptr) return Found(fiber);
    }
    Record* fiber = TakeLocal(nullptr);
    if (fiber == nullptr) fiber = TakeShared();
    if (fiber != nullptr) return Found(HasJustYielded(*fiber, yielded) ? InsteadOf(*fiber) : fiber);
    DoChores();
    if (core_.queues().size() > 1) {
      if (EventSource* source = core_.installed_source(); source != nullptr) {
        AddOne(queue_.polls);
        source->Poll(0);
        if (Record* fiber = TakeLocal(nullptr); fiber != nullptr) return Found(fiber);
      }
      if (role_ == Idle::Role::kSearcher || core_.idle().TryStartSearching(core_.worker_count())) {
        role_ = Idle::Role::kSearcher;
        if (Record* fiber = TakeFromOthers(); fiber != nullptr) return Found(fiber);
      }
    }
    Sleep(backoff);
  }
}

// A fiber to run, found on the thread's own stack: there may be more where it came from.
Record* Worker::Found(Record* fiber) {
  PayKeeper();
  core_.monitor().WakeIfAsleep();
  if (role_ == Idle::Role::kSearcher) {
    role_ = Idle::Role::kBusy;
    if (core_.idle().StopSearching()) core_.WakeIfIdle();
  } else if (core_.idle().idle() > 0 && (queue_.has_fibers() || core_.inject().size() > 0)) {
    core_.WakeIfIdle();
  }
  if (fiber->is_blocker()) [[unlikely]] GiveWay(*fiber);
  // The monitor may have made it stand since it looked last: then nobody looks for what it has taken along.
  if (is_standing()) [[unlikely]] core_.HandOver(queue_);
  return fiber;
}

// Before a fiber that blocked when it ran last: as if it had said so (fiber::Blocking). Otherwise each of many such fibers would
// hold up all others until the monitor has seen it.
void Worker::GiveWay(Record& fiber) {
  if (!core_.crew().has_spares()) return;
  blocker_ = &fiber;
  blocker_since_ns_ = fiber::internal::MonotonicNs();
  blocker_cpu_ns_ = fiber::internal::ThreadCpuNs();
  BeginBlocking();
  queue_.maintenance_at.store(tick_, std::memory_order_relaxed);  // from its next scheduling point this thread comes back
}

// It has not blocked this time, though it may have computed for long: no blocker any more. The record may be another's by now, who
// loses a hint at most.
void Worker::LookBack() {
  const int64_t computed_ns = fiber::internal::ThreadCpuNs() - blocker_cpu_ns_;
  if (fiber::internal::MonotonicNs() - blocker_since_ns_ - computed_ns < kBlockedNs) blocker_->set_blocker(false);
  blocker_ = nullptr;
}

// What is not urgent, and may take a while: not while others rely on it to search.
void Worker::DoChores() {
  if (role_ != Idle::Role::kBusy) return;
  core_.trimmer().Step(fiber::internal::MonotonicNs(), core_.Activity());
  if (StackDepot::Get().HasWaiters()) core_.RetryStacks();
}

// A turn for what does not come by itself: timers, events, and fibers queued from outside, one of which goes first.
Record* Worker::Maintain(const Record* yielded) {
  ExpireTimers();
  // By the monitor: nobody has polled for long, so rounds are long, and 61 of them too long for who waits in the shared queues.
  const bool is_asked_for = queue_.maintenance_at.load(std::memory_order_relaxed) == 0;
  queue_.maintenance_at.store(
      tick_ + (queue_.timers.next_due_ns() == kNeverNs ? kMaintenanceRounds : kTimerRounds), std::memory_order_relaxed);
  if (tick_ < poll_at_ && !is_asked_for) return nullptr;
  poll_at_ = tick_ + kMaintenanceRounds;
  DoChores();
  AddOne(queue_.polls);
  if (EventSource* source = core_.installed_source(); source != nullptr) source->Poll(0);
  Record* const fiber = core_.inject().size() > kLongLine ? TakeShared() : TakeOneShared();
  if (fiber == nullptr || !HasJustYielded(*fiber, yielded)) return fiber;
  if (Record* other = TakeLocal(nullptr); other != nullptr) {
    core_.inject().Push(*fiber);
    return other;
  }
  return InsteadOf(*fiber);
}

// Whether nobody has had a turn since `fiber` yielded. What has not started is another in the same record.
bool Worker::HasJustYielded(const Record& fiber, const Record* yielded) {
  return &fiber == yielded && fiber.state.load(std::memory_order_relaxed) != State::kNew;
}

// Somebody from the shared queues instead of one that has just yielded, if there is anybody.
Record* Worker::InsteadOf(Record& yielded) {
  Record* const other = TakeOneShared();
  if (other == nullptr) return &yielded;
  core_.inject().Push(yielded);  // not the ring: it may be a blocker
  return other;
}

// One fiber queued from outside, so that a worker with plenty of its own does not forget them. From either queue by turns:
// fibers that yield in a loop keep the inject queue from ever being empty.
Record* Worker::TakeOneShared() {
  size_t count;
  is_unstarted_turn_ = !is_unstarted_turn_;
  if (is_unstarted_turn_) {
    if (Record* fiber = Bound(core_.unstarted().Take(1, &count)); fiber != nullptr) return fiber;
  }
  if (Record* fiber = core_.inject().Take(1, &count); fiber != nullptr) return fiber;
  return Bound(core_.unstarted().Take(1, &count));
}

// A fair share of a shared queue, into the own queue, from either by turns as above. Few at once: large batches thrash.
Record* Worker::TakeShared() {
  is_unstarted_turn_ = !is_unstarted_turn_;
  if (is_unstarted_turn_) {
    if (Record* fiber = TakeSharedUnstarted(); fiber != nullptr) return fiber;
  }
  size_t count;
  if (Record* list = core_.inject().Take(ShareOf(core_.inject()), &count); list != nullptr) {
    for (Record* fiber = list->next; fiber != nullptr;) {
      Record* next = fiber->next;
      PushReady(*fiber);
      fiber = next;
    }
    return list;
  }
  return TakeSharedUnstarted();
}

Record* Worker::TakeSharedUnstarted() {
  for (;;) {
    size_t count;
    Record* list = core_.unstarted().Take(ShareOf(core_.unstarted()), &count);
    if (list == nullptr) return nullptr;
    for (Record* fiber = list->next; fiber != nullptr;) {
      Record* next = fiber->next;
      PushUnstarted(*fiber);
      fiber = next;
    }
    if (Record* fiber = Bound(list); fiber != nullptr) return fiber;
  }
}

size_t Worker::ShareOf(const SharedQueue& queue) const {
  return std::min(queue.size() / core_.worker_count() + 1, kMostTakenAtOnce);
}

// Fibers that their own worker takes in a moment are better left to it: under the deferred rule it says when they have
// waited, and the monitor takes them from one that stays in a fiber.
bool Worker::MayTakeFrom(const RunQueue& victim) const {
  if (!core_.is_deferring() || victim.has_many()) return true;
  const int64_t since = victim.waiting_since_ns.load(std::memory_order_relaxed);
  return since != 0 && fiber::internal::MonotonicNs() - since >= kDeferredWakeNs;
}

Record* Worker::TakeFromOthers() {
  const auto queues = core_.queues();
  const auto count = static_cast<uint32_t>(queues.size());
  uint32_t start = 0;
  for (int round = 0; round < kSearchRounds; ++round) {
    start = static_cast<uint32_t>(Random() % count);
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t victim = (start + i) % count;
      if (victim == index_ || !MayTakeFrom(*queues[victim])) continue;
      if (Record* fiber = StealFrom(*queues[victim]); fiber != nullptr) return fiber;
    }
    if (Record* fiber = TakeShared(); fiber != nullptr) return fiber;
  }
  if (core_.is_deferring()) return nullptr;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t index = (start + i) % count;
    if (index == index_) continue;
    if (Record* fiber = StealNextSlot(*queues[index]); fiber != nullptr) return fiber;
  }
  return nullptr;
}

Record* Worker::StealFrom(RunQueue& victim) {
  Record* stolen[kMostTakenAtOnce];
  if (const size_t count = victim.ring.TakeHalf(stolen); count > 0) {
    AddOne(queue_.steals);
    for (size_t i = 1; i < count; ++i) PushReady(*stolen[i]);
    return stolen[0];
  }
  while (Record* fiber = victim.unstarted.TakeOldest()) {
    AddOne(queue_.steals);
    if ((fiber = Bound(fiber)) != nullptr) return fiber;
  }
  return nullptr;
}

// The next-slot is taken only from a worker that stays in one fiber: two that wake each other would be torn apart.
Record* Worker::StealNextSlot(RunQueue& victim) {
  // Some 3 us, as Go waits before it takes runnext. No time passes in the model.
  constexpr int kPatience = fiber::internal::kIsModel ? 0 : 200;
  if (victim.next_slot.load(std::memory_order_relaxed) == nullptr) return nullptr;
  const uint64_t runs = victim.runs.load(std::memory_order_relaxed);
  for (int i = 0; i < kPatience; ++i) fiber::internal::CpuRelax();
  if (victim.runs.load(std::memory_order_relaxed) != runs) return nullptr;
  Record* fiber = victim.next_slot.exchange(nullptr, std::memory_order_acq_rel);  // order: idle-wake
  if (fiber != nullptr) AddOne(queue_.steals);
  return fiber;
}

// Timers are taken with the work: whoever comes by expires what is due, in any queue.
void Worker::ExpireTimers() {
  const int64_t due = core_.EarliestDue();
  if (due == kNeverNs) return;
  const int64_t now = fiber::internal::MonotonicNs();
  if (due > now) return;
  for (const auto& queue : core_.queues()) {
    if (queue->timers.next_due_ns() > now) continue;
    // Whoever fell asleep meanwhile did not see what was filed anew.
    if (queue->timers.Expire(now)) OweKeeper();
  }
}

void Worker::TellKeeper() {
  owes_keeper_ = false;
  Idle& idle = core_.idle();
  if (idle.idle() == 0) return;
  int64_t due = core_.EarliestDue();
  if (StackDepot::Get().HasWaiters()) due = std::min(due, fiber::internal::MonotonicNs() + Core::kStackRetryNs);
  if (idle.IsKeeperLate(due)) core_.InterruptSleeper();
}

// Idle no more.
void Worker::Wake() {
  mode_.store(Mode::kSeated, std::memory_order_seq_cst);  // order: stand
  role_ = core_.idle().Leave();
}

void Worker::LookWhoWaits() {
  if (!core_.is_deferring()) return;
  Atomic<int64_t>& since = queue_.waiting_since_ns;
  if (!queue_.has_fibers()) {
    if (since.load(std::memory_order_relaxed) != 0) since.store(0, std::memory_order_relaxed);
    return;
  }
  const int64_t now = fiber::internal::MonotonicNs();
  if (since.load(std::memory_order_relaxed) == 0) {
    since.store(now, std::memory_order_relaxed);
  } else if (now - since.load(std::memory_order_relaxed) >= kDeferredWakeNs) {
    core_.WakeIfIdle();
  }
}

// `backoff`: of the loop that finds neither work nor sleep.
void Worker::Sleep(fiber::internal::Backoff& backoff) {
  Idle& idle = core_.idle();
  Mode seated = Mode::kSeated;
  if (!mode_.compare_exchange_strong(seated, Mode::kAsleep, std::memory_order_seq_cst,  // order: stand
                                     std::memory_order_relaxed)) {
    return;  // who stands has no place among the idle
  }
  idle.Enter(role_);
  // Its own too: of a share of the unstarted ones the first may have found no stack, and gone to wait for one.
  if (core_.HasFibersToFind() || queue_.has_fibers() || core_.is_stopped()) {
    Wake();
    // Another worker has them, and may have lost its CPU on the way to running them.
    backoff.PauseForAny();
    return;
  }
  // The keeper also comes back for what is not urgent: one worker is enough.
  const int64_t now = fiber::internal::MonotonicNs();
  int64_t due = std::min(core_.EarliestDue(), core_.trimmer().NextDue(now, core_.Activity()));
  if (StackDepot::Get().HasWaiters()) due = std::min(due, now + Core::kStackRetryNs);
  const bool is_keeper = idle.TryKeep(due, now);
  // What was armed between the reading and the publishing was told the old keeper's deadline, or none.
  if (core_.EarliestDue() >= due) core_.sleeping_source().Poll(is_keeper ? due : kNeverNs);
  if (is_keeper) idle.StopKeeping(due);
  OweKeeper();
  Wake();
  ExpireTimers();
}

}  // namespace sched::internal
