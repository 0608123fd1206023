// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/churn.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "netpoll/error.h"
#include "netpoll/tcp.h"
#include "tools/loadgen/for_each.h"
#include "tools/loadgen/loopback.h"

namespace loadgen {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr absl::Duration kTick = absl::Milliseconds(10);
// A server that is alive closes what has ended much sooner.
constexpr absl::Duration kClosePatience = absl::Seconds(5);
constexpr int kAtOnce = 128;
// Beside 19,000 that are held, within a limit of 20,000 descriptors.
constexpr int kVisitorsAtOnce = 500;
constexpr size_t kHeldBytes = 64;
constexpr size_t kMostBytes = 4096;
constexpr int kErrorsSaid = 10;
// A server that loses so many will lose the others too.
constexpr int kErrorsBeforeGivingUp = 100;

void PrintLine(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

// 0: there is no such process.
int64_t ResidentKib(int process) {
  int64_t size = 0;
  int64_t pages = 0;
  std::ifstream(absl::StrCat("/proc/", process, "/statm")) >> size >> pages;
  return pages * sysconf(_SC_PAGESIZE) / 1024;
}

// But for files: whoever looks up symbols, for a line in the log, keeps the program and its libraries open.
int CountDescriptors(int process) {
  const std::string path = absl::StrCat("/proc/", process, "/fd");
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return 0;
  int count = 0;
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] == '.') continue;
    char target = 0;
    const ssize_t size = readlink(absl::StrCat(path, "/", entry->d_name).c_str(), &target, 1);
    count += size == 1 && target != '/';
  }
  closedir(directory);
  return count;
}

int64_t Mean(std::vector<int64_t>::const_iterator first, ptrdiff_t count) {
  return std::accumulate(first, first + count, int64_t{0}) / count;
}

}  // namespace

Churn::Churn(const ChurnOptions& options)
    : options_(options),
      descriptors_(CountDescriptors(options.server)),
      held_(static_cast<size_t>(options.held)),
      room_(kVisitorsAtOnce) {}

bool Churn::Run() {
  Hold();
  auto watcher = fiber::Spawn([this] { WatchServer(); });
  ComeAndGo();
  is_over_.store(true, std::memory_order_relaxed);
  watcher.Join();
  const bool is_rid = AwaitServerRid();
  ProveHeldAlive();
  EndHeld();

  const auto tenth = std::max<ptrdiff_t>(1, static_cast<ptrdiff_t>(resident_kib_.size()) / 10);
  const int64_t first = Mean(resident_kib_.begin(), tenth);
  const int64_t last = Mean(resident_kib_.end() - tenth, tenth);
  const bool is_flat = first > 0 && last - first <= first / 100 + options_.slack_kib;
  const int visitors = options_.per_second * options_.seconds;
  PrintLine(absl::StrFormat(
      "held_alive=%d/%d visitors=%d/%d seconds=%.1f per_second=%.0f lost=%d wrong=%d "
      "rss_first_kib=%d "
      "rss_last_kib=%d flat=%s descriptors=%s",
      alive_.load(std::memory_order_relaxed), options_.held, gone_.load(std::memory_order_relaxed),
      visitors, absl::ToDoubleSeconds(time_), visitors / absl::ToDoubleSeconds(time_),
      lost_.load(std::memory_order_relaxed), wrong_.load(std::memory_order_relaxed), first, last,
      is_flat ? "yes" : "no", is_rid ? "ok" : "kept"));
  return alive_.load(std::memory_order_relaxed) == options_.held &&
         gone_.load(std::memory_order_relaxed) == visitors &&
         lost_.load(std::memory_order_relaxed) == 0 &&
         wrong_.load(std::memory_order_relaxed) == 0 && is_flat && is_rid;
}

absl::Status Churn::OpenAndEcho(int number, size_t bytes, std::unique_ptr<Connection>& connection) {
  absl::StatusOr<netpoll::TcpStream> stream = ConnectOnLoopback(number, options_.target, kPatience);
  if (!stream.ok()) return stream.status();
  connection = std::make_unique<Connection>(number, *std::move(stream), pattern_);
  return connection->EchoOnce(bytes, kPatience);
}

void Churn::Hold() {
  ForEach(0, options_.held, kAtOnce, [this](int number) {
    if (lost_.load(std::memory_order_relaxed) >= kErrorsBeforeGivingUp) return;
    auto& connection = held_[static_cast<size_t>(number)];
    const absl::Status status = OpenAndEcho(number, kHeldBytes, connection);
    if (!status.ok()) connection = nullptr;
    Note(number, status);
  });
  PrintLine(absl::StrFormat(
      "held connections=%d",
      std::count_if(held_.begin(), held_.end(), [](auto& held) { return held != nullptr; })));
}

// By the clock, so that those who were late are followed by others at once.
void Churn::ComeAndGo() {
  const absl::Duration start = fiber::Now();
  const int visitors = options_.per_second * options_.seconds;
  for (int come = 0; come < visitors;) {
    const double due = absl::ToDoubleSeconds(fiber::Now() - start) * options_.per_second;
    for (; come < visitors && come < due; ++come) {
      if (!room_.Acquire().ok() || lost_.load(std::memory_order_relaxed) >= kErrorsBeforeGivingUp)
        return;
      fiber::Go([this, number = options_.held + come] {
        Visit(number);
        room_.Release();
      });
    }
    if (!fiber::Sleep(kTick).ok()) return;
  }
  (void)room_.Acquire(kVisitorsAtOnce);  // until the last has gone
  time_ = fiber::Now() - start;
}

void Churn::Visit(int number) {
  std::unique_ptr<Connection> connection;
  const size_t bytes = static_cast<size_t>(number) * 997 % kMostBytes + 1;
  absl::Status status = OpenAndEcho(number, bytes, connection);
  // Some slam the door, some just go.
  if (status.ok() && number % 4 == 0) {
    status = connection->Reset();
  } else if (status.ok() && number % 4 != 1) {
    status = connection->End(kPatience);
  }
  if (status.ok()) gone_.fetch_add(1, std::memory_order_relaxed);
  Note(number, status);
}

void Churn::ProveHeldAlive() {
  ForEach(0, options_.held, kAtOnce, [this](int number) {
    auto& connection = held_[static_cast<size_t>(number)];
    if (connection == nullptr) return;
    const absl::Status status = connection->EchoOnce(kHeldBytes, kPatience);
    if (status.ok()) alive_.fetch_add(1, std::memory_order_relaxed);
    if (!status.ok()) connection = nullptr;
    Note(number, status);
  });
}

void Churn::EndHeld() {
  ForEach(0, options_.held, kAtOnce, [this](int number) {
    auto& connection = held_[static_cast<size_t>(number)];
    if (connection != nullptr) Note(number, connection->End(kPatience));
    connection = nullptr;
  });
}

void Churn::WatchServer() {
  const absl::Duration start = fiber::Now();
  do {
    const absl::Duration next = absl::Seconds(resident_kib_.size() + 1);
    while (fiber::Now() - start < next && !is_over_.load(std::memory_order_relaxed)) {
      if (!fiber::Sleep(std::min(start + next - fiber::Now(), absl::Milliseconds(100))).ok())
        return;
    }
    resident_kib_.push_back(ResidentKib(options_.server));
    PrintLine(absl::StrFormat("t=%ds visitors=%d lost=%d wrong=%d rss_kib=%d", resident_kib_.size(),
                              gone_.load(std::memory_order_relaxed),
                              lost_.load(std::memory_order_relaxed),
                              wrong_.load(std::memory_order_relaxed), resident_kib_.back()));
  } while (!is_over_.load(std::memory_order_relaxed));
}

// Whether the server closes what came and went, before long.
bool Churn::AwaitServerRid() const {
  const fiber::Deadline deadline = kClosePatience;
  while (CountDescriptors(options_.server) > descriptors_ + options_.held) {
    if (deadline.is_past() || !fiber::Sleep(absl::Milliseconds(100)).ok()) return false;
  }
  return true;
}

void Churn::Note(int number, const absl::Status& status) {
  if (status.ok()) return;
  auto& which = absl::IsDataLoss(status) ? wrong_ : lost_;
  which.fetch_add(1, std::memory_order_relaxed);
  const int errors = lost_.load(std::memory_order_relaxed) + wrong_.load(std::memory_order_relaxed);
  if (errors > kErrorsSaid) return;
  std::fprintf(stderr, "churn: connection %d: %s (errno %d)\n", number, status.ToString().c_str(),
               netpoll::ErrnoOf(status));
}

}  // namespace loadgen
