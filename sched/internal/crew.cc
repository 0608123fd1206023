// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/crew.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

#include "fiber/internal/futex.h"
#include "fiber/internal/thread_state.h"
#include "sched/internal/core.h"
#include "sched/internal/worker.h"

namespace sched::internal {

using fiber::internal::LogLine;
using fiber::internal::MonotonicNs;

Crew::Crew(Core& core, uint32_t seats, uint32_t max_threads)
    : core_(core),
      seats_(seats),
      max_threads_(std::max(seats, max_threads)),
      queues_(new std::unique_ptr<RunQueue>[max_threads_]),
      free_seats_(static_cast<int32_t>(seats)) {
  std::lock_guard hold(mutex_);
  workers_.reserve(max_threads_);
  // A worker looks at its siblings' queues from its first turn on.
  while (workers_.size() < seats_) MakeWorker();
  CountQueues();
}

Crew::~Crew() = default;

uint32_t Crew::Start() {
  next_complaint_ns_ = fiber::internal::kNeverNs;  // the caller says it
  FillSeats();
  next_complaint_ns_ = 0;
  return threads();
}

void Crew::Stop() {
  std::vector<Worker*> started;
  {
    std::lock_guard hold(mutex_);
    is_stopped_ = true;
    for (Worker* worker = resting_; worker != nullptr; worker = worker->next_resting) worker->Call();
    resting_ = nullptr;
    for (const auto& worker : workers_) {
      if (worker->has_thread()) started.push_back(worker.get());
    }
  }
  for (Worker* worker : started) worker->Join();
}

Worker* Crew::MakeWorker() {
  const auto index = static_cast<uint32_t>(workers_.size());
  auto queue = std::make_unique<RunQueue>(&core_);
  workers_.push_back(std::make_unique<Worker>(core_, *queue, index));  // reserved: only the worker may throw
  queues_[index] = std::move(queue);
  made_count_.store(index + 1, std::memory_order_release);  // order: publish
  return workers_.back().get();
}

// Down to the last that has a thread, or timers that others are to expire.
void Crew::CountQueues() {
  size_t count = workers_.size();
  while (count > seats_ && workers_[count - 1]->mode() == Worker::Mode::kGone &&
         queues_[count - 1]->timers.is_at_rest()) {
    --count;
  }
  queue_count_.store(static_cast<uint32_t>(count), std::memory_order_seq_cst);  // order: idle-wake
}

bool Crew::StandUp(Worker& worker) {
  std::lock_guard hold(mutex_);
  if (!worker.TryStand()) return false;
  free_seats_.store(free_seats_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);  // order: idle-wake
  return true;
}

bool Crew::TryTakeSeat(Worker& worker) {
  std::lock_guard hold(mutex_);
  const int32_t free = free_seats_.load(std::memory_order_relaxed);
  if (free <= 0) return false;
  free_seats_.store(free - 1, std::memory_order_seq_cst);  // order: idle-wake
  worker.Sit();
  return true;
}

void Crew::AddSeats(int32_t count) {
  std::lock_guard hold(mutex_);
  free_seats_.store(free_seats_.load(std::memory_order_relaxed) + count, std::memory_order_seq_cst);  // order: idle-wake
}

bool Crew::Rest(Worker& worker) {
  {
    std::lock_guard hold(mutex_);
    if (is_stopped_) return false;
    const int32_t free = free_seats_.load(std::memory_order_relaxed);
    if (free > 0) {  // since it looked last
      free_seats_.store(free - 1, std::memory_order_seq_cst);  // order: idle-wake
      worker.Sit();
      return true;
    }
    worker.LieDown();
    AddResting(worker);
  }
  return AwaitSeat(worker);
}

bool Crew::AwaitSeat(Worker& worker) {
  for (;;) {
    worker.AwaitCall(MonotonicNs() + kRestNs);
    std::lock_guard hold(mutex_);
    if (worker.is_called()) return !is_stopped_;
    if (worker.pins > 0) continue;
    Forget(worker);
    return false;
  }
}

// Nobody has called it for too long.
void Crew::Forget(Worker& worker) {
  Worker** link = &resting_;
  while (*link != &worker) link = &(*link)->next_resting;
  *link = worker.next_resting;
  // Who has ended before keeps his stack until he is joined, and nobody may need a thread for long.
  for (const auto& other : workers_) {
    if (other->mode() == Worker::Mode::kGone) (void)other->IsThreadGone();
  }
  worker.Leave();
  threads_.store(threads_.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  CountQueues();
}

const fiber::internal::ThreadState* Crew::Pin(Worker& worker) {
  std::lock_guard hold(mutex_);
  const fiber::internal::ThreadState* const state = worker.state();
  if (state != nullptr) ++worker.pins;
  return state;
}

void Crew::Unpin(Worker& worker) {
  std::lock_guard hold(mutex_);
  --worker.pins;
}

void Crew::ForEach(absl::FunctionRef<void(Worker&)> visit) {
  std::lock_guard hold(mutex_);
  for (const auto& worker : workers_) {
    if (worker->mode() != Worker::Mode::kGone) visit(*worker);
  }
}

void Crew::FillSeats() {
  {
    std::lock_guard hold(mutex_);
    while (!is_stopped_ && free_seats_.load(std::memory_order_relaxed) > 0) {
      if (!CallSomebody()) break;
      free_seats_.store(free_seats_.load(std::memory_order_relaxed) - 1, std::memory_order_seq_cst);  // order: idle-wake
    }
    if (complaint_ == nullptr) return;
  }
  Complain();
}

// Somebody is seated from here on. False: nobody can be had.
bool Crew::CallSomebody() {
  if (resting_ == nullptr && !StartThread()) return false;
  Worker& worker = *resting_;
  resting_ = worker.next_resting;
  worker.Sit();
  worker.Call();
  return true;
}

void Crew::AddResting(Worker& worker) {
  worker.next_resting = resting_;
  resting_ = &worker;
}

void Crew::PrepareSpare() {
  std::lock_guard hold(mutex_);
  if (is_stopped_ || resting_ != nullptr) return;
  // Nobody is missing yet: a failure is neither told of, nor does it keep the next from being tried.
  const int64_t next_complaint = std::exchange(next_complaint_ns_, fiber::internal::kNeverNs);
  const int64_t retry = retry_ns_.load(std::memory_order_relaxed);
  (void)StartThread();
  next_complaint_ns_ = next_complaint;
  retry_ns_.store(retry, std::memory_order_relaxed);
}

// Null: there may be none, or not now.
Worker* Crew::TakeThreadless() {
  const auto gone = std::find_if(workers_.begin(), workers_.end(), [](const auto& worker) {
    return worker->mode() == Worker::Mode::kGone && worker->IsThreadGone();
  });
  Worker* worker = gone != workers_.end() ? gone->get() : nullptr;
  if (MonotonicNs() < retry_ns_.load(std::memory_order_relaxed)) return nullptr;
  if (worker == nullptr) {
    if (workers_.size() == max_threads_) {
      NoThread("RuntimeOptions::max_threads is reached: raise it, or let fewer fibers block at once");
      return nullptr;
    }
    try {
      worker = MakeWorker();
    } catch (const std::bad_alloc&) {
      NoThread("there is no memory for its run queue");
      return nullptr;
    }
  }
  return worker;
}

// It rests from here on, though it may have to wait for a CPU before it can: who looks for one that rests finds it.
bool Crew::StartThread() {
  Worker* const worker = TakeThreadless();
  if (worker == nullptr) return false;
  worker->LieDown();
  CountQueues();
  if (worker->Start()) {
    threads_.store(threads_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    AddResting(*worker);
    return true;
  }
  worker->Leave();
  CountQueues();
  NoThread(kThreadLimits);
  return false;
}

// Said once a second at most: it is tried again and again.
void Crew::NoThread(const char* why) {
  const int64_t now = MonotonicNs();
  retry_ns_.store(now + kRetryNs, std::memory_order_relaxed);
  if (now < next_complaint_ns_) return;
  next_complaint_ns_ = now + 1'000'000'000;
  complaint_ = why;
}

void Crew::Complain() {
  const char* why;
  {
    std::lock_guard hold(mutex_);
    why = std::exchange(complaint_, nullptr);
  }
  if (why == nullptr) return;  // another has said it
  LogLine("no thread to run other fibers in place of one that blocks or computes (%u threads, %u workers): %s", threads(),
          seats_, why);
}

}  // namespace sched::internal
