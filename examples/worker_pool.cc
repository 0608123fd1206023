// SPDX-License-Identifier: Apache-2.0
// Four fibers take jobs from one channel and send what they find into another. The results come in any
// order, so they are sorted before they are shown.
#include <cstdint>
#include <iostream>
#include <map>

#include "absl/status/status.h"
#include "fiber/channel.h"
#include "fiber/scope.h"
#include "fiber/this_fiber.h"
#include "sched/run.h"

namespace {

constexpr int kWorkers = 4;

struct Result {
  int64_t n;
  int steps;
};

// From n to 1: halve what is even, else triple it and add one.
int StepsToOne(int64_t n) {
  int steps = 0;
  for (; n != 1; ++steps) n = n % 2 == 0 ? n / 2 : 3 * n + 1;
  return steps;
}

absl::Status Work(fiber::Channel<int64_t>& jobs, fiber::Channel<Result>& results) {
  for (int64_t n : jobs) {
    if (absl::Status status = results.Send({n, StepsToOne(n)}); !status.ok()) return status;
  }
  return fiber::CheckCancelled();
}

}  // namespace

int main() {
  return sched::Run([] {
    fiber::Channel<int64_t> jobs;
    fiber::Channel<Result> results;
    std::map<int64_t, int> steps;
    fiber::Scope scope;
    scope.Go([&]() -> absl::Status {
      for (int64_t n : {6, 7, 9, 18, 25, 27, 54, 73, 97, 129}) {
        if (absl::Status status = jobs.Send(n); !status.ok()) return status;
      }
      jobs.Close();
      return absl::OkStatus();
    });
    scope.Go([&]() -> absl::Status {
      absl::Status status = fiber::WithScope({}, [&](fiber::Scope& workers) {
        for (int i = 0; i < kWorkers; ++i) workers.Go([&] { return Work(jobs, results); });
      });
      results.Close();  // no worker is left
      return status;
    });
    for (const Result& result : results) steps.emplace(result.n, result.steps);
    if (absl::Status status = scope.Wait(); !status.ok()) {
      std::cerr << status << "\n";
      return 1;
    }
    for (const auto& [n, count] : steps) std::cout << n << " takes " << count << " steps\n";
    return 0;
  });
}
