// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/overflow.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string_view>

#include "fiber/internal/fork.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_arena.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

constexpr size_t kAlternateBytes = 64 << 10;
constexpr int kSignals[] = {SIGSEGV, SIGBUS};
struct sigaction previous[2];

// A message put together by hand: a signal handler may neither allocate nor format.
class Message {
 public:
  Message& operator<<(std::string_view text) {
    for (char c : text) {
      if (size_ < sizeof text_) text_[size_++] = c;
    }
    return *this;
  }
  Message& operator<<(uint64_t number) {
    char digits[20];
    size_t count = 0;
    do {
      digits[count++] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    while (count > 0) *this << std::string_view(&digits[--count], 1);
    return *this;
  }
  void Write() const {
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text_, size_);
  }

 private:
  char text_[1024];
  size_t size_ = 0;
};

void Report(const WaitBlock& block) {
  Message message;
  message << "weft: fatal: ";
  if (const Record* fiber = block.fiber.load(std::memory_order_acquire);  // order: owner
      fiber != nullptr) {
    message << "fiber " << fiber->id.load(std::memory_order_relaxed);
    if (block.name != nullptr) message << " '" << *block.name << "'";
    message << " (spawned at " << fiber->site.file_name() << ":"
            << uint64_t{fiber->site.line()} << ")";
  } else {
    message << "a fiber";
  }
  message << " overflowed its " << uint64_t{kStackClassBytes[static_cast<int>(block.stack_class)]} / 1024
          << " KiB stack; raise FiberOptions::stack_bytes or RuntimeOptions::default_stack_bytes\n";
  message.Write();
}

void OnFault(int signal, siginfo_t* info, void* context) {
  const struct sigaction& before = previous[signal == SIGSEGV ? 0 : 1];
  WaitBlock* block = nullptr;
  if (FindGuard(info->si_addr, &block)) {
    Report(*block);
  } else if ((before.sa_flags & SA_SIGINFO) != 0) {
    before.sa_sigaction(signal, info, context);
    return;
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
    return;
  }
  // The instruction faults again, and ends the process by the signal's own name.
  struct sigaction fallback {};
  fallback.sa_handler = SIG_DFL;
  sigaction(signal, &fallback, nullptr);
}

}  // namespace

AlternateStack::AlternateStack() {
  void* memory = mmap(nullptr, kAlternateBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    LogLine("stack overflows on a worker will not be named: mmap: %s", strerror(errno));
    return;
  }
  stack_t stack{};
  stack.ss_sp = memory;
  stack.ss_size = kAlternateBytes;
  if (sigaltstack(&stack, nullptr) != 0) {
    LogLine("stack overflows on a worker will not be named: sigaltstack: %s", strerror(errno));
    munmap(memory, kAlternateBytes);
    return;
  }
  memory_ = memory;
}

AlternateStack::~AlternateStack() {
  if (memory_ == nullptr) return;
  stack_t none{};
  none.ss_flags = SS_DISABLE;
  // A handler that runs on it now would be this thread's, which is here.
  if (sigaltstack(&none, nullptr) == 0) munmap(memory_, kAlternateBytes);
}

void InstallOverflowHandler() {
  static constinit Atomic<bool> is_installed{false};
  OnceInAProcess(is_installed, [] {
    for (int i = 0; i < 2; ++i) {
      struct sigaction action {};
      action.sa_sigaction = OnFault;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      sigemptyset(&action.sa_mask);
      if (sigaction(kSignals[i], &action, &previous[i]) != 0) {
        LogLine("stack overflows will not be named: sigaction: %s", strerror(errno));
      }
    }
  });
}

}  // namespace fiber::internal
