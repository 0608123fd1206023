// SPDX-License-Identifier: Apache-2.0
//
// Monitor: the thread that sees to it that no fiber holds up the others.
//
// Problem: a worker looks after its queue, events and timers at scheduling points only, and a fiber may not come to one for
// as long as it likes. Rejected: a timer signal that preempts (C++ in mid-instruction holds locks, and a signal ends users'
// system calls with EINTR); a clock at each switch (22 ns, and no help against a fiber that stays).
//
// Chosen: a thread that looks, at every tick, which workers are in the same run of the same fiber as a tick ago (RunQueue::
// runs). For such a one, while anything waits, a fiber, a timer, or maybe an event that nobody has polled for:
//
//   somebody is idle            its queue is moved to the shared ones, and he is woken
//   its thread is blocked       it stands (crew.h), at the second look, and somebody else takes its seat
//   its thread computes         when that has lasted for RuntimeOptions::stall_after, its queue is moved, and if nobody else
//                               who is seated moves on, it stands likewise: more threads than CPUs would only share these
//
// Where there may be no spare threads nobody stands, but who holds up all others is told of all the same.
//
// And if somebody is idle though fibers wait in the shared queues, or a timer is overdue, at the second look he is woken, whoever
// holds up whom.
//
// Blocked means: its CPU clock stood still from one tick to the next, and the kernel says that it does not run; a thread
// that only lost its CPU is runnable. Of fibers that block one after the other, each would take two ticks: while more are
// seen to block within kBurstNs, twice as many are called each time, on seats that are taken back when none is any more. And
// who has been seen to block is taken for a blocker from then on, to which its worker gives way beforehand, until it does not
// block for once (Worker::GiveWay).
//
// Ticks: kFastNs while something is suspected, or waits though somebody is idle, kBusyNs while all are busy and anything is
// queued or armed, otherwise twice as long each time up to kSlowNs. When nobody has run a fiber for kRestAfterNs it sleeps,
// by the idle protocol: it announces that, then looks whether all are idle; who leaves idle for a fiber, then looks for the
// announcement.
// order: monitor — seq_cst store-load on asleep_ and Idle's word, or the free seats.
#ifndef WEFT_SCHED_INTERNAL_MONITOR_H_
#define WEFT_SCHED_INTERNAL_MONITOR_H_

#include <pthread.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "fiber/internal/atomic.h"
#include "fiber/internal/thread_state.h"
#include "sched/internal/stall_reporter.h"

namespace sched::internal {

using fiber::internal::Atomic;

class Core;
class ThreadProbe;
class Worker;

class Monitor {
 public:
  explicit Monitor(Core& core);

  // Takes what memory it needs, none of it later. Throws std::bad_alloc. Before Start().
  void Reserve();
  // False: no thread could be had, which is said in the log: fibers that compute or block hold up others.
  bool Start();
  // Blocks the thread.
  void Stop();

  // By a worker that was idle, or had no seat, and is about to run a fiber.
  void WakeIfAsleep() {
    if (asleep_.load(std::memory_order_seq_cst) != 0) [[unlikely]] Wake();  // order: monitor
  }

  // One look. Returns how long to wait until the next one; zero: nothing can stall, sleep. By the monitor's thread.
  int64_t Tick(int64_t now_ns);

  uint64_t stalls_spinning() const { return stalls_spinning_.load(std::memory_order_relaxed); }
  uint64_t stalls_blocked() const { return stalls_blocked_.load(std::memory_order_relaxed); }

  static constexpr int64_t kFastNs = 200'000;
  static constexpr int64_t kBusyNs = 2'000'000;
  static constexpr int64_t kSlowNs = 3'000'000;
  static constexpr int64_t kRestAfterNs = 100'000'000;
  // For the stack of one that computes; it takes some 10 us unless it has no CPU.
  static constexpr int64_t kPatienceNs = 5'000'000;
  static constexpr int kMostTries = 20;
  static constexpr int64_t kForgottenNs = 10'000'000'000;
  // Of those who block within so long each makes it twice as many.
  static constexpr int64_t kBurstNs = 20'000'000;
  static constexpr int32_t kMostAtOnce = 64;  // seats beyond the fixed number
  // So long without a poll are events nobody's: then the monitor polls, if it suspects somebody, or makes workers do it.
  static constexpr int64_t kPollNs = 10'000'000;

 private:
  // What was seen of a worker.
  struct View {
    uint64_t runs = 0;
    int64_t since_ns = 0;   // of the first look at this run; 0: it was in no fiber
    int64_t cpu_ns = -1;    // its thread's CPU clock when that was last read; -1: not in this run
    int64_t first_cpu_ns = 0;  // and when it was first read
    bool is_prepared_for = false;  // there is a spare thread in case it is to stand
    bool is_accused = false;       // of this run
  };

  // A worker that was made to stand, or gave way, as long as it is in the same run and has not been told of: a look at what moves may fail.
  struct Culprit {
    Worker* worker;
    Stall::Kind kind;
    uint64_t runs;
    int64_t since_ns;
    int64_t stood_ns;
    int64_t first_cpu_ns;
    int64_t cpu_ns;  // when it was last to be told of; -1: never
    int tries;
  };

  static void* Entry(void* monitor);
  void Main();
  void Wake();
  void Sleep();
  bool IsAnythingDue(int64_t now_ns) const;
  bool IsQuiet() const;
  void RemindIdle(int64_t now_ns);
  void TakeBackSeats(int64_t now_ns);
  View& ViewOf(const Worker& worker);
  void Look(Worker& worker, int64_t now_ns);
  void Accuse(Worker& worker, View& view, Stall::Kind kind, int64_t now_ns);
  void Count(Stall::Kind kind);
  bool Relieve(int64_t now_ns);
  bool RelieveWithoutSpares(int64_t now_ns);
  void AccuseStanding(int64_t now_ns);
  static bool StandsStill(const ThreadProbe& probe, View& view);
  static bool IsBlocked(const Worker& worker, const fiber::internal::ThreadState& state, View& view);
  void ReportCulprits(int64_t now_ns);
  bool Report(Culprit& culprit, int64_t now_ns);
  bool IsItsDoing(Culprit& culprit, const ThreadProbe& probe);
  void PollForOthers(int64_t now_ns);

  Core& core_;
  pthread_t thread_{};
  bool has_thread_ = false;
  std::unique_ptr<fiber::internal::ThreadState> first_state_;  // until the thread has it
  Atomic<uint32_t> asleep_{0};      // futex
  Atomic<uint32_t> is_stopped_{0};  // futex. order: stop
  Atomic<uint64_t> stalls_spinning_{0};
  Atomic<uint64_t> stalls_blocked_{0};

  // The monitor's thread only.
  std::vector<View> views_;        // by Worker::index
  std::vector<Worker*> same_;      // in the run they were in a tick ago
  std::vector<Worker*> late_;  // who gave way beforehand, and has been in this run for stall_after
  std::vector<Culprit> culprits_;  // made to stand, and to be told of
  bool is_anyone_moving_ = false;  // who is seated, and has come to a scheduling point since
  int64_t interval_ns_ = kFastNs;
  int64_t quiet_since_ns_ = 0;
  int64_t reminded_ns_ = 0;
  int64_t reminder_pause_ns_ = 0;
  int64_t polled_ns_ = 0;          // when the polls were last seen to have moved on
  int64_t turned_ns_ = 0;          // the same, but for those of the monitor's own
  uint64_t polls_ = 0;
  StallReporter reporter_;
  int32_t burst_ = 1;              // so many are called at once
  int64_t blocked_ns_ = 0;  // when somebody was last seen to block
  int32_t extra_seats_ = 0;
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_MONITOR_H_
