// SPDX-License-Identifier: Apache-2.0
//
// The threads of a runtime: who may run fibers, who stands aside, who rests.
//
// Problem: a fiber that blocks in the kernel, or computes for long, has its worker to itself, and a runtime with as many
// threads as CPUs soon has none left for the others. It cannot be made to leave, nor may its run queue be taken away while
// it runs: it can unpark others at any instruction, and would push into a queue that somebody else now owns.
//
// Chosen (Go's P and M, but a queue never changes hands): a fixed number of seats, RuntimeOptions::workers; a worker has a
// seat, or stands, or rests. What is in the queue of one that stands is moved to the shared queues, from outside, and
// somebody else takes the seat, with a run queue of its own.
//
//   from     to        by                    when
//   seated   asleep    itself                before it counts as idle (idle.h)
//   asleep   seated    itself                back from sleep
//   seated   standing  itself                its fiber is about to block (BeginBlocking); there are seats too many
//   seated   standing  the monitor           it has been in one fiber for too long
//   standing seated    itself                at a scheduling point, if a seat is free
//   standing resting   itself                at a scheduling point, if none is; its queue is empty by then
//   resting  seated    who fills seats       a seat is free
//   resting  gone      itself                nobody called it for kRestNs; the thread ends
//   gone     resting   who fills seats, or   nobody rests, and a seat is free, or somebody will be needed soon; a new thread,
//                      the monitor           which may be called before it has begun
//
// To asleep is a CAS and back a store, both by the worker alone; the rest happen under mutex_, where the free seats are counted.
// A worker goes to sleep only if it is seated, so at most as many are idle as there are seats.
//
// What stands pushes to its own queue as ever, where nobody looks, since whoever sleeps relies on the queue's owner. So each
// push by a fiber is followed by a look at the mode, those that the thread makes on its own stack by one before it runs a
// fiber (Worker::Found), and each step to standing by a look at the queue (Core::HandOver): a store-load pair on each side.
// order: stand — seq_cst on the mode, the queues' tails and slots, as in idle.h.
//
// Lock order: mutex_ before the locks of queues; nobody parks under it.
#ifndef WEFT_SCHED_INTERNAL_CREW_H_
#define WEFT_SCHED_INTERNAL_CREW_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"
#include "sched/internal/run_queue.h"

namespace sched::internal {

class Core;
class Worker;

class Crew {
 public:
  // `seats`: so many workers run fibers at once. `max_threads`: so many threads at most, at least `seats`.
  Crew(Core& core, uint32_t seats, uint32_t max_threads);
  ~Crew();

  // A thread for every seat. Returns how many could be had; the other seats are free until one can.
  uint32_t Start();
  // Ends those that rest. The others see that the runtime is stopped; then waits for all. Blocks the thread.
  void Stop();

  uint32_t seats() const { return seats_; }
  uint32_t max_threads() const { return max_threads_; }
  // Whether anybody can ever take the place of one that stands.
  bool has_spares() const { return max_threads_ > seats_; }
  // Those that anybody may have to look into. order: idle-wake — a queue is counted before its owner's first push.
  std::span<const std::unique_ptr<RunQueue>> queues() const {
    return {queues_.get(), queue_count_.load(std::memory_order_seq_cst)};  // order: idle-wake
  }
  // All that were ever made, for sums.
  std::span<const std::unique_ptr<RunQueue>> all_queues() const {
    return {queues_.get(), made_count_.load(std::memory_order_acquire)};  // order: publish
  }

  // By the worker itself, in a fiber that is about to hold it up, or by the monitor, when it has seen that. False: it is not
  // seated.
  bool StandUp(Worker& worker);
  // By the worker itself at a scheduling point, standing. False: no seat is free.
  [[nodiscard]] bool TryTakeSeat(Worker& worker);
  // More are seated than there are seats (AddSeats): one of them is to stand up.
  bool has_surplus() const { return free_seats_.load(std::memory_order_relaxed) < 0; }
  // By the worker itself, standing, its queue empty. True: it was called, and is seated. False: its thread is to end.
  // Blocks the thread.
  [[nodiscard]] bool Rest(Worker& worker);
  // The same by a new thread, which rests since before it was made.
  [[nodiscard]] bool AwaitSeat(Worker& worker);

  // Seats beyond the fixed number, until they are taken back: for many fibers that block one after the other.
  void AddSeats(int32_t count);
  // Visits every worker that has a thread, which stays meanwhile.
  void ForEach(absl::FunctionRef<void(Worker&)> visit);

  // Keeps a worker's thread, and so its state, from ending. state(): null: it has no thread that runs.
  class Pinned {
   public:
    Pinned(Crew& crew, Worker& worker) : crew_(crew), worker_(worker), state_(crew.Pin(worker)) {}
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    ~Pinned() {
      if (state_ != nullptr) crew_.Unpin(worker_);
    }
    const fiber::internal::ThreadState* state() const { return state_; }

   private:
    Crew& crew_;
    Worker& worker_;
    const fiber::internal::ThreadState* const state_;
  };

  // A new thread, if nobody rests: where one will be needed soon. Where all CPUs compute, a new one waits for them for some
  // milliseconds, and one that has rested does not.
  void PrepareSpare();
  // Calls somebody for each free seat, as long as somebody can be had. By whoever freed one.
  void FillSeats();
  // Whether that may help: a thread that could not be made is not tried again for kRetryNs.
  bool may_fill(int64_t now_ns) const {
    return free_seats() > 0 && now_ns >= retry_ns_.load(std::memory_order_relaxed);
  }
  int32_t free_seats() const { return free_seats_.load(std::memory_order_seq_cst); }       // order: idle-wake

  // Threads that there are.
  uint32_t threads() const { return threads_.load(std::memory_order_relaxed); }

  // How long a thread rests before it ends.
  static constexpr int64_t kRestNs = 1'000'000'000;
  static constexpr int64_t kRetryNs = 50'000'000;

 private:
  const fiber::internal::ThreadState* Pin(Worker& worker);
  void Unpin(Worker& worker);

  // Under mutex_.
  bool CallSomebody();
  void AddResting(Worker& worker);
  bool StartThread();
  Worker* TakeThreadless();
  Worker* MakeWorker();
  void Forget(Worker& worker);
  void CountQueues();
  void NoThread(const char* why);

  // Not under mutex_, which keeps others from running fibers: whoever reads the log may be one of them.
  void Complain();

  Core& core_;
  const uint32_t seats_;
  const uint32_t max_threads_;
  const std::unique_ptr<std::unique_ptr<RunQueue>[]> queues_;  // max_threads_ of them; made as needed, never destroyed before

  fiber::internal::BlockingMutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Worker>> workers_;  // the i-th owns the i-th queue
  Worker* resting_ = nullptr;                      // who came last goes first
  bool is_stopped_ = false;
  int64_t next_complaint_ns_ = 0;
  const char* complaint_ = nullptr;  // yet to be said

  // Written under mutex_.
  Atomic<int32_t> free_seats_;
  Atomic<uint32_t> queue_count_{0};
  Atomic<uint32_t> made_count_{0};
  Atomic<uint32_t> threads_{0};
  Atomic<int64_t> retry_ns_{0};
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_CREW_H_
