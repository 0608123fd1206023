// SPDX-License-Identifier: Apache-2.0
// What fibers that hold up their workers cost the others.
//
//   stalls WORKLOAD WORKERS N
//
// | workload  | what                                                                              | extra             |
// |-----------|-----------------------------------------------------------------------------------|-------------------|
// | spin      | N fibers compute for 1 s; one, started before, sleeps 1 ms in a loop              | its longest gap   |
// | read      | the same, but they wait in read() on a pipe                                       | its longest gap   |
// | nap       | in nanosleep()                                                                    | its longest gap   |
// | lock      | for a std::mutex that a plain thread holds                                        | its longest gap   |
// | announced | in nanosleep(), within fiber::Blocking                                            | its longest gap   |
// | unpark    | N times: a fiber unparks another, which sleeps in an event, and computes for 30 ms | how long it waits |
// | idle      | N fibers are parked for 10 s                                                      | CPU used          |
// | echo      | N is the port: an echo server, and at port N + 1 one that blocks its thread for   |                   |
// |           | 50 ms before each answer; until SIGTERM                                           |                   |
//
// All but the last print one line. Whoever waits for the others to end sees that threads come back to what they were.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "netpoll/tcp.h"
#include "netpoll/wait.h"
#include "sched/runtime.h"

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "stalls: %s\n", why.c_str());
  std::exit(1);
}
void DieUnlessOk(const absl::Status& status) {
  if (!status.ok()) Die(status.ToString());
}

double CpuMillis() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto millis = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_usec) / 1e3;
  };
  return millis(usage.ru_utime) + millis(usage.ru_stime);
}

void Nap(absl::Duration length) {
  timespec nap = absl::ToTimespec(length);
  while (nanosleep(&nap, &nap) != 0) {
  }
}

// A process that reads this one's CPU clock: to wake a thread of one with a million stacks takes 15 ms of CPU on some machines,
// which is the looking's, not the looked at's. Made before there are threads.
class Onlooker {
 public:
  static constexpr double kSettleSeconds = 0.5, kSeconds = 10;

  Onlooker() {
    int ask[2], answer[2];
    if (pipe2(ask, O_CLOEXEC) != 0 || pipe2(answer, O_CLOEXEC) != 0) Die("no pipe");
    clockid_t clock{};
    if (clock_getcpuclockid(getpid(), &clock) != 0) Die("no CPU clock");
    const pid_t child = fork();
    if (child < 0) Die("no process");
    if (child == 0) {
      close(ask[1]);
      char byte = 0;
      while (read(ask[0], &byte, 1) == 1) {
        Nap(absl::Seconds(kSettleSeconds));
        const double before = Millis(clock);
        Nap(absl::Seconds(kSeconds));
        const double used = Millis(clock) - before;
        if (write(answer[1], &used, sizeof used) != sizeof used) break;
      }
      _exit(0);
    }
    close(ask[0]);
    close(answer[1]);
    ask_ = ask[1];
    answer_ = answer[0];
  }

  // How many ms of CPU this process takes, while this fiber sleeps.
  double Watch() {
    if (write(ask_, "", 1) != 1) Die("the onlooker is gone");
    DieUnlessOk(fiber::Sleep(absl::Seconds(kSettleSeconds + kSeconds + 0.5)));
    double used = 0;
    if (read(answer_, &used, sizeof used) != sizeof used) Die("the onlooker is gone");
    return used;
  }

 private:
  static double Millis(clockid_t clock) {
    timespec time{};
    if (clock_gettime(clock, &time) != 0) _exit(1);
    return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
  }

  int ask_;
  int answer_;
};

double MillisSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void Compute(std::chrono::nanoseconds length) {
  const Clock::time_point end = Clock::now() + length;
  while (Clock::now() < end) {
  }
}

constexpr std::chrono::seconds kHeldUp(1);

// What holds up a worker for kHeldUp.
class Obstacle {
 public:
  explicit Obstacle(std::string_view kind) : kind_(kind) {
    if (pipe(pipe_) != 0) Die("no pipe");
    std::atomic<bool> is_locked{false};
    holder_ = std::thread([this, &is_locked] {
      std::lock_guard hold(mutex_);
      is_locked.store(true);
      while (!is_on_.load()) Nap(absl::Microseconds(100));
      std::this_thread::sleep_for(kHeldUp);
      close(pipe_[1]);
    });
    while (!is_locked.load()) std::this_thread::yield();
  }
  ~Obstacle() {
    holder_.join();
    close(pipe_[0]);
  }

  void Start() { is_on_.store(true); }
  void Meet() {
    if (kind_ == "spin") {
      Compute(kHeldUp);
    } else if (kind_ == "read") {
      char byte;
      if (read(pipe_[0], &byte, 1) != 0) Die("read from a closed pipe");
    } else if (kind_ == "lock") {
      std::lock_guard hold(mutex_);
    } else if (kind_ == "announced") {
      fiber::Blocking([] { Nap(absl::FromChrono(kHeldUp)); });
    } else {
      Nap(absl::FromChrono(kHeldUp));
    }
  }

 private:
  const std::string_view kind_;
  int pipe_[2];
  std::mutex mutex_;
  std::atomic<bool> is_on_{false};
  std::thread holder_;
};

std::string HoldUp(std::string_view kind, int64_t count) {
  std::vector<double> gaps_ms;
  gaps_ms.reserve(4096);
  Obstacle obstacle(kind);
  fiber::Event started;
  fiber::WaitGroup running;
  running.Add(1 + static_cast<int>(count));
  fiber::Go([&] {
    started.Set();
    Clock::time_point last = Clock::now();
    for (const Clock::time_point end = last + kHeldUp; last < end;) {
      DieUnlessOk(fiber::Sleep(absl::Milliseconds(1)));
      const Clock::time_point now = Clock::now();
      gaps_ms.push_back(std::chrono::duration<double, std::milli>(now - last).count());
      last = now;
    }
    running.Done();
  });
  DieUnlessOk(started.Wait());
  obstacle.Start();
  for (int64_t i = 0; i < count; ++i) {
    fiber::Go([&] {
      obstacle.Meet();
      running.Done();
    });
  }
  DieUnlessOk(running.Wait());
  std::sort(gaps_ms.begin(), gaps_ms.end());
  return absl::StrFormat("max_gap_ms=%.3f,p99_gap_ms=%.3f,wakeups=%d", gaps_ms.back(), gaps_ms[gaps_ms.size() * 99 / 100],
                         gaps_ms.size());
}

std::string Unpark(int64_t count) {
  std::vector<double> waits_us;
  for (int64_t i = 0; i < count; ++i) {
    fiber::Event event;
    Clock::time_point set;
    auto waiter = fiber::Spawn([&] {
      DieUnlessOk(event.Wait());
      return std::chrono::duration<double, std::micro>(Clock::now() - set).count();
    });
    // Half of them after a spell in which nothing ran, half in the middle of work.
    if (i % 2 == 0) {
      DieUnlessOk(fiber::Sleep(absl::Milliseconds(20)));
    } else {
      for (int k = 0; k < 1000; ++k) fiber::Yield();
    }
    set = Clock::now();
    event.Set();
    Compute(std::chrono::milliseconds(30));
    waits_us.push_back(waiter.Join());
  }
  std::sort(waits_us.begin(), waits_us.end());
  return absl::StrFormat("median_us=%.1f,p90_us=%.1f,max_us=%.1f", waits_us[waits_us.size() / 2],
                         waits_us[waits_us.size() * 9 / 10], waits_us.back());
}

std::string Idle(int64_t count, Onlooker& onlooker) {
  fiber::Event end;
  fiber::WaitGroup running;
  running.Add(static_cast<int>(count));
  for (int64_t i = 0; i < count; ++i) {
    fiber::Go([&] {
      DieUnlessOk(end.Wait());
      running.Done();
    });
  }
  // Until all are parked, and all of their stacks were asked about. To wake up takes a millisecond or more on some machines.
  int settled = 0;
  for (double last = -1000; CpuMillis() - last > 10 && settled < 300; ++settled) {
    last = CpuMillis();
    DieUnlessOk(fiber::Sleep(absl::Seconds(1)));
  }
  const double used = onlooker.Watch();
  end.Set();
  DieUnlessOk(running.Wait());
  return absl::StrFormat("cpu_ms=%.3f,cpu_percent=%.4f,settled_after_s=%d", used, used / (Onlooker::kSeconds * 10), settled);
}

// REQUIRES: no other threads yet, they would take the signals.
int StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
}

void Serve(netpoll::TcpListener& listener, bool blocks) {
  for (;;) {
    auto accepted = listener.Accept();
    if (!accepted.ok()) return;
    fiber::Go([stream = *std::move(accepted), blocks]() mutable {
      char buffer[4096];
      for (;;) {
        auto n = stream.Read(buffer);
        if (!n.ok()) return;
        if (blocks) Nap(absl::Milliseconds(50));
        if (!stream.Write({buffer, *n}).ok()) return;
      }
    });
  }
}

void Echo(int port, int stop_signals) {
  auto plain = netpoll::TcpListener::Listen(absl::StrCat("127.0.0.1:", port));
  auto blocks = netpoll::TcpListener::Listen(absl::StrCat("127.0.0.1:", port + 1));
  if (!plain.ok()) Die(plain.status().ToString());
  if (!blocks.ok()) Die(blocks.status().ToString());
  auto other = fiber::Spawn([&] { Serve(*blocks, true); });
  auto stopper = fiber::Spawn([&] {
    if (!netpoll::WaitReadable(stop_signals).ok()) return;
    plain->Close();
    blocks->Close();
  });
  Serve(*plain, false);
  other.Join();
}

int64_t NumberOf(const char* text, int64_t least, int64_t most) {
  const std::string_view argument = text;
  int64_t number = 0;
  const char* const last = argument.data() + argument.size();
  const auto [end, error] = std::from_chars(argument.data(), last, number);
  if (error != std::errc() || end != last || number < least || number > most) {
    Die(absl::StrFormat("'%s' is not a number from %d to %d", text, least, most));
  }
  return number;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: stalls WORKLOAD WORKERS N\n");
    return 2;
  }
  const std::string_view workload = argv[1];
  const int workers = static_cast<int>(NumberOf(argv[2], 1, 1024));
  const int64_t n = NumberOf(argv[3], 1, 10'000'000);
  const bool is_gap = workload == "spin" || workload == "read" || workload == "nap" || workload == "lock" || workload == "announced";
  if (!is_gap && workload != "unpark" && workload != "idle" && workload != "echo") {
    std::fprintf(stderr, "stalls: unknown workload '%s'\n", argv[1]);
    return 2;
  }
  const int stop_signals = workload == "echo" ? StopSignals() : -1;
  sched::RuntimeOptions options = {.workers = workers};
  if (workload == "idle") options.default_stack_bytes = 64 << 10;
  if (getenv("EAGER_WAKE") != nullptr) options.eager_wake = true;
  std::optional<Onlooker> onlooker;
  if (workload == "idle") onlooker.emplace();
  sched::Runtime runtime(options);
  const Clock::time_point start = Clock::now();
  const std::string extra = runtime.Spawn([&]() -> std::string {
    if (workload == "echo") {
      Echo(static_cast<int>(n), stop_signals);
      return "";
    }
    if (workload == "unpark") return Unpark(n);
    if (workload == "idle") return Idle(n, *onlooker);
    return HoldUp(workload, n);
  }).Join();
  const int most_threads = runtime.stats().threads;
  const double took = MillisSince(start);
  const double give_up = took + 10'000;
  while (runtime.stats().threads > workers && MillisSince(start) < give_up) Nap(absl::Milliseconds(10));
  absl::PrintF("weft %s %d %d %s,threads_at_end=%d,threads_later=%d,stalls=%d+%d\n", std::string(workload), workers, n, extra,
               most_threads, runtime.stats().threads, runtime.stats().stalls_spinning, runtime.stats().stalls_blocked);
  return 0;
}
