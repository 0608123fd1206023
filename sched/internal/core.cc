// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/core.h"

#include <errno.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "fiber/internal/blocking_region.h"
#include "fiber/internal/context.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/overflow.h"
#include "fiber/internal/park.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/terminate.h"
#include "fiber/internal/wait.h"
#include "sched/internal/cgroup.h"
#include "sched/internal/cpu_count.h"
#include "sched/internal/install.h"
#include "sched/internal/worker.h"

namespace sched::internal {

using fiber::internal::Fatal;
using fiber::internal::LogLine;
using fiber::internal::State;
using fiber::internal::StackClass;
using fiber::internal::StackDepot;
using fiber::internal::ThisThread;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

namespace {

StackClass DefaultClass(size_t bytes) {
#if defined(WEFT_ASAN) || defined(WEFT_TSAN)
  constexpr size_t kMost = fiber::internal::kStackClassBytes[fiber::internal::kStackClasses - 1];
  if (bytes <= kMost) bytes = std::min(4 * bytes, kMost);
#endif
  return fiber::internal::StackClassFor(bytes);
}

int WorkerCount(int asked) {
  if (asked < 0 || asked > kMaxWorkers) {
    Fatal("RuntimeOptions::workers = %d: it must be between 0 and %d", asked, kMaxWorkers);
  }
  if (asked != 0) return asked;
  const absl::StatusOr<std::optional<int>> from_env = WorkersFromEnv(getenv("WEFT_WORKERS"));
  if (!from_env.ok()) Fatal("%s", std::string(from_env.status().message()).c_str());
  return from_env->has_value() ? **from_env : std::min(UsableCpus(), kMaxWorkers);
}

// Half of what the process may use, or no bound: the kernel's killer gives no error. The other half is for what fibers need
// beyond a page of stack each, and for everything else.
size_t StackMemory(size_t asked) {
  if (asked > 0 && asked < fiber::internal::kPageBytes) {
    Fatal("RuntimeOptions::max_stack_memory = %zu: that is not one stack; it takes %zu", asked, fiber::internal::kPageBytes);
  }
  if (asked != 0) return asked;
  const size_t memory = CgroupMemoryMax();
  return memory == SIZE_MAX ? 0 : memory / 2;
}

// Servers run out of descriptors long before the hard limit: take what we are allowed. Refused: the old limit stays.
void RaiseDescriptorLimit() {
  const fiber::internal::SystemCalls& system = fiber::internal::System();
  rlimit limit{};
  if (system.getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  system.setrlimit(RLIMIT_NOFILE, &limit);
}

void LeaveInFork() {
  const ThreadState* const thread = fiber::internal::ThisThreadOrNull();  // a child that is to exec allocates nothing
  if (thread == nullptr) return;
  fiber::Scheduler* const scheduler = thread->blocks_for != nullptr ? thread->blocks_for : thread->scheduler;
  if (dynamic_cast<Core*>(scheduler) == nullptr) return;
  void* const worker = thread->set_aside != nullptr ? thread->set_aside : thread->worker;
  static_cast<Worker*>(worker)->LeaveInFork();
}

[[maybe_unused]] const bool workers_watch_forks = [] {
  fiber::internal::CallInForkedChildren(&LeaveInFork);
  return true;
}();

uint32_t MaxThreads(int asked) {
  if (asked < 1 || asked > kMostThreads) {
    Fatal("RuntimeOptions::max_threads = %d: it must be between 1 and %d", asked, kMostThreads);
  }
  return static_cast<uint32_t>(asked);
}

}  // namespace

Core::Core(const RuntimeOptions& options)
    : Scheduler(/*is_simulation=*/false),
      options_(options),
      stack_class_(DefaultClass(options.default_stack_bytes)),
      crew_(*this, static_cast<uint32_t>(WorkerCount(options.workers)), MaxThreads(options.max_threads)) {
  fiber::internal::RefuseShadowStacks();
  RaiseDescriptorLimit();
  StackDepot::Get().SetMaxMemory(StackMemory(options.max_stack_memory));
  fiber::internal::InstallOverflowHandler();
  fiber::internal::InstallTerminateHandler();
}

Core::~Core() { AwaitForeigners(); }

void Core::AwaitForeigners() {
  fiber::internal::Backoff backoff;
  while (foreign_.load(std::memory_order_acquire) != 0) backoff.Pause();  // order: foreign
}

void Core::Start() {
  is_deferring_.store(!options_.eager_wake, std::memory_order_relaxed);
  monitor_.Reserve();  // may throw: before there are threads
  const uint32_t started = crew_.Start();
  if (started == 0) {
    throw std::system_error(EAGAIN, std::generic_category(), absl::StrCat("not one worker thread can be had: ", kThreadLimits));
  }
  if (started < worker_count()) {
    LogLine("only %u of %u worker threads can be had: %s", started, worker_count(), kThreadLimits);
  }
  // There are no fibers yet.
  if (!monitor_.Start()) is_deferring_.store(false, std::memory_order_relaxed);
}

void Core::Stop() {
  monitor_.Stop();  // first: it looks at threads, which end from here on
  is_stopped_.store(true, std::memory_order_release);  // order: stop
  InterruptSleeper();  // whoever stops interrupts the next
  crew_.Stop();
  EndEventSource();
  StackDepot& depot = StackDepot::Get();
  depot.DiscardIdle(depot.Excess());  // there may be no other runtime to do it little by little
}

Worker* Core::WorkerOf(const ThreadState& thread) const {
  return thread.scheduler == this ? static_cast<Worker*>(thread.worker) : nullptr;
}

void Core::WakeIfIdle() {
  if (!idle_.TryWake()) return;
  wakes_.fetch_add(1, std::memory_order_relaxed);
  InterruptSleeper();
}

void Core::RetryStacks() {
  const int64_t now = fiber::internal::MonotonicNs();
  int64_t next = next_stack_retry_ns_.load(std::memory_order_relaxed);
  if (now < next || !next_stack_retry_ns_.compare_exchange_strong(next, now + kStackRetryNs,
                                                                  std::memory_order_relaxed,
                                                                  std::memory_order_relaxed)) {
    return;
  }
  StackDepot::Get().LookForStall(*this, now);
  StackDepot::Get().RetryWaiters();
}

inline void Core::AfterPush(Worker& worker) {
  if (worker.is_standing()) [[unlikely]] {
    HandOver(worker.queue());
  } else if (!is_deferring()) {
    WakeIfIdle();
  }
}

void Core::QueueNew(Record& fiber) {
  ThreadState& thread = ThisThread();
  if (Worker* worker = WorkerOf(thread); worker != nullptr) {
    AddOne(worker->queue().spawned);
    worker->PushUnstarted(fiber);
    AfterPush(*worker);
    return;
  }
  if (is_copy()) [[unlikely]] {
    Fatal("a fiber is spawned in a child of fork(), on a runtime of the parent's (at %s:%u)", fiber.site.file_name(),
          static_cast<unsigned>(fiber.site.line()));
  }
  ForeignEntry entry(*this);
  foreign_spawned_.fetch_add(1, std::memory_order_seq_cst);  // order: close
  if (is_closed_.load(std::memory_order_seq_cst)) {          // order: close
    Fatal("a fiber is spawned on a runtime that has stopped (at %s:%u)", fiber.site.file_name(),
          static_cast<unsigned>(fiber.site.line()));
  }
  unstarted_.Push(fiber);
  WakeIfIdle();
}

void Core::RequeueNew(Record& fiber) {
  ForeignEntry entry(*this);  // the caller may be another runtime's worker
  unstarted_.Push(fiber);
  WakeIfIdle();
}

void Core::QueueReady(Record& fiber) {
  if (fiber.is_bound()) [[unlikely]] {
    ForeignEntry entry(*this);
    fiber::internal::WakeBound(fiber);
    return;
  }
  ThreadState& thread = ThisThread();
  if (Worker* worker = WorkerOf(thread); worker != nullptr) {
    if (fiber.is_blocker()) [[unlikely]] {
      inject_.Push(fiber);
      WakeIfIdle();
      return;
    }
    if (thread.current == nullptr) {
      // The poller or a timer: the worker is about to look at its queue, and wakes another if there is more than one. Who waits
      // in the shared queue was ready before.
      if (inject_.size() > 0) {
        inject_.Push(fiber);
      } else {
        worker->PushReady(fiber);
      }
      return;
    }
    worker->PushNext(fiber);
    AfterPush(*worker);
    return;
  }
  // It runs in the parent only; and whoever had the lock of the queue when this process was forked has it for ever.
  if (is_copy()) [[unlikely]] return;
  ForeignEntry entry(*this);
  inject_.Push(fiber);
  WakeIfIdle();
}

void Core::QueueYielded(Record& fiber) {
  // A fiber that yields in a loop goes behind those queued from outside. A blocker is taken from there only, on a thread's own
  // stack (Worker::GiveWay).
  if (inject_.size() > 0 || fiber.is_blocker()) {
    inject_.Push(fiber);
  } else {
    Worker& worker = *WorkerOf(ThisThread());
    worker.PushReady(fiber);
    AfterPush(worker);
    // Only now, since the queue of two that yield to each other is empty when one has been taken and the other not yet queued.
    if (idle_.has_others()) worker.LookWhoWaits();
    return;
  }
  WakeIfIdle();
}

void Core::HandOver(RunQueue& queue) {
  // Bounded, for a queue whose owner goes on pushing.
  size_t left = RunQueue::kRingSlots + RunQueue::kUnstartedSlots;
  bool has_moved = false;
  if (queue.next_slot.load(std::memory_order_seq_cst) != nullptr) {  // order: stand
    if (Record* next = queue.next_slot.exchange(nullptr, std::memory_order_seq_cst); next != nullptr) {  // order: stand
      inject_.Push(*next);  // it came last
      has_moved = true;
    }
  }
  Record* some[64];
  while (left > 0 && !queue.ring.is_empty()) {
    const size_t count = queue.ring.TakeHalf(some);
    if (count == 0) break;
    for (size_t i = 0; i + 1 < count; ++i) some[i]->next = some[i + 1];
    some[count - 1]->next = nullptr;
    inject_.PushAhead(some[0], some[count - 1], count);
    left -= std::min(left, count);
    has_moved = true;
  }
  while (left > 0) {
    Record* const oldest = queue.unstarted.TakeOldest();
    if (oldest == nullptr) break;
    unstarted_.Push(*oldest);
    --left;
    has_moved = true;
  }
  if (has_moved) WakeIfIdle();
}

void Core::BeginBlocking(ThreadState& thread) { static_cast<Worker*>(thread.worker)->BeginBlocking(); }

void Core::EndBlocking(ThreadState& thread) { static_cast<Worker*>(thread.worker)->EndBlocking(); }

bool Core::IsSliceOver(ThreadState& thread) {
  const Worker* worker = static_cast<Worker*>(thread.worker);
  if (worker == nullptr) return false;  // bound: it keeps nobody waiting
  // Back from Blocking(), and another has the seat: the monitor looks at those only that have one.
  if (worker->is_standing() && worker->is_maintenance_due()) return true;
  return worker->queue().slice_over.load(std::memory_order_relaxed) ==
         worker->queue().runs.load(std::memory_order_relaxed);
}

Record* Core::TakeNext(ThreadState& thread, WaitBlock* spare) {
  Worker& worker = *static_cast<Worker*>(thread.worker);
  if (worker.is_maintenance_due()) return nullptr;
  Record* next = worker.TakeLocal(spare);
  if (next == nullptr) return nullptr;
  worker.PayKeeper();
  if (idle_.has_others()) worker.LookWhoWaits();
  return next;
}

bool Core::TakeNextForYield(ThreadState& thread, Record** next) {
  Worker& worker = *static_cast<Worker*>(thread.worker);
  if (worker.is_maintenance_due()) {
    worker.BeginYield(*thread.current);
    *next = nullptr;
    return true;
  }
  *next = worker.TakeLocal(nullptr);
  worker.PayKeeper();
  // Those from outside go first, also by way of the thread's own stack.
  if (*next != nullptr || inject_.size() > 0) return true;
  if (unstarted_.size() > 0) {
    worker.BeginYield(*thread.current);
    return true;
  }
  AddOne(worker.queue().runs);  // it gave everybody else a chance
  return false;
}

bool Core::ArmTimer(ThreadState& thread, WaitBlock& block, int64_t deadline_ns) {
  constexpr int64_t kLate = TimerQueue::kLatenessNs;
  const int64_t filed = block.timer.filed_ns.load(std::memory_order_seq_cst);  // order: timer
  // Busy is less than any: whoever looks at the entry may have read the wish before this one. TryFile waits for it.
  constexpr int64_t kBusy = fiber::internal::DeadlineTimer::kBusyNs;
  if (filed != kBusy && filed <= deadline_ns - kLate) return true;
  const int64_t now = fiber::internal::MonotonicNs();
  // A wait of 64 times that may be as late anyway (a sixty-fourth of its length).
  if (!TryFile(block, deadline_ns, kLate, deadline_ns - now >= 64 * kLate, this)) return true;
  Worker* const worker = static_cast<Worker*>(thread.worker);
  try {
    if (worker == nullptr) {  // a Timer of a bound fiber: any queue will do
      if (queues()[0]->timers.File(block, deadline_ns, now) && idle_.IsKeeperLate(EarliestDue())) InterruptSleeper();
    } else if (worker->queue().timers.File(block, deadline_ns, now)) {
      worker->OweKeeper();  // told when a successor is found
    }
  } catch (const std::bad_alloc&) {
    ForgetTimer(block);
    return false;
  }
  return true;
}

void Core::AnnounceTimer(ThreadState& thread) {
  if (thread.worker != nullptr) static_cast<Worker*>(thread.worker)->PayKeeper();
}

bool Core::EnterFromTimer() {
  foreign_spawned_.fetch_add(1, std::memory_order_seq_cst);  // order: close
  if (!is_cancelled()) [[likely]] return true;
  LeaveFromTimer();
  return false;
}

int64_t Core::NowNs() { return fiber::internal::MonotonicNs(); }

void Core::OnFiberEnded(ThreadState& thread) {
  AddOne(static_cast<Worker*>(thread.worker)->queue().ended);
  if (is_draining_.load(std::memory_order_relaxed)) [[unlikely]] {
    drained_.fetch_add(1, std::memory_order_release);
    fiber::internal::FutexWake(drained_, 1);
  }
}

bool Core::HasFibers() const {
  if (inject_.size() > 0 || unstarted_.size() > 0) return true;
  const auto queues = crew_.queues();
  return std::any_of(queues.begin(), queues.end(), [](const auto& queue) { return queue->has_fibers(); });
}

int64_t Core::EarliestDue() const {
  int64_t earliest = kNeverNs;
  for (const auto& queue : queues()) earliest = std::min(earliest, queue->timers.next_due_ns());
  return earliest;
}

uint64_t Core::Activity() const {
  uint64_t runs = 0;
  for (const auto& queue : crew_.all_queues()) runs += queue->runs.load(std::memory_order_relaxed);
  return runs;
}

uint64_t Core::Polls() const {
  uint64_t polls = 0;
  for (const auto& queue : crew_.all_queues()) polls += queue->polls.load(std::memory_order_relaxed);
  return polls;
}

void Core::CancelAll() {
  SetCancelled();
  fiber::internal::ForEachRecord([this](Record& fiber) {
    const uint64_t id = fiber.id.load(std::memory_order_acquire);  // order: owner
    if (fiber::internal::SchedulerOf(fiber) == this) fiber::internal::ClaimForCancel(fiber, id);
  });
}

// The ends are read before the spawns: a fiber is spawned by a live one, whose own spawn is counted and its end is not,
// so if the sums are equal nothing was alive when the last end was counted, but for spawns from outside.
bool Core::IsDrained() const {
  uint64_t ended = 0;
  for (const auto& queue : crew_.all_queues()) ended += queue->ended.load(std::memory_order_acquire);
  uint64_t spawned = foreign_spawned_.load(std::memory_order_seq_cst);  // order: close
  for (const auto& queue : crew_.all_queues()) spawned += queue->spawned.load(std::memory_order_acquire);
  return ended == spawned;
}

bool Core::WaitUntilDrained(int64_t deadline_ns) {
  is_draining_.store(true, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t seen = drained_.load(std::memory_order_acquire);
    if (IsDrained()) {
      is_closed_.store(true, std::memory_order_seq_cst);  // order: close
      if (IsDrained()) return true;
      is_closed_.store(false, std::memory_order_relaxed);
    }
    const int64_t now = fiber::internal::MonotonicNs();
    if (now >= deadline_ns) return false;
    // A fiber that ended just before it could see is_draining_ wakes nobody: look again before long.
    constexpr int64_t kLookAgain = 10'000'000;
    (void)fiber::internal::FutexWait(drained_, seen, std::min(deadline_ns, now + kLookAgain));
  }
}

std::string Core::DescribeFibers() {
  constexpr size_t kMost = 20;
  size_t count = 0;
  std::string text;
  fiber::internal::ForEachRecord([&](Record& fiber) {
    if (fiber::internal::SchedulerOf(fiber) != this) return;
    if (++count > kMost) return;
    if (fiber::internal::TryHold(fiber)) {
      const struct Held {  // also if there is no memory for the text
        Record& fiber;
        ~Held() { fiber::internal::Release(fiber); }
      } held{fiber};
      const WaitBlock& block = *fiber.block.load(std::memory_order_acquire);  // order: owner
      absl::StrAppend(&text, "\n  ", fiber::internal::Describe(fiber), " waits for ",
                      std::string(WaitReasonName(block.reason)));
      return;
    }
    const State state = fiber.state.load(std::memory_order_acquire);
    absl::StrAppend(&text, "\n  ", fiber::internal::DescribeUnheld(fiber),
                    state == State::kNew ? " has not started" : " is running or runnable");
  });
  if (count > kMost) absl::StrAppend(&text, "\n  … and ", count - kMost, " more");
  return absl::StrCat(count, count == 1 ? " fiber is left:" : " fibers are left:", text);
}

Stats Core::stats() const {
  Stats stats;
  stats.workers = static_cast<int>(std::min(crew_.seats(), crew_.threads()));
  stats.threads = static_cast<int>(crew_.threads());
  uint64_t ended = 0;
  for (const auto& queue : crew_.all_queues()) ended += queue->ended.load(std::memory_order_acquire);
  stats.fibers_spawned = foreign_spawned_.load(std::memory_order_acquire);
  for (const auto& queue : crew_.all_queues()) {
    stats.fibers_spawned += queue->spawned.load(std::memory_order_acquire);
    stats.steals += queue->steals.load(std::memory_order_relaxed);
  }
  stats.fibers_live = stats.fibers_spawned - ended;
  stats.stalls_spinning = monitor_.stalls_spinning();
  stats.stalls_blocked = monitor_.stalls_blocked();
  stats.worker_wakes = wakes_.load(std::memory_order_relaxed);
  return stats;
}

EventSource* Core::InstallEventSource(absl::FunctionRef<std::unique_ptr<EventSource>()> make) {
  if (EventSource* source = installed_source(); source != nullptr) return source;
  std::lock_guard hold(install_mutex_);
  if (owned_source_ != nullptr) return owned_source_.get();
  owned_source_ = make();
  if (owned_source_ == nullptr) return nullptr;
  installed_source_.store(owned_source_.get(), std::memory_order_seq_cst);  // order: source
  // More may sleep there than there are seats for (Crew::AddSeats). Permits that nobody uses up do no harm.
  for (uint32_t i = 0; i < crew_.max_threads(); ++i) futex_source_.Interrupt();
  // A waker that loaded the old source before the store may interrupt it when its sleeper is on the new one already: this
  // is for that sleeper. Its grant came before the store, so whoever this wakes takes it.
  owned_source_->Interrupt();
  return owned_source_.get();
}

void Core::EndEventSource() {
  // The last fiber may have been made runnable by a thread that has yet to interrupt a sleeper. Nobody comes after it:
  // there is no fiber left to be made runnable, or to install a source.
  AwaitForeigners();
  std::lock_guard hold(install_mutex_);
  installed_source_.store(nullptr, std::memory_order_relaxed);
  owned_source_ = nullptr;
}

EventSource* InstalledEventSource(fiber::Scheduler* scheduler,
                                  absl::FunctionRef<std::unique_ptr<EventSource>()> make) {
  Core* core = dynamic_cast<Core*>(scheduler);
  return core == nullptr ? nullptr : core->InstallEventSource(make);
}

}  // namespace sched::internal
