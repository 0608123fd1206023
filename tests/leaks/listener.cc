// SPDX-License-Identifier: Apache-2.0
//
// Fails each test that leaves something behind. Linked into every test by weft_test().
#include "tests/leaks/leaks.h"

#include <sched.h>

#include <cstdint>
#include <string>
#include <thread>

#include "fiber/internal/sanitizer.h"
#include "fiber/internal/thread_pool.h"
#include "fiber/internal/thread_state.h"
#include "gtest/gtest.h"
#include "tests/leaks/census.h"

namespace tests {
namespace {

size_t abandoned_fibers = 0;

constexpr int64_t kPatienceNs = 1'000'000'000;

// Threads for blocking calls would go by themselves, in some seconds. Some may be starting, or be about to become idle; those
// that stay are in a call.
void EndPoolThreads(int64_t until_ns) {
  fiber::internal::ThreadPool& pool = fiber::internal::ThreadPool::Get();
  do {
    pool.EndIdle();
  } while (pool.threads() > 0 && fiber::internal::MonotonicNs() < until_ns && sched_yield() == 0);
}

class LeakListener : public testing::EmptyTestEventListener {
#if defined(WEFT_TSAN)
  // ThreadSanitizer starts a thread of its own beside the first.
  void OnTestProgramStart(const testing::UnitTest&) override { std::thread([] {}).join(); }
#endif
  // From before its fixture is made until after that is destroyed.
  void OnTestStart(const testing::TestInfo&) override {
    abandoned_fibers = 0;
    before_ = Census::Take();
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (test.result()->Failed()) return;  // which has said why; and what an ASSERT left is no wonder
    const int64_t until_ns = fiber::internal::MonotonicNs() + kPatienceNs;
    EndPoolThreads(until_ns);
    std::string changes;
    // A thread that was one too many for the pool has left it, but may have yet to end.
    do {
      changes = Census::Take().ChangesSince(before_, abandoned_fibers);
    } while (changes.find("left behind: thread") != std::string::npos && fiber::internal::MonotonicNs() < until_ns &&
             sched_yield() == 0);
    if (!changes.empty()) ADD_FAILURE() << "leaks:" << changes;
  }

  Census before_;
};

[[maybe_unused]] const bool is_listening = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new LeakListener);  // which takes it over
  return true;
}();

}  // namespace

void AllowAbandonedFibers(size_t count) { abandoned_fibers = count; }

}  // namespace tests
