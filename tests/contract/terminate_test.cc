// SPDX-License-Identifier: Apache-2.0
//
// std::terminate() says in which fiber: a core file holds no fiber's stack, and of a million of them the worker's says
// nothing.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>

#include "fiber/go.h"
#include "gtest/gtest.h"
#include "sched/run.h"

namespace contract {
namespace {

class TerminateDeathTest : public testing::Test {
 protected:
  TerminateDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

void Throw() { throw std::runtime_error("the reason"); }
void ThrowNoexcept() noexcept {
  fiber::Yield();
  Throw();
}
struct ThrowsWhileAnotherPasses {
  ~ThrowsWhileAnotherPasses() noexcept(false) {
    fiber::Yield();
    throw std::logic_error("the second");
  }
};

template <class F>
void RunInFiber(F fn) {
  sched::Run({.workers = 2}, [fn] { fiber::Spawn({.name = "culprit"}, fn).Join(); });
}

constexpr char kNamed[] = "fatal: std::terminate\\(\\) in fiber [0-9]+ 'culprit' \\(spawned at .*terminate_test.cc:[0-9]+\\)";

TEST_F(TerminateDeathTest, AnExceptionThatMeetsNoexceptNamesTheFiber) {
  EXPECT_DEATH(RunInFiber([] { ThrowNoexcept(); }), kNamed);
  EXPECT_DEATH(RunInFiber([] { ThrowNoexcept(); }), "the reason");  // by the handler that was there before
}

TEST_F(TerminateDeathTest, ADestructorThatThrowsWhileAnotherExceptionPassesNamesTheFiber) {
  EXPECT_DEATH(RunInFiber([] {
                 ThrowsWhileAnotherPasses guard;
                 Throw();
               }),
               kNamed);
}

TEST_F(TerminateDeathTest, AHandlerOfTheProgramsIsCalledToo) {
  const auto with_handler = [] {
    std::set_terminate([] {
      std::fputs("the program's last words\n", stderr);
      std::_Exit(3);
    });
    RunInFiber([] { ThrowNoexcept(); });
  };
  EXPECT_EXIT(with_handler(), testing::ExitedWithCode(3), kNamed);
  EXPECT_EXIT(with_handler(), testing::ExitedWithCode(3), "the program's last words");
}

TEST_F(TerminateDeathTest, APlainThreadIsNotNamed) {
  const auto terminate = [] {
    sched::Run({.workers = 1}, [] {});
    std::fputs("alone\n", stderr);
    std::terminate();
  };
  EXPECT_DEATH(terminate(), "alone\nterminate called");
}

}  // namespace
}  // namespace contract
