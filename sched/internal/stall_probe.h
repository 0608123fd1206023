// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_STALL_PROBE_H_
#define WEFT_SCHED_INTERNAL_STALL_PROBE_H_

#include <pthread.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"
#include "sched/internal/unwind.h"
#include "sched/stall.h"

namespace sched::internal {

// Makes ready the signal by which threads are asked for their stacks: a real-time one that nobody handles, for the life of the
// process. To be called before the threads in question block signals. 0: there is none; then stalls have no stack.
int InstallProbeSignal();

// ThreadProbe looks at a thread that stays in one fiber, from another thread.
//
//   ThreadProbe probe(thread, tid, state);
//   const int64_t before = probe.CpuNs();
//   … some ms later, and the worker is still in the same fiber …
//   const bool is_blocked = probe.CpuNs() == before && probe.State() == 'S';
//   if (std::optional<Stall> stall = probe.Describe(is_blocked ? Stall::Kind::kBlocked : Stall::Kind::kSpinning, stuck_for)) {
//     WriteStall(*stall);
//   }
//
// A thread that computes is asked by a signal, and copies its stack for us. One that waits in the kernel is left alone, since
// a signal would end a system call of the user's early (EINTR): the kernel says where its stack ends, which then stands still.
//
// Thread safety: one thread at a time; several may each have probes.
// Lifetime: the thread's state outlives the probe, the thread need not.
class ThreadProbe {
 public:
  ThreadProbe(pthread_t thread, pid_t tid, const fiber::internal::ThreadState& state);

  // The CPU clock, some 300 ns. -1: the thread is no more.
  int64_t CpuNs() const;
  // The kernel's letter for the thread, some 10 us: 'R' runs or could, 'S' and 'D' wait. '?': /proc cannot be read, or the
  // thread is no more.
  char State() const;

  // The fiber on the thread, and where it is. Nothing: there is none, or it has moved on meanwhile. One that is said to compute
  // but is found in the kernel is reported as that. Without a stack if it cannot be had: the thread has blocked the signal or
  // got no CPU, or /proc is not there. A thread that computes is waited for until `patience` is over. Blocks the thread.
  std::optional<Stall> Describe(Stall::Kind kind, absl::Duration duration,
                                absl::Duration patience = absl::Milliseconds(10)) const;

 private:
  using Frames = std::vector<void*>;

  // Nothing: the fiber has moved on. Empty: not to be had.
  std::optional<Frames> AskForFrames(const fiber::internal::Record& fiber, absl::Duration patience) const;
  std::optional<Frames> ReadFrames(const fiber::internal::Record& fiber) const;
  using Text = char[512];
  std::string_view ReadProc(const char* file, Text& text) const;

  const pid_t tid_;
  const fiber::internal::ThreadState& state_;
  clockid_t clock_{};
  bool has_clock_ = false;
};

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_STALL_PROBE_H_
