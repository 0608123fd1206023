// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/internal/replay.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

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

struct AbortSeed {
  bool is_set;
  uint64_t seed;
};
constinit thread_local AbortSeed abort_seed = {false, 0};

struct sigaction previous_action;

// Async-signal-safe.
void WriteSeed(uint64_t seed) {
  char line[64] = "weft: aborted in the schedule of seed ";
  char digits[24];
  size_t count = 0;
  do {
    digits[count++] = static_cast<char>('0' + seed % 10);
    seed /= 10;
  } while (seed != 0);
  size_t size = std::string_view(line).size();
  while (count > 0) line[size++] = digits[--count];
  line[size++] = '\n';
  // Nobody can be told if stderr is closed.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line, size);
}

// The signal comes anew, to whoever had it before, as soon as this returns.
void OnAbort(int signal) {
  const int saved_errno = errno;
  if (abort_seed.is_set) WriteSeed(abort_seed.seed);
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
  constexpr std::string_view kFlag = "--seed=";
  const std::string command_line = ReadFile("/proc/self/cmdline");
  std::string_view rest = command_line;  // arguments, each ended by a zero
  while (!rest.empty()) {
    const std::string_view argument = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(argument.size() < rest.size() ? argument.size() + 1 : rest.size());
    if (argument == "--seed") fiber::internal::Fatal("--seed: write --seed=NUMBER");
    if (argument.starts_with(kFlag)) return ParseSeed("--seed=", argument.substr(kFlag.size()));
  }
  return std::nullopt;
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

SeedOnAbort::SeedOnAbort(uint64_t seed) {
  [[maybe_unused]] static const bool is_installed = InstallAbortHandler();
  abort_seed = {true, seed};
}

SeedOnAbort::~SeedOnAbort() { abort_seed.is_set = false; }

}  // namespace fiber::sim::internal
