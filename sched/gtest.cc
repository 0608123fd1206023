// SPDX-License-Identifier: Apache-2.0
#include "sched/gtest.h"

#include <cstdlib>
#include <exception>
#include <string>

#include "fiber/deadline.h"
#include "fiber/internal/thread_state.h"
#include "sched/internal/core.h"

namespace sched {
namespace {

void FailTest(std::source_location site, const std::string& message) {
  ADD_FAILURE_AT(site.file_name(), static_cast<int>(site.line())) << message;
}

bool IsWorkerCountGiven() {
  const char* text = getenv("WEFT_WORKERS");
  return text != nullptr && *text != '\0';
}

}  // namespace

void RunInTest(const FiberTestOptions& options, absl::FunctionRef<void()> body,
               std::source_location site) {
  if (fiber::internal::ThisThread().scheduler != nullptr) {
    fiber::internal::Fatal("a fiber test is run on a worker, at %s:%u; it takes a plain thread",
                           site.file_name(), static_cast<unsigned>(site.line()));
  }
  Runtime runtime(options.runtime);
  internal::Core* core = nullptr;
  auto main = runtime.Spawn(
      {.name = "test body"},
      [&core, body] {
        core = dynamic_cast<internal::Core*>(fiber::internal::ThisThread().scheduler);
        body();
      },
      site);
  std::exception_ptr escaped;
  try {
    main.Join();
  } catch (...) {
    escaped = std::current_exception();
  }
  if (!core->WaitUntilDrained(fiber::Deadline(options.grace).nanos())) {
    FailTest(site, "the body has returned, and fibers outlive it: " + core->DescribeFibers());
  }
  if (escaped != nullptr) std::rethrow_exception(escaped);
}

void RunInTestOn(std::initializer_list<int> workers, absl::FunctionRef<void()> body,
                 std::source_location site) {
  if (workers.size() == 0) {
    FailTest(site, "it names no number of workers, so nothing would be run");
    return;
  }
  if (IsWorkerCountGiven()) return RunInTest({}, body, site);
  for (const int count : workers) {
    // Said after whatever failed; of an exception GoogleTest's message is the last.
    struct Sayer {
      const int count;
      const std::source_location site;
      ~Sayer() {
        if (!::testing::Test::HasFailure() && std::uncaught_exceptions() == 0) return;
        const std::string number = std::to_string(count);
        FailTest(site, "it failed with " + number + (count == 1 ? " worker" : " workers") +
                           "; WEFT_WORKERS=" + number +
                           " in the environment runs it with no other number");
      }
    } sayer{count, site};
    RunInTest({.runtime = {.workers = count}}, body, site);
    if (::testing::Test::HasFailure() || ::testing::Test::IsSkipped()) return;
  }
}

}  // namespace sched
