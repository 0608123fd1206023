// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/monitor.h"

#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "fiber/internal/block_signals.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "sched/internal/core.h"
#include "sched/internal/stall_probe.h"
#include "sched/internal/worker.h"

namespace sched::internal {

using fiber::internal::kNeverNs;
using fiber::internal::LogLine;
using fiber::internal::MonotonicNs;
using fiber::internal::System;

Monitor::Monitor(Core& core) : core_(core), reporter_(core.options().on_stall) {}

void Monitor::Reserve() {
  views_.reserve(core_.crew().max_threads());
  same_.reserve(core_.crew().max_threads());
  late_.reserve(core_.crew().max_threads());
  culprits_.reserve(2 * size_t{core_.crew().max_threads()});  // of its last run and of this one
}

bool Monitor::Start() {
  first_state_ = fiber::internal::NewThreadState();  // to poll is to queue fibers
  // It takes its signal mask from its creator: none may land here.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // cannot fail with these arguments
  has_thread_ = first_state_ != nullptr && System().pthread_create(&thread_, nullptr, &Entry, this) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!has_thread_) {
    LogLine("no thread for the monitor, so fibers that block or compute hold up others: %s", kThreadLimits);
  }
  return has_thread_;
}

void Monitor::Stop() {
  if (!has_thread_) return;
  is_stopped_.store(1, std::memory_order_seq_cst);  // order: stop
  fiber::internal::FutexWake(is_stopped_, 1);
  Wake();
  pthread_join(thread_, nullptr);  // cannot fail: it is joined once, and by another
}

void* Monitor::Entry(void* monitor) {
  auto& self = *static_cast<Monitor*>(monitor);
  fiber::internal::AdoptThreadState(std::move(self.first_state_));
  fiber::internal::BlockSignals(self.core_.programs_signals());  // faults reach those whom it starts
  pthread_setname_np(pthread_self(), "weft-monitor");            // only a name: may fail
  System().prctl(PR_SET_TIMERSLACK, 10'000UL);                   // refused: as late as the kernel likes
  self.Main();
  fiber::internal::LeaveSignalsBlocked();
  return nullptr;
}

void Monitor::Main() {
  while (is_stopped_.load(std::memory_order_seq_cst) == 0) {  // order: stop
    const int64_t now = MonotonicNs();
    const int64_t wait = Tick(now);
    if (wait == 0) {
      Sleep();
    } else {
      // Not sooner than that, though it may have been long: two looks are to be some time apart.
      (void)fiber::internal::FutexWait(is_stopped_, 0, std::max(now + wait, MonotonicNs() + kFastNs));
    }
  }
}

void Monitor::Wake() {
  asleep_.store(0, std::memory_order_seq_cst);  // order: monitor
  fiber::internal::FutexWake(asleep_, 1);
}

// Until somebody leaves idle, or Stop.
void Monitor::Sleep() {
  asleep_.store(1, std::memory_order_seq_cst);                               // order: monitor
  if (IsQuiet() && is_stopped_.load(std::memory_order_seq_cst) == 0) {       // order: monitor, stop
    while (asleep_.load(std::memory_order_seq_cst) == 1) {                   // order: monitor
      (void)fiber::internal::FutexWait(asleep_, 1, kNeverNs);
    }
  }
  asleep_.store(0, std::memory_order_seq_cst);  // order: monitor
  quiet_since_ns_ = 0;
  interval_ns_ = kFastNs;
}

// Everybody who has a seat is idle, and somebody has one: else nobody is there to be woken, nor to wake the monitor.
bool Monitor::IsQuiet() const {
  const int64_t seated = int64_t{core_.worker_count()} + extra_seats_ - core_.crew().free_seats();
  const int64_t idle = core_.idle().idle();
  return idle > 0 && idle >= seated;
}

bool Monitor::IsAnythingDue(int64_t now_ns) const { return core_.HasFibers() || core_.EarliestDue() <= now_ns; }

int64_t Monitor::Tick(int64_t now_ns) {
  same_.clear();
  late_.clear();
  is_anyone_moving_ = false;
  core_.crew().ForEach([this, now_ns](Worker& worker) { Look(worker, now_ns); });
  AccuseStanding(now_ns);

  if (!culprits_.empty()) ReportCulprits(now_ns);

  const bool has_idle = core_.idle().idle() > 0;
  if (!has_idle) PollForOthers(now_ns);
  const bool is_due = IsAnythingDue(now_ns);
  if (has_idle && is_due) RemindIdle(now_ns);
  if (is_due && (!same_.empty() || (core_.crew().may_fill(now_ns) && !has_idle))) {
    quiet_since_ns_ = 0;
    interval_ns_ = Relieve(now_ns) ? kFastNs : kBusyNs;
    return interval_ns_;
  }
  TakeBackSeats(now_ns);
  if (IsQuiet() && culprits_.empty()) {
    if (quiet_since_ns_ == 0) quiet_since_ns_ = now_ns;
    if (now_ns - quiet_since_ns_ >= kRestAfterNs) return 0;
  } else {
    quiet_since_ns_ = 0;
  }
  const int64_t longer = std::min(2 * interval_ns_, kSlowNs);
  if (has_idle) {
    interval_ns_ = is_due ? kFastNs : longer;
  } else {
    interval_ns_ = is_due || core_.EarliestDue() != kNeverNs ? std::min(longer, kBusyNs) : longer;
  }
  return interval_ns_;
}

// Somebody sleeps, and fibers wait in the shared queues, or timers are overdue. By the protocols of idle.h he is on his way, unless
// who owes the keeper a word stays in a fiber. If it is still so at the second look, rather wake him once too often; but on a busy
// machine, where he only waits for a CPU, less and less often.
void Monitor::RemindIdle(int64_t now_ns) {
  if (interval_ns_ != kFastNs || now_ns - reminded_ns_ < reminder_pause_ns_) return;
  reminder_pause_ns_ = now_ns - reminded_ns_ < kRestAfterNs ? std::min(2 * reminder_pause_ns_, kRestAfterNs / 2) : kBusyNs;
  reminded_ns_ = now_ns;
  if (core_.inject().size() > 0 || core_.unstarted().size() > 0) core_.WakeIfIdle();
  if (core_.EarliestDue() <= now_ns - kFastNs) core_.InterruptSleeper();
}

// When nobody has blocked for a while.
void Monitor::TakeBackSeats(int64_t now_ns) {
  if (now_ns - blocked_ns_ < kBurstNs) return;
  burst_ = 1;
  if (extra_seats_ == 0) return;
  core_.crew().AddSeats(-extra_seats_);
  for (; extra_seats_ > 0; --extra_seats_) core_.InterruptSleeper();
}

Monitor::View& Monitor::ViewOf(const Worker& worker) {
  if (worker.index() >= views_.size()) views_.resize(worker.index() + 1);
  return views_[worker.index()];
}

void Monitor::Look(Worker& worker, int64_t now_ns) {
  View& view = ViewOf(worker);
  const fiber::internal::ThreadState* const state = worker.state();
  fiber::internal::Record* fiber = nullptr;
  if (state != nullptr) fiber = state->current;
  const uint64_t runs = worker.queue().runs.load(std::memory_order_relaxed);
  const bool is_seated = worker.mode() == Worker::Mode::kSeated;
  // Who gave way to the others (Worker::GiveWay) holds up nobody, but is to be known all the same.
  const bool is_looked_at = fiber != nullptr && (is_seated || fiber->is_blocker());
  if (is_seated && view.runs != runs) is_anyone_moving_ = true;
  if (!is_looked_at || view.since_ns == 0 || view.runs != runs) {
    view = {.runs = runs, .since_ns = is_looked_at ? now_ns : 0};
  } else if (is_seated) {
    worker.queue().slice_over.store(runs, std::memory_order_relaxed);
    same_.push_back(&worker);
  } else if (!view.is_accused && now_ns - view.since_ns >= absl::ToInt64Nanoseconds(core_.options().stall_after)) {
    late_.push_back(&worker);
  }
}

// Who gave way beforehand, and has blocked for long.
void Monitor::AccuseStanding(int64_t now_ns) {
  for (Worker* const worker : late_) {
    const Crew::Pinned pinned(core_.crew(), *worker);
    if (pinned.state() == nullptr) continue;
    View& view = ViewOf(*worker);
    // Without a look at /proc: such fibers may be many.
    if (!StandsStill(ThreadProbe(worker->thread(), worker->thread_id(), *pinned.state()), view)) continue;
    Accuse(*worker, view, Stall::Kind::kBlocked, now_ns);
  }
}

void Monitor::Accuse(Worker& worker, View& view, Stall::Kind kind, int64_t now_ns) {
  view.is_accused = true;
  Count(kind);
  if (culprits_.size() == culprits_.capacity()) return;  // there may be no memory for more
  culprits_.push_back({.worker = &worker,
                       .kind = kind,
                       .runs = view.runs,
                       .since_ns = view.since_ns,
                       .stood_ns = now_ns,
                       .first_cpu_ns = view.first_cpu_ns,
                       .cpu_ns = -1,
                       .tries = 0});
}

void Monitor::Count(Stall::Kind kind) {
  Atomic<uint64_t>& count = kind == Stall::Kind::kBlocked ? stalls_blocked_ : stalls_spinning_;
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// Events that nobody has polled for come to the shared queue, and timers that are due to whoever can leave its fiber.
void Monitor::PollForOthers(int64_t now_ns) {
  const uint64_t polls = core_.Polls();
  if (polls != polls_ || polled_ns_ == 0) {
    polls_ = polls;
    polled_ns_ = turned_ns_ = now_ns;
  }
  const bool is_poll_due = now_ns - polled_ns_ >= kPollNs;
  if (!same_.empty() || is_poll_due) {
    if (EventSource* const source = core_.installed_source(); source != nullptr) source->Poll(0);
    polled_ns_ = now_ns;
  }
  // A poll of the monitor's own is no turn for those in the shared queues.
  if (now_ns - turned_ns_ >= kPollNs || core_.EarliestDue() <= now_ns) {
    for (const auto& queue : core_.queues()) queue->maintenance_at.store(0, std::memory_order_relaxed);
  }
}

// Nobody can come instead of those who stay in their fibers; who goes on takes what waits behind them. True: some have
// not been there for long enough.
bool Monitor::RelieveWithoutSpares(int64_t now_ns) {
  const int64_t stall_after = absl::ToInt64Nanoseconds(core_.options().stall_after);
  bool is_urgent = false;
  for (Worker* const worker : same_) {
    View& view = ViewOf(*worker);
    if (now_ns - view.since_ns < stall_after) {
      is_urgent = true;
    } else if (is_anyone_moving_) {
      core_.HandOver(worker->queue());
    } else if (!view.is_accused) {
      const Crew::Pinned pinned(core_.crew(), *worker);
      if (pinned.state() == nullptr) continue;
      const bool is_first_look = view.cpu_ns < 0;
      const bool is_blocked = IsBlocked(*worker, *pinned.state(), view);
      if (!is_first_look) Accuse(*worker, view, is_blocked ? Stall::Kind::kBlocked : Stall::Kind::kSpinning, now_ns);
      is_urgent = true;
    }
  }
  return is_urgent;
}

// Something waits, and some workers do not come for it. True: soon there is more to be said of one of them.
bool Monitor::Relieve(int64_t now_ns) {
  if (core_.idle().idle() > 0) {
    for (Worker* const worker : same_) core_.HandOver(worker->queue());
    return true;
  }
  if (!core_.crew().has_spares()) return RelieveWithoutSpares(now_ns);
  bool is_urgent = core_.crew().free_seats() > 0;
  int32_t stood_up = 0;
  bool has_blocked = false;
  for (Worker* const worker : same_) {
    // It may have gone on, and its thread ended, since it was looked at.
    const Crew::Pinned pinned(core_.crew(), *worker);
    if (pinned.state() == nullptr) continue;
    View& view = ViewOf(*worker);
    // What it does shows from the second look on, however long it has been there: nobody cared before.
    const bool is_first_look = view.cpu_ns < 0;
    const bool is_blocked = IsBlocked(*worker, *pinned.state(), view);
    const int64_t stall_after = absl::ToInt64Nanoseconds(core_.options().stall_after);
    if (is_first_look || (!is_blocked && now_ns - view.since_ns < stall_after)) {
      is_urgent = true;
      // By its CPU clock: on a busy machine others may have kept it from computing.
      if (!view.is_prepared_for && !is_anyone_moving_ && view.cpu_ns - view.first_cpu_ns >= stall_after / 2) {
        view.is_prepared_for = true;
        core_.crew().PrepareSpare();
      }
      continue;
    }
    if (!is_blocked && is_anyone_moving_) {
      core_.HandOver(worker->queue());
      continue;
    }
    is_urgent = true;
    if (!core_.crew().StandUp(*worker)) continue;
    core_.HandOver(worker->queue());
    if (fiber::internal::Record* const fiber = pinned.state()->current; is_blocked && fiber != nullptr) {
      fiber->set_blocker(true);  // next time others need not wait until that is seen
    }
    has_blocked = has_blocked || is_blocked;
    ++stood_up;
    Accuse(*worker, view, is_blocked ? Stall::Kind::kBlocked : Stall::Kind::kSpinning, now_ns);
  }
  if (has_blocked) {
    burst_ = now_ns - blocked_ns_ < kBurstNs ? std::min(2 * burst_, kMostAtOnce) : 1;
    blocked_ns_ = now_ns;
    const auto can_be_had = static_cast<int32_t>(core_.crew().max_threads() - core_.crew().threads());
    if (const int32_t more = std::min({burst_ - stood_up, kMostAtOnce - extra_seats_, can_be_had}); more > 0) {
      core_.crew().AddSeats(more);
      extra_seats_ += more;
    }
  } else {
    TakeBackSeats(now_ns);
  }
  if (core_.crew().free_seats() > 0) core_.crew().FillSeats();
  return is_urgent;
}

// When others go on, those who held them up are told of: which fiber, and where it is. A report may have to wait for a thread that
// has no CPU; those after it are for the next tick, since fibers may wait for this one.
void Monitor::ReportCulprits(int64_t now_ns) {
  const int64_t stall_after = absl::ToInt64Nanoseconds(core_.options().stall_after);
  const int64_t began_ns = MonotonicNs();
  std::erase_if(culprits_, [this, now_ns, stall_after, began_ns](Culprit& culprit) {
    if (culprit.worker->queue().runs.load(std::memory_order_relaxed) != culprit.runs) return true;
    // Who blocks is replaced at once, but a short call is not worth a word.
    if (now_ns - culprit.since_ns < stall_after) return false;
    const int64_t wanted_ns = std::max(culprit.stood_ns, culprit.since_ns + stall_after);
    if (now_ns - wanted_ns > kForgottenNs) return true;
    return MonotonicNs() - began_ns < kBusyNs && Report(culprit, now_ns);
  });
}

// True: there is nothing more to tell.
bool Monitor::Report(Culprit& culprit, int64_t now_ns) {
  Worker& worker = *culprit.worker;
  const Crew::Pinned pinned(core_.crew(), worker);
  if (pinned.state() == nullptr) return true;
  const fiber::internal::ThreadState& state = *pinned.state();
  fiber::internal::Record* const fiber = state.current;
  bool is_told = fiber == nullptr;
  try {
    if (!is_told) is_told = !reporter_.Wants(fiber::internal::IdentifyUnheld(*fiber).site, now_ns);
    if (!is_told) {
      const ThreadProbe probe(worker.thread(), worker.thread_id(), state);
      std::optional<Stall> stall;
      if (IsItsDoing(culprit, probe)) {
        stall = probe.Describe(culprit.kind, absl::Nanoseconds(now_ns - culprit.since_ns), absl::Nanoseconds(kPatienceNs));
        is_told = stall.has_value() || ++culprit.tries >= kMostTries;
      }
      if (worker.queue().runs.load(std::memory_order_relaxed) != culprit.runs) {
        is_told = true;  // it has gone on, and what was seen may be another
      } else if (stall.has_value()) {
        if (culprit.kind == Stall::Kind::kBlocked) fiber->set_blocker(true);
        reporter_.Tell(*std::move(stall), now_ns);
      }
    }
  } catch (const std::bad_alloc&) {
    is_told = true;  // there is no memory for a report
  }
  return is_told;
}

// As long as a thread that seemed to compute has had no CPU, as on a busy machine, it is not the fiber's doing, nor is it known
// what that does. Then it may turn out to block.
bool Monitor::IsItsDoing(Culprit& culprit, const ThreadProbe& probe) {
  if (culprit.kind == Stall::Kind::kBlocked) return true;
  const int64_t cpu_ns = probe.CpuNs();
  const bool stands_still = std::exchange(culprit.cpu_ns, cpu_ns) == cpu_ns;
  if (cpu_ns - culprit.first_cpu_ns >= absl::ToInt64Nanoseconds(core_.options().stall_after) / 4) return true;
  const char letter = probe.State();
  if (letter == '?') return true;  // without /proc nobody knows
  if (letter == 'R' || !stands_still) return false;
  culprit.kind = Stall::Kind::kBlocked;
  Count(culprit.kind);
  return true;
}

// The second look at it that finds its clock where it was.
bool Monitor::StandsStill(const ThreadProbe& probe, View& view) {
  const int64_t before = view.cpu_ns;
  view.cpu_ns = probe.CpuNs();
  if (before < 0) view.first_cpu_ns = view.cpu_ns;
  return before >= 0 && view.cpu_ns == before;
}

bool Monitor::IsBlocked(const Worker& worker, const fiber::internal::ThreadState& state, View& view) {
  const ThreadProbe probe(worker.thread(), worker.thread_id(), state);
  if (!StandsStill(probe, view)) return false;
  const char letter = probe.State();
  return letter != 'R' && letter != '?';  // not to be known: no descriptor for /proc, say
}

}  // namespace sched::internal
