// SPDX-License-Identifier: Apache-2.0
// Three stages, a fiber each, with channels between them. A stage that ends closes its channel, so the
// next one ends too; one that fails cancels the others.
#include <cstdint>
#include <iostream>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "fiber/channel.h"
#include "fiber/scope.h"
#include "fiber/this_fiber.h"
#include "sched/run.h"

namespace {

absl::Status Count(int last, fiber::Channel<int64_t>& numbers) {
  absl::Cleanup close = [&] { numbers.Close(); };
  for (int64_t n = 1; n <= last; ++n) {
    if (absl::Status status = numbers.Send(n); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Square(fiber::Channel<int64_t>& numbers, fiber::Channel<int64_t>& squares) {
  absl::Cleanup close = [&] { squares.Close(); };
  for (int64_t n : numbers) {
    if (absl::Status status = squares.Send(n * n); !status.ok()) return status;
  }
  return fiber::CheckCancelled();  // OK: `numbers` has come to its end
}

absl::Status Add(fiber::Channel<int64_t>& squares, int64_t& sum) {
  for (int64_t square : squares) sum += square;
  return fiber::CheckCancelled();
}

}  // namespace

int main() {
  return sched::Run([] {
    fiber::Channel<int64_t> numbers(8);
    fiber::Channel<int64_t> squares;  // holds nothing: its ends meet
    int64_t sum = 0;
    const absl::Status status = fiber::WithScope({}, [&](fiber::Scope& stages) {
      stages.Go([&] { return Count(100, numbers); });
      stages.Go([&] { return Square(numbers, squares); });
      stages.Go([&] { return Add(squares, sum); });
    });
    if (!status.ok()) {
      std::cerr << status << "\n";
      return 1;
    }
    std::cout << "the squares of 1 to 100 add up to " << sum << "\n";
    return 0;
  });
}
