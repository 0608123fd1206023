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

// What a thread does, at one look.
struct ThreadActivity {
  int64_t cpu_ns = -1;  // the thread's CPU clock; -1: not known
  char state = '?';     // as the kernel has it: 'R' runs or could, 'S' and 'D' wait; '?': not known
};

// What a thread did between two looks; nothing: it could have run, but others had the CPUs. Where /proc is not to be had, a
// thread without CPU time is taken for blocked.
std::optional<Stall::Kind> KindBetween(const ThreadActivity& before, const ThreadActivity& now);

// Makes ready the signal by which threads are asked for their stacks: a real-time one that nobody handles, for the life of the
// process. To be called before the threads in question block signals. 0: there is none; then stalls have no stack.
int InstallProbeSignal();

// ThreadProbe looks at a thread that stays in one fiber, from another thread.
//
//   const ThreadActivity before = probe.Look();
//   … some ms later, and the worker is still in the same fiber …
//   if (std::optional<Stall::Kind> kind = KindBetween(before, probe.Look())) {
//     if (std::optional<Stall> stall = probe.Describe(*kind, stuck_for)) WriteStall(*stall);
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
  // The kernel's letter for the thread, some 10 us. '?': /proc cannot be read, or the thread is no more.
  char State() const;
  ThreadActivity Look() const { return {.cpu_ns = CpuNs(), .state = State()}; }

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
