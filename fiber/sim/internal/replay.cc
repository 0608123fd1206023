// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/internal/replay.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "fiber/internal/thread_state.h"

namespace fiber::sim::internal {
namespace {

uint64_t ParseSeed(const char* source, std::string_view text) {
  uint64_t seed;
  if (!absl::SimpleAtoi(absl::string_view(text.data(), text.size()), &seed)) {
    fiber::internal::Fatal("%s%.*s: a seed is a number", source, static_cast<int>(text.size()),
                           text.data());
  }
  return seed;
}

std::string ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// What follows `--flag=` on this process's command line, wherever main() is: a test's main() is
// mostly GoogleTest's.
std::optional<std::string> ValueOnCommandLine(std::string_view flag) {
  const std::string command_line = ReadFile("/proc/self/cmdline");
  std::string_view rest = command_line;  // arguments, each ended by a zero
  while (!rest.empty()) {
    std::string_view argument = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(argument.size() < rest.size() ? argument.size() + 1 : rest.size());
    if (!argument.starts_with(flag)) continue;
    argument.remove_prefix(flag.size());
    if (argument.starts_with('=')) return std::string(argument.substr(1));
    if (argument.empty()) {
      fiber::internal::Fatal("%.*s: write %.*s=VALUE", static_cast<int>(flag.size()), flag.data(),
                             static_cast<int>(flag.size()), flag.data());
    }
  }
  return std::nullopt;
}

struct AbortNote {
  bool is_set;
  uint64_t seed;
  const Exploration* exploration;  // null: the seed's
};
constinit thread_local AbortNote abort_note = {false, 0, nullptr};

struct sigaction previous_action;

// Puts pieces together to lines for stderr. Async-signal-safe.
class SignalSafeLine {
 public:
  ~SignalSafeLine() { Flush(); }
  void Append(std::string_view piece) {
    for (const char c : piece) {
      if (size_ == sizeof text_) Flush();
      text_[size_++] = c;
    }
  }

 private:
  void Flush() {
    // Nobody can be told if stderr is closed.
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text_, size_);
    size_ = 0;
  }

  char text_[256];
  size_t size_ = 0;
};

// Async-signal-safe.
void WriteNote(const AbortNote& note) {
  SignalSafeLine line;
  if (note.exploration != nullptr) {
    line.Append("weft: aborted in schedule ");
    note.exploration->Print([&line](std::string_view piece) { line.Append(piece); });
  } else {
    line.Append("weft: aborted in the schedule of seed ");
    char digits[24];
    const char* end = std::to_chars(digits, digits + sizeof digits, note.seed).ptr;
    line.Append({digits, static_cast<size_t>(end - digits)});
  }
  line.Append("\n");
}

// The signal comes anew, to whoever had it before, as soon as this returns.
void OnAbort(int signal) {
  const int saved_errno = errno;
  if (abort_note.is_set) WriteNote(abort_note);
  sigaction(signal, &previous_action, nullptr);
  raise(signal);
  errno = saved_errno;
}

bool InstallAbortHandler() {
  struct sigaction action = {};
  action.sa_handler = &OnAbort;
  action.sa_flags = SA_ONSTACK;
  return sigaction(SIGABRT, &action, &previous_action) == 0;  // else the seed is not shown, no more
}

}  // namespace

std::optional<uint64_t> SeedFromEnvironment() {
  const char* text = getenv("WEFT_SEED");
  if (text == nullptr || *text == '\0') return std::nullopt;
  return ParseSeed("WEFT_SEED=", text);
}

std::optional<uint64_t> SeedFromCommandLine() {
  const std::optional<std::string> text = ValueOnCommandLine("--seed");
  if (!text.has_value()) return std::nullopt;
  return ParseSeed("--seed=", *text);
}

std::optional<Exploration> ScheduleFromEnvironment() {
  const char* text = getenv("WEFT_SCHEDULE");
  if (text == nullptr || *text == '\0') return std::nullopt;
  return ParseSchedule("WEFT_SCHEDULE=", text);
}

std::optional<std::string> ScheduleFromCommandLine() { return ValueOnCommandLine("--schedule"); }

Exploration ParseSchedule(const char* source, std::string_view text) {
  std::optional<Exploration> exploration = Exploration::Parse(text);
  if (!exploration.has_value()) {
    fiber::internal::Fatal("%s%.*s: a schedule is digits and letters, as a failure had them",
                           source, static_cast<int>(text.size()), text.data());
  }
  return *std::move(exploration);
}

std::string ProgramForShell() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  if (size <= 0) return "this program";
  return absl::StrCat(
      "'",
      absl::StrReplaceAll(absl::string_view(path, static_cast<size_t>(size)), {{"'", "'\\''"}}),
      "'");
}

ScheduleOnAbort::ScheduleOnAbort(uint64_t seed, const Exploration* exploration) {
  [[maybe_unused]] static const bool is_installed = InstallAbortHandler();
  abort_note = {true, seed, exploration};
}

ScheduleOnAbort::~ScheduleOnAbort() { abort_note.is_set = false; }

}  // namespace fiber::sim::internal
