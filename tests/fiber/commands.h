// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_FIBER_COMMANDS_H_
#define WEFT_TESTS_FIBER_COMMANDS_H_

#include <sys/wait.h>

#include <cstdio>
#include <string>

namespace tests {

struct Output {
  int exit_status;
  std::string text;
};

// Runs a command by the shell, to its end.
inline Output RunCommand(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  std::string text;
  char buffer[4096];
  for (size_t size; (size = fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, size);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
}

// This test, as the shell runs it.
inline std::string ThisProgram() {
  const std::string self = RunCommand("readlink /proc/$PPID/exe").text;
  return "'" + self.substr(0, self.find('\n')) + "'";
}

// The rest of the line behind `marker`; empty: it is not there.
inline std::string LineAfter(const std::string& text, const std::string& marker) {
  const size_t at = text.find(marker);
  if (at == std::string::npos) return {};
  const size_t begin = at + marker.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace tests

#endif  // WEFT_TESTS_FIBER_COMMANDS_H_
