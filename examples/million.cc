// SPDX-License-Identifier: Apache-2.0
// Parks a million fibers at once, and says what one costs and which limit of the machine was met:
//
//   bazel run -c opt //examples:million
//   bazel run -c opt //examples:million -- 100000 --workers=1
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "sched/run.h"

namespace {

// What a parked fiber takes: a page of stack, its record and wait block, page tables.
constexpr int64_t kExpectedBytes = 4700;

// The number a file begins with; 0 if there is none.
int64_t NumberAt(const char* path) {
  int64_t number = 0;
  std::ifstream(path) >> number;
  return number;
}

// The number behind `key` in a file; 0 if there is none.
int64_t NumberIn(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    if (int64_t number = 0; word == key && file >> number) return number;
  }
  return 0;
}

struct Memory {
  int64_t resident = 0;
  int64_t page_tables = 0;
};

Memory MemoryOfThisProcess() {
  int64_t size = 0;
  int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return {resident * sysconf(_SC_PAGESIZE), NumberIn("/proc/self/status", "VmPTE:") * 1024};
}

int64_t Mappings() {
  std::ifstream file("/proc/self/maps");
  int64_t lines = 0;
  for (std::string line; std::getline(file, line);) ++lines;
  return lines;
}

// Bytes this process may still take before the kernel kills somebody.
int64_t AvailableMemory() {
  int64_t available = NumberIn("/proc/meminfo", "MemAvailable:") * 1024;
  int64_t limit = NumberAt("/sys/fs/cgroup/memory.max");  // "max" where there is none
  return limit > 0 ? std::min(available, limit - NumberAt("/sys/fs/cgroup/memory.current"))
                   : available;
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Waits until `parked` is `count`, or has stood still for long; returns what it is then.
int64_t WaitUntil(const std::atomic<int64_t>& parked, int64_t count) {
  constexpr absl::Duration kPatience = absl::Seconds(5);
  int64_t seen = -1;
  fiber::Deadline give_up;
  for (;;) {
    const int64_t now = parked.load(std::memory_order_relaxed);
    if (now == count || (now == seen && give_up.is_past())) return now;
    if (now != seen) give_up = kPatience;
    seen = now;
    if (!fiber::Sleep(absl::Milliseconds(1)).ok()) return now;
  }
}

int ParkMany(int64_t count) {
  using Clock = std::chrono::steady_clock;
  fiber::Event release;
  fiber::WaitGroup ended;
  std::atomic<int64_t> parked{0};
  std::string limit;

  const Memory before = MemoryOfThisProcess();
  const Clock::time_point start = Clock::now();
  int64_t spawned = 0;
  try {
    for (; spawned < count; ++spawned) {
      ended.Add();
      fiber::Go([&] {
        parked.fetch_add(1, std::memory_order_relaxed);
        release.Wait().IgnoreError();  // nobody cancels
        ended.Done();
      });
    }
  } catch (const std::bad_alloc&) {
    ended.Done();
    limit =
        "there was no memory for the record of another fiber: see ulimit -v and "
        "vm.overcommit_memory";
  }
  const int64_t at_once = WaitUntil(parked, spawned);
  const double seconds = Seconds(Clock::now() - start);
  const Memory with = MemoryOfThisProcess();
  if (limit.empty() && at_once < spawned) {
    limit = "the others found no stack: the runtime's message on stderr names what ran out";
  }

  const int64_t one = std::max<int64_t>(at_once, 1);
  const int64_t resident = (with.resident - before.resident) / one;
  const int64_t page_tables = (with.page_tables - before.page_tables) / one;
  std::cout << at_once << " fibers parked at once after " << seconds << " s\n"
            << resident + page_tables << " bytes a fiber: " << resident << " resident, "
            << page_tables << " of page tables\n"
            << Mappings() << " memory mappings, where vm.max_map_count allows "
            << NumberAt("/proc/sys/vm/max_map_count") << std::endl;

  const Clock::time_point end = Clock::now();
  release.Set();
  ended.Wait().IgnoreError();
  std::cout << "all released and ended after " << Seconds(Clock::now() - end) << " s more\n"
            << (limit.empty() ? "no limit was met" : "a limit was met: " + limit) << std::endl;
  return limit.empty() ? 0 : 1;
}

std::optional<int64_t> ParsePositive(std::string_view text, int64_t most) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (number < 1 || number > most) return std::nullopt;
  return number;
}

}  // namespace

int main(int argc, char** argv) {
  int64_t count = 1'000'000;
  // A fiber needs address space for its stack, and memory for what it touches of it: a page.
  sched::RuntimeOptions options = {.default_stack_bytes = 64 << 10};
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    constexpr std::string_view kWorkers = "--workers=";
    const bool is_workers = argument.starts_with(kWorkers);
    const auto number = is_workers ? ParsePositive(argument.substr(kWorkers.size()), 1024)
                                   : ParsePositive(argument, 1'000'000'000);
    if (!number.has_value()) {
      std::cerr << "million: '" << argument << "' is not understood\n"
                << "usage: million [COUNT] [--workers=WORKERS]\n";
      return 2;
    }
    (is_workers ? options.workers = static_cast<int>(*number) : count = *number);
  }

  if (const int64_t available = AvailableMemory(); count * kExpectedBytes > available) {
    std::cerr << "a limit was met: memory. " << count << " parked fibers take about "
              << (count * kExpectedBytes >> 20) << " MiB, and there are " << (available >> 20)
              << " MiB\n";
    return 1;
  }
  return sched::Run(options, [count] { return ParkMany(count); });
}
