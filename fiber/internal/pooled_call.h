// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_POOLED_CALL_H_
#define WEFT_FIBER_INTERNAL_POOLED_CALL_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/event.h"

namespace fiber::internal {

// PooledCall is a call that a thread of the pool makes for somebody who waits for it.
class PooledCall {
 public:
  virtual ~PooledCall() = default;
  PooledCall(const PooledCall&) = delete;
  PooledCall& operator=(const PooledCall&) = delete;

 protected:
  PooledCall() = default;

 private:
  friend class ThreadPool;
  // Who has it:
  //
  // | from    | to         | by                       | when                    | it then belongs to       |
  // |---------|------------|--------------------------|-------------------------|--------------------------|
  // | kNew    | kQueued    | who wants it made        | no thread is idle       | the queue                |
  // | kNew    | kTaken     | who wants it made        | one is                  | that thread              |
  // | kQueued | kTaken     | a thread                 | it has made another     | that thread              |
  // | kQueued | kNew       | who waits                | gives up                | who waited               |
  // | kQueued | kDone      | who could start no thread | there are none at all  | who waits, from done_ on |
  // | kTaken  | kAbandoned | who waits                | gives up                | that thread, for good    |
  // | kTaken  | kDone      | that thread              | it has made it          | who waits, from done_ on |
  enum class State : uint8_t { kNew, kQueued, kTaken, kAbandoned, kDone };

  // Makes the call. On a thread of the pool, which is a plain one.
  virtual void Make() noexcept = 0;
  // It was made, and nobody waits any more: what is to be said before it is deleted. On that thread.
  virtual void OnUnwanted() noexcept {}

  // Guarded by the pool's lock.
  State state_ = State::kNew;
  PooledCall* next_ = nullptr;
  PooledCall* prev_ = nullptr;
  absl::Status refusal_;  // why it was not made; written before done_ is set
  Event done_;
};

// ThreadPool::Run() of the process's pool (thread_pool.h).
absl::Status RunPooled(std::unique_ptr<PooledCall>& call, Deadline deadline);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_POOLED_CALL_H_
