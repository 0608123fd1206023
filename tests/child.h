// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_CHILD_H_
#define WEFT_TESTS_CHILD_H_

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "fiber/internal/sanitizer.h"
#include "gtest/gtest.h"

#ifdef WEFT_TSAN
// ThreadSanitizer has a thread of its own, and would forbid others in the children of what it takes for a program with threads.
extern "C" __attribute__((used)) inline const char* __tsan_default_options() {
  return "die_after_fork=0";
}
#endif

namespace tests {

// What the body of a child process returns, beside numbers of its own for what went wrong.
inline constexpr int kFine = 0;
inline constexpr int kCannotTest = 77;  // and why on stderr

struct ChildEnd {
  int status = 0;    // as waitpid() has it
  std::string said;  // on stderr
};

// Runs `body`, which returns an int, in a child process, for what must not hurt the test itself, or cannot be taken back.
// A child that hangs is ended.
template <class F>
ChildEnd RunChild(F body) {
  ChildEnd end;
  const int said = memfd_create("stderr of a child", MFD_CLOEXEC);
  EXPECT_GE(said, 0);
  fflush(nullptr);
  const pid_t child = fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(50);
    dup2(said, STDERR_FILENO);
    const int result = body();
    fflush(nullptr);
    _exit(testing::Test::HasFailure() ? 1 : result);
  }
  EXPECT_EQ(waitpid(child, &end.status, 0), child);
  char buffer[4096];
  lseek(said, 0, SEEK_SET);
  for (ssize_t n; (n = read(said, buffer, sizeof buffer)) > 0;) {
    end.said.append(buffer, static_cast<size_t>(n));
  }
  close(said);
  return end;
}

// Likewise, and expects that it ends well; the caller is skipped if the child says that it cannot be tested.
template <class F>
void InChild(F body, std::string* said = nullptr) {
  const ChildEnd end = RunChild(body);
  if (said != nullptr) *said = end.said;
  ASSERT_TRUE(WIFEXITED(end.status))
      << "signal " << WTERMSIG(end.status) << "; it said:\n" << end.said;
  if (WEXITSTATUS(end.status) == kCannotTest) GTEST_SKIP() << end.said;
  EXPECT_EQ(WEXITSTATUS(end.status), kFine) << "it said:\n" << end.said;
}

// How often `text` holds `part`.
inline int CountIn(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace tests

#endif  // WEFT_TESTS_CHILD_H_
