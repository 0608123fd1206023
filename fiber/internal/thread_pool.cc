// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/thread_pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fiber/internal/ambient.h"
#include "fiber/internal/block_signals.h"
#include "fiber/internal/event_wait.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/local_slot.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_state.h"
#include "fiber/wait_reason.h"

namespace fiber::internal {
namespace {

// What keeps threads from being made: they need a stack, too.
constexpr char kThreadLimits[] =
    "the limit on threads is reached (ulimit -u, the pids limit of the control group, kernel.threads-max), or on address "
    "space (ulimit -v), locked memory after mlockall (ulimit -l) or mappings (vm.max_map_count); raise it or have fewer "
    "threads";

[[maybe_unused]] const ThreadPool& pool_made_before_main = ThreadPool::Get();

// What a call has left in this thread, the next is not to find.
void ForgetValues() {
  const ThreadState* const thread = ThisThreadOrNull();
  if (thread != nullptr && thread->plain_block != nullptr) DropValues(*thread->plain_block);
}

absl::Status NoThread(int error) {
  try {
    return absl::ResourceExhaustedError(
        absl::StrCat("not one thread for a blocking call can be had: ", strerror(error), ": ", kThreadLimits));
  } catch (const std::bad_alloc&) {  // which may be what keeps the thread from being made
    return absl::Status(absl::StatusCode::kResourceExhausted, "");
  }
}

}  // namespace

// Never destroyed: its threads may be in calls that exit() does not wait for.
ThreadPool& ThreadPool::Get() {
  static ThreadPool* const pool = new ThreadPool;
  return *pool;
}

ThreadPool::ThreadPool() {
  HoldAcrossForks(lock_);
  CallInForkedChildren(&RestartInFork);
}

// Threads and those who waited stayed in the parent; but for the one that called fork(), which may be in a call.
void ThreadPool::RestartInFork() {
  ThreadPool& pool = Get();
  SpinLockHolder hold(pool.lock_);
  pool.first_ = nullptr;
  pool.last_ = nullptr;
  pool.idle_ = nullptr;
  pool.threads_ = 0;
}

// Who wants calls made. ----------------------------------------------------------------------------------------------

absl::Status ThreadPool::Run(std::unique_ptr<PooledCall>& call, Deadline deadline) {
  bool is_abandoned = false;
  absl::Status status = Await(*call, deadline, /*may_abandon=*/true, &is_abandoned);
  if (is_abandoned) (void)call.release();  // the thread that makes it deletes it
  return status;
}

absl::Status RunPooled(std::unique_ptr<PooledCall>& call, Deadline deadline) {
  return ThreadPool::Get().Run(call, deadline);
}

absl::Status ThreadPool::RunToEnd(PooledCall& call, Deadline deadline) {
  bool is_abandoned = false;
  return Await(call, deadline, /*may_abandon=*/false, &is_abandoned);
}

absl::Status ThreadPool::RunRegardless(PooledCall& call, Deadline patience) {
  (void)CallersBlock();
  Submit(call);
  if (!EventWait::ForIt(call.done_, WaitReason::kBlockingCall, this, patience) &&
      GiveUp(call, /*may_abandon=*/false) == GaveUp::kBeforeItWasMade) {
    return absl::Status(absl::StatusCode::kResourceExhausted, "");
  }
  return AwaitDone(call);
}

absl::Status ThreadPool::Await(PooledCall& call, Deadline deadline, bool may_abandon,
                               bool* is_abandoned) {
  (void)CallersBlock();  // from Submit() on nothing may throw
  Submit(call);
  absl::Status status = EventWait::For(call.done_, WaitReason::kBlockingCall, this, deadline);
  if (status.ok()) return call.refusal_;
  switch (GiveUp(call, may_abandon)) {
    case GaveUp::kWhileItIsMade:
      *is_abandoned = true;
      return status;
    case GaveUp::kBeforeItWasMade:
      return status;
    case GaveUp::kTooLate:
      break;
  }
  return AwaitDone(call);
}

absl::Status ThreadPool::AwaitDone(PooledCall& call) {
  (void)EventWait::ForIt(call.done_, WaitReason::kBlockingCall, this);  // nothing else can end it
  return call.refusal_;
}

void ThreadPool::Submit(PooledCall& call) {
  Thread* idle = nullptr;
  bool starts = false;
  {
    SpinLockHolder hold(lock_);
    if (idle_ != nullptr) {
      idle = idle_;
      idle_ = idle->next_idle;
      idle->call = &call;
      call.state_ = PooledCall::State::kTaken;
    } else {
      PushLocked(call);
      starts = threads_ < most_;
      if (starts) ++threads_;
    }
  }
  if (idle != nullptr) Wake(*idle);
  if (starts) Start();
}

ThreadPool::GaveUp ThreadPool::GiveUp(PooledCall& call, bool may_abandon) {
  SpinLockHolder hold(lock_);
  if (call.state_ == PooledCall::State::kQueued) {
    RemoveLocked(call);
    call.state_ = PooledCall::State::kNew;
    return GaveUp::kBeforeItWasMade;
  }
  if (call.state_ == PooledCall::State::kTaken && may_abandon) {
    call.state_ = PooledCall::State::kAbandoned;
    return GaveUp::kWhileItIsMade;
  }
  return GaveUp::kTooLate;
}

void ThreadPool::SetMaxThreads(int most) {
  if (most < 1) Fatal("at most %d threads for blocking calls: it must be at least 1", most);
  int starts = 0;
  Thread* ending = nullptr;
  {
    SpinLockHolder hold(lock_);
    most_ = most;
    while (threads_ > most_ && idle_ != nullptr) {
      Thread* const thread = idle_;
      idle_ = thread->next_idle;
      thread->next_idle = ending;
      ending = thread;
      --threads_;
    }
    // For those who were waiting for a thread.
    for (PooledCall* call = first_; call != nullptr && threads_ < most_; call = call->next_) {
      ++threads_;
      ++starts;
    }
  }
  while (ending != nullptr) {
    Thread& thread = *ending;
    ending = thread.next_idle;
    Wake(thread);
  }
  for (; starts > 0; --starts) Start();
}

int ThreadPool::threads() {
  SpinLockHolder hold(lock_);
  return threads_;
}

// Threads. ------------------------------------------------------------------------------------------------------------

// Where none can be had, others make what is queued; if there are none and none is being started, nobody ever would.
void ThreadPool::Start() {
  pthread_t thread;
  {
    const sigset_t signals = ProgramSignals();
    SpinLockHolder hold(lock_);
    programs_signals_ = signals;
  }
  // It tells fibers of the ends of calls, for which it needs a state.
  int error = ENOMEM;
  try {
    auto birth = std::make_unique<Birth>(Birth{this, NewThreadState()});
    if (birth->state != nullptr) error = System().pthread_create(&thread, nullptr, &Entry, birth.get());
    if (error == 0) {
      (void)birth.release();  // it is the thread's
      return;
    }
  } catch (const std::bad_alloc&) {
  }
  PooledCall* refused = nullptr;
  {
    SpinLockHolder hold(lock_);
    if (--threads_ > 0) return;
    refused = first_;
    first_ = nullptr;
    last_ = nullptr;
    for (PooledCall* call = refused; call != nullptr; call = call->next_) {
      call->state_ = PooledCall::State::kDone;
    }
  }
  const absl::Status refusal = NoThread(error);
  while (refused != nullptr) {
    PooledCall& call = *refused;
    refused = call.next_;
    call.refusal_ = refusal;
    call.done_.Set();
  }
}

void* ThreadPool::Entry(void* argument) {
  std::unique_ptr<Birth> birth(static_cast<Birth*>(argument));
  ThreadPool& pool = *birth->pool;
  AdoptThreadState(std::move(birth->state));
  birth = nullptr;
  Thread self;
  {
    SpinLockHolder hold(pool.lock_);
    self.programs_signals = pool.programs_signals_;
  }
  BlockSignals(self.programs_signals);
  self.id = pthread_self();
  pthread_setname_np(self.id, "weft-blocking");  // only a name: may fail
  pool.ServeAs(self);
  LeaveSignalsBlocked();
  if (!self.is_joined) pthread_detach(self.id);  // cannot fail: nobody else joins it
  return nullptr;
}

void ThreadPool::ServeAs(Thread& self) {
  const uint64_t generation = ForkGeneration();
  PooledCall* made = nullptr;
  for (;;) {
    PooledCall* call = TakeNext(self, made);
    if (call == nullptr) call = Sleep(self);
    if (call == nullptr) return;
    call->Make();
    if (ForkGeneration() != generation) return;  // a child's, where nobody waits for the call
    ForgetValues();
    made = call;
  }
}

PooledCall* ThreadPool::TakeNext(Thread& self, PooledCall* made) {
  PooledCall* next = nullptr;
  lock_.Lock();
  if (made != nullptr && made->state_ == PooledCall::State::kAbandoned) {
    lock_.Unlock();
    made->OnUnwanted();
    delete made;  // which may take long, so it is done before this thread can be given another
    made = nullptr;
    ForgetValues();
    lock_.Lock();
  }
  if (made != nullptr) made->state_ = PooledCall::State::kDone;
  self.call = nullptr;
  if (threads_ > most_) {
    // One too many: it ends as if it had been told to.
    --threads_;
    self.signal.store(1, std::memory_order_relaxed);
  } else if (first_ != nullptr) {
    next = first_;
    RemoveLocked(*next);
    next->state_ = PooledCall::State::kTaken;
  } else {
    self.signal.store(0, std::memory_order_relaxed);
    self.next_idle = idle_;
    idle_ = &self;
  }
  lock_.Unlock();
  // Who waited may find this thread idle when he goes on.
  if (made != nullptr) made->done_.Set();
  return next;
}

// order: pool-signal — release by who writes `call`, acquire by the thread.
PooledCall* ThreadPool::Sleep(Thread& self) {
  int64_t deadline_ns = MonotonicNs() + idle_ns_.load(std::memory_order_relaxed);
  while (self.signal.load(std::memory_order_acquire) == 0) {  // order: pool-signal
    if (FutexWait(self.signal, 0, deadline_ns)) continue;
    SpinLockHolder hold(lock_);
    if (TakeIdleLocked(self)) {
      --threads_;
      return nullptr;
    }
    deadline_ns = kNeverNs;  // the signal comes
  }
  return self.call;
}

// The thread may be gone as soon as the signal is there.
void ThreadPool::Wake(Thread& thread) {
  thread.signal.store(1, std::memory_order_release);  // order: pool-signal
  FutexWake(thread.signal, 1);
}

void ThreadPool::EndIdle() {
  Thread* ending = nullptr;
  {
    SpinLockHolder hold(lock_);
    ending = idle_;
    idle_ = nullptr;
    for (Thread* thread = ending; thread != nullptr; thread = thread->next_idle) {
      --threads_;
      thread->is_joined = true;
    }
  }
  while (ending != nullptr) {
    Thread& thread = *ending;
    const pthread_t id = thread.id;
    ending = thread.next_idle;
    Wake(thread);
    pthread_join(id, nullptr);  // cannot fail: it is joined once, and by others
  }
}

// Lists. --------------------------------------------------------------------------------------------------------------

void ThreadPool::PushLocked(PooledCall& call) {
  call.state_ = PooledCall::State::kQueued;
  call.next_ = nullptr;
  call.prev_ = last_;
  (last_ == nullptr ? first_ : last_->next_) = &call;
  last_ = &call;
}

void ThreadPool::RemoveLocked(PooledCall& call) {
  (call.prev_ == nullptr ? first_ : call.prev_->next_) = call.next_;
  (call.next_ == nullptr ? last_ : call.next_->prev_) = call.prev_;
}

bool ThreadPool::TakeIdleLocked(Thread& thread) {
  for (Thread** link = &idle_; *link != nullptr; link = &(*link)->next_idle) {
    if (*link != &thread) continue;
    *link = thread.next_idle;
    return true;
  }
  return false;
}

}  // namespace fiber::internal
