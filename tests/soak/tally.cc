// SPDX-License-Identifier: Apache-2.0
#include "tests/soak/tally.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/wait_reason.h"

namespace soak {
namespace {

constexpr std::array<std::string_view, kOps> kNames = {
    "transfers",    "permits",         "puts",
    "takes",        "wait_groups",     "events",
    "spawns",       "detached",        "cancels",
    "exceptions",   "sleeps",          "yields",
    "timeouts",     "by_threads",      "connects",
    "accepts",      "refused",         "echoes",
    "half_closes",  "resets",          "peer_resets",
    "closed_under", "cancelled_under", "deadlines_moved",
    "elsewhere",    "listeners",       "kilobytes"};

std::array<std::atomic<uint64_t>, kOps> counts = {};

std::mutex replay_mutex;
std::string replay;  // guarded by replay_mutex

std::string_view NameOf(fiber::internal::State state) {
  switch (state) {
    case fiber::internal::State::kFree:
      return "free";
    case fiber::internal::State::kNew:
      return "new";
    case fiber::internal::State::kReady:
      return "ready";
    case fiber::internal::State::kRunning:
      return "running";
    case fiber::internal::State::kParking:
      return "parking";
    case fiber::internal::State::kParked:
      return "parked";
    case fiber::internal::State::kWoken:
      return "woken";
    case fiber::internal::State::kHeld:
      return "held";
    case fiber::internal::State::kHeldWoken:
      return "held and woken";
    case fiber::internal::State::kDone:
      return "done";
  }
  return "?";
}

}  // namespace

void Count(Op op, uint64_t n) {
  counts[static_cast<size_t>(op)].fetch_add(n, std::memory_order_relaxed);
}

uint64_t Progress() {
  uint64_t sum = 0;
  for (const auto& count : counts) sum += count.load(std::memory_order_relaxed);
  return sum;
}

std::string Tally() {
  std::string text;
  for (size_t i = 0; i < counts.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : " ", absl::string_view(kNames[i].data(), kNames[i].size()),
                    "=", counts[i].load(std::memory_order_relaxed));
  }
  return text;
}

void SetReplay(std::string command) {
  const std::lock_guard hold(replay_mutex);
  replay = std::move(command);
}

void Fail(std::string_view what, std::source_location site) {
  static std::atomic<bool> has_failed{false};
  // The first failure is the one that counts; the others end with it.
  if (has_failed.exchange(true, std::memory_order_relaxed)) {
    for (;;) pause();
  }
  std::string text = absl::StrCat("stress: FAILED at ", site.file_name(), ":", site.line(), ": ",
                                  absl::string_view(what.data(), what.size()), "\n",
                                  DescribeFibers(), Tally(), "\n");
  {
    const std::lock_guard hold(replay_mutex);
    absl::StrAppend(&text, "replay with: ", replay, "\n");
  }
  std::fflush(stdout);
  std::fputs(text.c_str(), stderr);
  std::abort();
}

void ExpectCode(const absl::Status& status, absl::StatusCode code, std::source_location site) {
  if (status.code() == code) return;
  Fail(absl::StrCat("expected ", absl::StatusCodeToString(code), ", got ", status.ToString()),
       site);
}

std::string DescribeFibers() {
  std::string text;
  fiber::internal::ForEachRecord([&text](fiber::internal::Record& record) {
    // What was not joined yet tells nothing.
    if (record.state.load(std::memory_order_acquire) == fiber::internal::State::kDone) return;
    if (fiber::internal::TryHold(record)) {
      const fiber::internal::WaitBlock& block =
          *record.block.load(std::memory_order_acquire);  // order: owner
      absl::StrAppend(&text, "  ", fiber::internal::Describe(record), " waits for ",
                      std::string(fiber::WaitReasonName(block.reason)));
      fiber::internal::Release(record);
    } else {
      absl::StrAppend(&text, "  ", fiber::internal::DescribeUnheld(record), " is ",
                      std::string(NameOf(record.state.load(std::memory_order_acquire))));
    }
    const bool is_cancelled = record.cancel.load(std::memory_order_relaxed) != nullptr;
    absl::StrAppend(&text, is_cancelled ? ", cancelled\n" : "\n");
  });
  return text;
}

}  // namespace soak
