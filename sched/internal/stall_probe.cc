// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/stall_probe.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "absl/time/time.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/fork.h"
#include "fiber/internal/sanitizer.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/wait_block.h"

namespace sched::internal {
namespace {

using fiber::internal::Record;
using fiber::internal::System;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

constexpr size_t kCopyBytes = size_t{64} << 10;
constexpr size_t kMostFrames = 64;

// Which fiber a thread runs, asked from anywhere. Records are never unmapped.
Record* CurrentOf(const ThreadState& thread) { return thread.current; }

// Answer is where a thread that is asked leaves what it knows. One for the process: it is asked rarely.
//
// | state   | whose                                    | next, by whom                                              |
// |---------|------------------------------------------|------------------------------------------------------------|
// | Idle    | nobody's                                 | Asking: who wants to ask                                   |
// | Asking  | who asks; `state` is written             | Asked, with the thread's id: the same                      |
// | Asked   | nobody's: the thread's to take           | Given: that thread; Idle: who asked, out of patience       |
// | Given   | the thread's, which writes the rest      | Done: the same                                             |
// | Done    | who asked                                | Idle: the same                                             |
//
// A signal that comes late finds that it is not asked any more, or takes the next question to this thread for its own, which
// is as good. In a child of fork() it is Idle.
//
// order: answer — release by who leaves it, acquire by who takes it: what was written in the state before is visible.
struct Answer {
  static constexpr uint64_t kIdle = 0;
  static constexpr uint64_t kAsking = 1;
  static constexpr uint64_t kGiven = 2;
  static constexpr uint64_t kDone = 3;
  static uint64_t Asked(pid_t thread) { return (uint64_t{static_cast<uint32_t>(thread)} << 2) + 4; }

  fiber::internal::Atomic<uint64_t> state{kIdle};
  const ThreadState* thread = nullptr;
  const Record* fiber = nullptr;  // null: the thread was not on the stack of one
  Registers registers;
  size_t size = 0;
  uintptr_t words[kCopyBytes / sizeof(uintptr_t)] = {};
};

constinit Answer answer;

// Another's frames, in which sanitizers see redzones, and accesses that race.
#if defined(WEFT_ASAN)
__attribute__((no_sanitize("address")))
#endif
WEFT_NO_TSAN void CopyWords(uintptr_t* to, uintptr_t from, size_t count) {
  const volatile uintptr_t* const words = reinterpret_cast<const volatile uintptr_t*>(from);
  volatile uintptr_t* const copies = to;  // volatile: else it is a call of memcpy, which sanitizers replace
  for (size_t i = 0; i < count; ++i) copies[i] = words[i];
}

[[maybe_unused]] Registers RegistersOf(const ucontext_t& context) {
#if defined(__x86_64__)
  const auto* const all = context.uc_mcontext.gregs;
  return {.pc = static_cast<uintptr_t>(all[REG_RIP]),
          .sp = static_cast<uintptr_t>(all[REG_RSP]),
          .fp = static_cast<uintptr_t>(all[REG_RBP]),
          .has_fp = true};
#elif defined(__aarch64__)
  return {.pc = context.uc_mcontext.pc,
          .sp = context.uc_mcontext.sp,
          .fp = context.uc_mcontext.regs[29],
          .has_fp = true};
#else
  return {};
#endif
}

// How much of the stack above `sp` is copied; 0: `sp` is not in it.
size_t BytesToCopy(const WaitBlock& block, uintptr_t sp) {
  const auto low = reinterpret_cast<uintptr_t>(block.stack_low);
  const auto high = reinterpret_cast<uintptr_t>(block.stack_high);
  return sp >= low && sp < high ? std::min(high - sp, kCopyBytes) : 0;
}

// In the middle of whatever the thread does, on its alternate stack: nothing here may wait, allocate or fault.
void Give(const Registers& registers) {
  answer.fiber = nullptr;
  answer.size = 0;
  answer.registers = registers;
  const Record* const fiber = CurrentOf(*answer.thread);
  if (fiber == nullptr) return;
  const WaitBlock* const block = fiber->block.load(std::memory_order_relaxed);
  if (block == nullptr) return;
  // Between two fibers the stack is not yet, or no more, that of the current one.
  const size_t size = BytesToCopy(*block, answer.registers.sp) / sizeof(uintptr_t) * sizeof(uintptr_t);
  if (size == 0 || answer.registers.sp % sizeof(uintptr_t) != 0) return;
  CopyWords(answer.words, answer.registers.sp, size / sizeof(uintptr_t));
  answer.size = size;
  answer.fiber = fiber;
}

void OnProbe(int, siginfo_t*, void* context) {
  uint64_t asked = Answer::Asked(gettid());
  if (!answer.state.compare_exchange_strong(asked, Answer::kGiven, std::memory_order_acquire,  // order: answer
                                            std::memory_order_relaxed)) {
    return;
  }
#ifdef WEFT_TSAN
  // ThreadSanitizer calls handlers later, when the thread is in one of its functions: what is below there has been called
  // since the registers were those of the context.
  const auto* const frame = static_cast<const uintptr_t*>(__builtin_frame_address(0));
  (void)context;
  Give({.pc = frame[1], .sp = reinterpret_cast<uintptr_t>(frame + 2), .fp = frame[0], .has_fp = true});
#else
  Give(RegistersOf(*static_cast<const ucontext_t*>(context)));
#endif
  answer.state.store(Answer::kDone, std::memory_order_release);  // order: answer
}

// Who was asking is not there.
void ForgetQuestion() {
  answer.state.store(Answer::kIdle, std::memory_order_relaxed);
}

[[maybe_unused]] const bool probes_watch_forks = [] {
  fiber::internal::CallInForkedChildren(&ForgetQuestion);
  return true;
}();

bool IsHandler(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == &OnProbe;
}

// Not the first ones, which programs take for themselves.
int ChooseSignal() {
  for (int signal = SIGRTMAX - 1; signal >= SIGRTMIN; --signal) {
    struct sigaction now {};
    if (System().sigaction(signal, nullptr, &now) != 0 || (now.sa_flags & SA_SIGINFO) != 0 ||
        now.sa_handler != SIG_DFL) {
      continue;
    }
    struct sigaction action {};
    action.sa_sigaction = &OnProbe;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigfillset(&action.sa_mask);
    if (System().sigaction(signal, &action, nullptr) == 0) return signal;
  }
  return 0;
}

// Our handler may have been replaced since: then the default would end the process.
bool IsSignalOurs(int signal) {
  struct sigaction now {};
  return signal != 0 && System().sigaction(signal, nullptr, &now) == 0 && IsHandler(now);
}

// True when the answer is there. Until then, a few turns of nothing: it takes some 10 us, unless the thread has no CPU.
bool Await(uint64_t question, int64_t until_ns) {
  const timespec turn{.tv_sec = 0, .tv_nsec = 50'000};
  while (answer.state.load(std::memory_order_acquire) != Answer::kDone) {  // order: answer
    if (fiber::internal::MonotonicNs() >= until_ns) {
      uint64_t expected = question;
      if (answer.state.compare_exchange_strong(expected, Answer::kIdle, std::memory_order_relaxed,
                                              std::memory_order_relaxed)) {
        return false;
      }
      // It is being given: that ends by itself.
    }
    nanosleep(&turn, nullptr);
  }
  return true;
}

}  // namespace

int InstallProbeSignal() {
  static constinit fiber::internal::Atomic<bool> is_chosen{false};
  static constinit int signal = 0;  // const once chosen
  fiber::internal::OnceInAProcess(is_chosen, [] { signal = ChooseSignal(); });
  return signal;
}

ThreadProbe::ThreadProbe(pthread_t thread, pid_t tid, const ThreadState& state)
    : tid_(tid), state_(state), has_clock_(pthread_getcpuclockid(thread, &clock_) == 0) {}

int64_t ThreadProbe::CpuNs() const {
  timespec now;
  if (!has_clock_ || clock_gettime(clock_, &now) != 0) return -1;
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

// The start of a file of the thread's in /proc, in `text`. "": it cannot be read. Without memory: this is for when there is none.
std::string_view ThreadProbe::ReadProc(const char* file, Text& text) const {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/%s", static_cast<int>(tid_), file);
  const int fd = System().open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  ssize_t size;
  do {
    size = System().read(fd, text, sizeof text - 1);
  } while (size < 0 && errno == EINTR);
  System().close(fd);
  if (size <= 0) return "";
  text[size] = '\0';
  return {text, static_cast<size_t>(size)};
}

// "7 (a name) S 1 …": the name may have anything in it.
char ThreadProbe::State() const {
  Text text;
  const std::string_view stat = ReadProc("stat", text);
  const size_t end_of_name = stat.rfind(") ");
  return end_of_name == std::string_view::npos || end_of_name + 2 >= stat.size() ? '?' : stat[end_of_name + 2];
}

std::optional<Stall> ThreadProbe::Describe(Stall::Kind kind, absl::Duration duration, absl::Duration patience) const {
  Record* const fiber = CurrentOf(state_);
  if (fiber == nullptr) return std::nullopt;
  fiber::internal::Identity identity = fiber::internal::IdentifyUnheld(*fiber);
  // One that computes between many short waits is as often found in the kernel. One that may be there gets no signal.
  const char state = State();
  if (kind == Stall::Kind::kSpinning && state != 'R' && state != '?') kind = Stall::Kind::kBlocked;
  std::optional<Frames> frames = kind == Stall::Kind::kBlocked ? ReadFrames(*fiber)
                                 : state == 'R'                ? AskForFrames(*fiber, patience)
                                                               : Frames();
  if (!frames.has_value() || identity.id == 0 || CurrentOf(state_) != fiber ||
      fiber->id.load(std::memory_order_acquire) != identity.id) {  // order: owner
    return std::nullopt;
  }
  return Stall{.kind = kind,
               .fiber_id = identity.id,
               .name = std::move(identity.name),
               .site = identity.site,
               .duration = duration,
               .stack = *std::move(frames)};
}

std::optional<ThreadProbe::Frames> ThreadProbe::AskForFrames(const Record& fiber, absl::Duration patience) const {
  const int signal = InstallProbeSignal();
  if (!IsSignalOurs(signal)) return Frames();
  uint64_t idle = Answer::kIdle;
  if (!answer.state.compare_exchange_strong(idle, Answer::kAsking, std::memory_order_acquire,  // order: answer
                                          std::memory_order_relaxed)) {
    return Frames();  // another runtime asks a thread of its own
  }
  answer.thread = &state_;
  const uint64_t question = Answer::Asked(tid_);
  answer.state.store(question, std::memory_order_release);  // order: answer
  const int64_t until_ns = fiber::internal::MonotonicNs() + absl::ToInt64Nanoseconds(patience);
  // It ran a few us ago. If it has gone to sleep since, in a call that does not restart, that is interrupted once.
  if (System().tgkill(getpid(), tid_, signal) != 0) {
    answer.state.store(Answer::kIdle, std::memory_order_relaxed);
    return Frames();
  }
  if (!Await(question, until_ns)) return Frames();
  // Whatever comes: there may be no memory for the copy.
  struct End {
    ~End() { answer.state.store(Answer::kIdle, std::memory_order_release); }  // order: answer
  } end;
  std::optional<Frames> frames;
  if (answer.fiber == &fiber) {
    StackImage stack{.low = answer.registers.sp, .bytes = std::vector<unsigned char>(answer.size)};
    memcpy(stack.bytes.data(), answer.words, answer.size);
    frames = Unwind(stack, answer.registers, kMostFrames);
  }
  return frames;
}

// While its CPU clock stands still, a thread does not run, and nobody else writes to its frames but who was given their
// addresses: what is read between two looks at the clock was one state of the stack.
std::optional<ThreadProbe::Frames> ThreadProbe::ReadFrames(const Record& fiber) const {
  const int64_t before_ns = CpuNs();
  // "0 0x3 … SP PC", from the number of the system call on; "-1 SP PC" for a page fault; "running".
  Text text;
  const std::string_view where = ReadProc("syscall", text);
  if (where.empty()) return Frames();
  if (where[0] == 'r') return std::nullopt;
  const size_t before_pc = where.rfind(' ');
  const size_t before_sp = before_pc == 0 || before_pc == std::string_view::npos ? before_pc : where.rfind(' ', before_pc - 1);
  if (before_sp == std::string_view::npos) return Frames();
  Registers registers;
  registers.sp = strtoull(where.data() + before_sp, nullptr, 16);
  registers.pc = strtoull(where.data() + before_pc, nullptr, 16);

  const WaitBlock* const block = fiber.block.load(std::memory_order_acquire);  // order: owner
  if (block == nullptr) return std::nullopt;
  StackImage stack{.low = registers.sp, .bytes = std::vector<unsigned char>(BytesToCopy(*block, registers.sp))};
  if (stack.bytes.empty()) return std::nullopt;
  const ssize_t read = System().process_vm_readv(stack.bytes.data(), reinterpret_cast<const void*>(registers.sp),
                                                 stack.bytes.size());
  stack.bytes.resize(read < 0 ? 0 : static_cast<size_t>(read));  // refused: the innermost frame alone
  if (CpuNs() != before_ns) return std::nullopt;
  return Unwind(stack, registers, kMostFrames);
}

}  // namespace sched::internal
