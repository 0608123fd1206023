// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/internal/simulation.h"

#include <algorithm>
#include <exception>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/internal/ambient.h"
#include "fiber/internal/context.h"
#include "fiber/internal/join.h"
#include "fiber/internal/park.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/spawn.h"
#include "fiber/internal/wait.h"
#include "fiber/wait_reason.h"

namespace fiber::sim::internal {
namespace {

using fiber::internal::After;
using fiber::internal::Describe;
using fiber::internal::Fatal;
using fiber::internal::kNeverNs;
using fiber::internal::State;

// Not zero, so that whoever takes an instant for a duration is found out.
constexpr int64_t kClockStartNs = 1'000'000'000;

// A report is read by people.
constexpr size_t kMostDescribed = 50;

#if defined(WEFT_ASAN) || defined(WEFT_TSAN)
constexpr size_t kDefaultStackBytes = 1 << 20;  // their frames are several times as large
#else
constexpr size_t kDefaultStackBytes = 256 << 10;
#endif

template <class T>
T TakeAt(std::vector<T>& from, size_t i) {
  std::swap(from[i], from.back());
  T taken = from.back();
  from.pop_back();
  return taken;
}

std::string CountFibers(size_t count) {
  return absl::StrCat(count, count == 1 ? " fiber" : " fibers");
}

}  // namespace

Simulation::Simulation(const SimOptions& options, uint64_t seed, Exploration* exploration,
                       Bounds bounds)
    : Scheduler(/*is_simulation=*/true),
      options_(options),
      seed_(seed),
      stack_class_(fiber::internal::StackClassFor(
          options.default_stack_bytes == 0 ? kDefaultStackBytes : options.default_stack_bytes)),
      thread_(fiber::internal::ThisThread()),
      random_(seed),
      exploration_(exploration),
      bounds_left_(bounds),
      now_ns_(kClockStartNs),
      step_limit_(options.max_steps) {}

Simulation::~Simulation() = default;

void Simulation::Run(absl::FunctionRef<void()> body, std::source_location site) {
  fiber::internal::RefuseShadowStacks();
  // The caller's deadline is one of another clock.
  std::optional<CancelShield> shield;
  if (const WaitBlock* mine = thread_.plain_block;
      mine != nullptr && mine->ambient != nullptr && mine->ambient->deadline_ns != kNeverNs) {
    shield.emplace();
  }
  fiber::internal::BecomeWorker(thread_, *this, this);
  auto main = [this, body] {
    std::string error;
    try {
      body();
    } catch (const std::exception& exception) {
      error = absl::StrCat("the body ended with an exception: ", exception.what());
    } catch (...) {
      error = "the body ended with an exception of unknown type";
    }
    if (failure_.empty()) failure_ = std::move(error);
    has_body_ended_ = true;
  };
  auto* extras = fiber::internal::MakeExtras("main").release();
  fiber::internal::StartFiber(
      fiber::internal::MakeFiber<fiber::internal::DetachedTask<decltype(main)>>(
          this, extras, 0, std::move(main), site, fiber::internal::kJoinDetached));

  while (!fibers_.empty() && !is_abandoned_) {
    Record* next = nullptr;
    if (Choose(thread_, nullptr, /*may_stay=*/false, &next) == Choice::kFiber) {
      fiber::internal::Switch(thread_, next, After::kNothing);
    } else if (IsOutOfSteps()) {
      OnStuck(/*is_livelock=*/true);
    } else if (!JumpClock()) {
      OnStuck(/*is_livelock=*/false);
    }
  }
  fiber::internal::StopBeingWorker(thread_);
}

std::string Simulation::name() const {
  return exploration_ == nullptr ? absl::StrCat("seed ", seed_)
                                 : absl::StrCat("schedule ", exploration_->schedule());
}

uint32_t Simulation::ChooseBelow(uint32_t count) {
  return exploration_ == nullptr ? static_cast<uint32_t>(random_.Below(count))
                                 : exploration_->Choose(count);
}

Simulation::Choice Simulation::Choose(ThreadState& thread, WaitBlock* spare, bool may_stay,
                                      Record** next) {
  const bool is_preempted = std::exchange(is_preempting_, false);
  // Who is preempted stays no longer than until something else has happened.
  for (bool is_to_go = is_preempted;; is_to_go = false) {
    if (IsOutOfSteps()) return Choice::kNobody;
    ++steps_;
    if (!is_to_go && ChooseLate()) JumpClock();
    const bool is_staying_open = may_stay && !is_to_go;
    const size_t count = runnable_.size() + due_.size() + (is_staying_open ? 1 : 0);
    if (count == 0) return Choice::kNobody;
    const size_t chosen = exploration_ == nullptr ? ChooseBelow(static_cast<uint32_t>(count))
                                                  : PickExplored(is_staying_open, is_preempted);
    if (chosen < runnable_.size()) {
      Record* fiber = TakeAt(runnable_, chosen).fiber;
      if (fiber->state.load(std::memory_order_relaxed) == State::kNew &&
          !fiber::internal::BindStack(thread, *fiber, spare)) {
        continue;  // it waits for a stack
      }
      *next = fiber;
      return Choice::kFiber;
    }
    if (chosen - runnable_.size() == due_.size()) return Choice::kStay;
    const Entry entry = TakeAt(due_, chosen - runnable_.size());
    const int64_t again_ns = fiber::internal::OnTimer(*entry.block, entry.deadline_ns, NowNs(), this);
    if (again_ns != kNeverNs) FileTimer({entry.block, again_ns});
  }
}

size_t Simulation::PickExplored(bool may_stay, bool is_preempted) {
  const size_t count = runnable_.size() + due_.size() + (may_stay ? 1 : 0);
  const auto has_yielded = [&](size_t i) {
    if (is_preempted) return false;  // that has been paid for
    if (i < runnable_.size()) return runnable_[i].has_yielded;
    return i == runnable_.size() + due_.size();  // who asks
  };
  // Who has yielded comes after all others, or loops that wait by yielding would never end. Once
  // all have, they begin anew.
  std::vector<size_t> alternatives;
  for (size_t i = 0; i < count; ++i) {
    if (!has_yielded(i)) alternatives.push_back(i);
  }
  const size_t ordinary = alternatives.size();
  if (ordinary == 0) {
    for (Runnable& runnable : runnable_) runnable.has_yielded = false;
    is_turn_over_ = false;
    return ChooseBelow(static_cast<uint32_t>(count));
  }
  if (bounds_left_.preemptions > 0) {
    for (size_t i = 0; i < count; ++i) {
      if (has_yielded(i)) alternatives.push_back(i);
    }
  }
  const uint32_t chosen = ChooseBelow(static_cast<uint32_t>(alternatives.size()));
  if (chosen >= ordinary) --bounds_left_.preemptions;
  return alternatives[chosen];
}

bool Simulation::ChooseLate() {
  if (timers_.empty()) return false;
  if (exploration_ == nullptr) {
    return options_.late_probability > 0 && random_.Chance(options_.late_probability);
  }
  if (bounds_left_.late_timers == 0 || (runnable_.empty() && due_.empty())) return false;
  if (ChooseBelow(2) == 0) return false;
  --bounds_left_.late_timers;
  return true;
}

void Simulation::FileTimer(Entry entry) {
  if (entry.deadline_ns <= NowNs()) {
    due_.push_back(entry);
  } else {
    timers_.emplace(std::pair(entry.deadline_ns, ++filed_), entry.block);
  }
}

bool Simulation::JumpClock() {
  if (timers_.empty()) return false;
  const int64_t now = timers_.begin()->first.first;
  SetNow(now);
  while (!timers_.empty() && timers_.begin()->first.first == now) {
    due_.push_back({timers_.begin()->second, now});
    timers_.erase(timers_.begin());
  }
  return true;
}

void Simulation::SetNow(int64_t now_ns) {
  now_ns_.store(now_ns, std::memory_order_relaxed);
}

void Simulation::QueueNew(Record& fiber) {
  CheckThread(fiber, "spawned");
  fibers_.emplace(&fiber, ++spawned_);
  runnable_.push_back({&fiber, false});
}

void Simulation::RequeueNew(Record& fiber) {
  CheckThread(fiber, "given a stack");
  runnable_.push_back({&fiber, false});
}

void Simulation::QueueReady(Record& fiber) {
  CheckThread(fiber, "unparked");
  runnable_.push_back({&fiber, false});
}

void Simulation::QueueYielded(Record& fiber) {
  runnable_.push_back({&fiber, is_turn_over_});
}

Record* Simulation::TakeNext(ThreadState& thread, WaitBlock* spare) {
  Record* next = nullptr;
  Choose(thread, spare, /*may_stay=*/false, &next);
  return next;
}

bool Simulation::TakeNextForYield(ThreadState& thread, Record** next) {
  *next = nullptr;
  is_turn_over_ = !is_preempting_;
  return Choose(thread, nullptr, /*may_stay=*/true, next) != Choice::kStay;
}

bool Simulation::ArmTimer(ThreadState&, WaitBlock& block, int64_t deadline_ns) {
  if (fiber::internal::TryFile(block, deadline_ns, /*lateness_ns=*/0,
                               /*is_lateness_tolerable=*/true, this)) {
    FileTimer({&block, deadline_ns});
  }
  return true;
}

void Simulation::OnFiberEnded(ThreadState& thread) { fibers_.erase(thread.current); }

void Simulation::SchedulePoint(ThreadState& thread) {
  if (thread.current->state.load(std::memory_order_relaxed) != State::kRunning) {
    Fatal("a wait begins within another wait of the same fiber");
  }
  if (exploration_ != nullptr) {
    PreemptIfChosen();
  } else if (random_.Chance(options_.preempt_probability)) {
    fiber::internal::YieldFiber();
  }
}

void Simulation::PreemptIfChosen() {
  if (ChooseLate()) JumpClock();
  if (bounds_left_.preemptions == 0 || (runnable_.empty() && due_.empty())) return;
  if (ChooseBelow(2) == 0) return;
  --bounds_left_.preemptions;
  is_preempting_ = true;
  fiber::internal::YieldFiber();
}

void Simulation::CheckThread(const Record& fiber, const char* event) const {
  if (&fiber::internal::ThisThread() == &thread_) return;
  Fatal("%s of a simulation was %s by another thread, which no seed could replay",
        Describe(fiber).c_str(), event);
}

void Simulation::OnStuck(bool is_livelock) {
  if (is_cancelled()) {
    is_abandoned_ = true;
    absl::StrAppend(&failure_, "\n  ", CountFibers(fibers_.size()),
                    " did not end when cancelled, and will never be freed");
    return;
  }
  const std::string report = DescribeStuck(is_livelock);
  absl::StrAppend(&failure_, failure_.empty() ? "" : "\n", report);
  // At once: what the fibers do when they are cancelled may end the process.
  for (const auto& line : absl::StrSplit(absl::StrCat(name(), ": ", report), '\n')) {
    fiber::internal::LogLine("%.*s", static_cast<int>(line.size()), line.data());
  }
  step_limit_ = steps_ + options_.max_steps;
  SetCancelled();
  for (Record* fiber : FibersInOrder()) {
    fiber::internal::ClaimForCancel(*fiber, fiber->id.load(std::memory_order_relaxed));
  }
}

std::string Simulation::DescribeStuck(bool is_livelock) const {
  std::string text;
  if (is_livelock) {
    text = absl::StrCat(
        "livelock: after ", options_.max_steps, " steps ", has_body_ended_ ? "the body has ended, but " : "",
        CountFibers(fibers_.size()), fibers_.size() == 1 ? " has" : " have", " not ended");
  } else {
    text = absl::StrCat(has_body_ended_ ? "leaked fibers: the body has ended" : "deadlock",
                        ": nothing is runnable, no timer is armed, ", CountFibers(fibers_.size()),
                        fibers_.size() == 1 ? " is left" : " are left");
  }
  const std::vector<Record*> fibers = FibersInOrder();
  for (size_t i = 0; i < fibers.size() && i < kMostDescribed; ++i) {
    absl::StrAppend(&text, "\n  ", DescribeFiber(*fibers[i]));
  }
  if (fibers.size() > kMostDescribed) {
    absl::StrAppend(&text, "\n  and ", CountFibers(fibers.size() - kMostDescribed), " more");
  }
  return text;
}

std::string Simulation::DescribeFiber(Record& fiber) const {
  std::string text = absl::StrCat(Describe(fiber), ": ");
  switch (fiber.state.load(std::memory_order_relaxed)) {
    case State::kNew:
      absl::StrAppend(&text, runnable_.empty() ? "not started: no stack is free" : "not started");
      break;
    case State::kReady:
      absl::StrAppend(&text, "runnable");
      break;
    default: {  // this is the thread's own stack: all others are parked
      const WaitBlock& block = *fiber.block.load(std::memory_order_relaxed);
      const std::string_view reason = WaitReasonName(block.reason);
      absl::StrAppend(&text, "waits: ", absl::string_view(reason.data(), reason.size()));
      if (block.reason == WaitReason::kJoin) {
        absl::StrAppend(&text, " of ", Describe(*static_cast<const Record*>(block.object)));
      } else if (block.object != nullptr) {
        absl::StrAppend(&text, absl::StrFormat(" at %p", block.object));
      }
      if (const int64_t deadline = block.timer.deadline_ns.load(std::memory_order_relaxed);
          deadline != kNeverNs) {
        absl::StrAppend(&text, ", for ",
                        absl::FormatDuration(
                            absl::Nanoseconds(deadline - now_ns_.load(std::memory_order_relaxed))));
      }
    }
  }
  if (fiber.cancel.load(std::memory_order_relaxed) != nullptr)
    absl::StrAppend(&text, ", cancelled");
  return text;
}

std::vector<Record*> Simulation::FibersInOrder() const {
  std::vector<std::pair<int64_t, Record*>> numbered;
  numbered.reserve(fibers_.size());
  for (const auto& [fiber, number] : fibers_) numbered.emplace_back(number, fiber);
  std::sort(numbered.begin(), numbered.end());
  std::vector<Record*> fibers;
  fibers.reserve(numbered.size());
  for (const auto& [number, fiber] : numbered) fibers.push_back(fiber);
  return fibers;
}

}  // namespace fiber::sim::internal
