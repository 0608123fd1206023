// SPDX-License-Identifier: Apache-2.0
// The sieve of Eratosthenes as a chain of fibers, each of which lets pass what its prime does not divide.
// They would go on for ever: they are cancelled when there are enough primes.
#include <charconv>
#include <deque>
#include <iostream>
#include <string_view>
#include <system_error>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/channel.h"
#include "fiber/scope.h"
#include "sched/run.h"

namespace {

absl::Status Generate(fiber::Channel<int>& out) {
  for (int n = 2;; ++n) {
    if (absl::Status status = out.Send(n); !status.ok()) return status;
  }
}

absl::Status Filter(int prime, fiber::Channel<int>& in, fiber::Channel<int>& out) {
  for (;;) {
    const absl::StatusOr<int> n = in.Receive();
    if (!n.ok()) return n.status();
    if (*n % prime == 0) continue;
    if (absl::Status status = out.Send(*n); !status.ok()) return status;
  }
}

absl::Status PrintPrimes(int count) {
  std::deque<fiber::Channel<int>> chain(1);  // before the scope, whose fibers use it
  fiber::Scope scope;
  scope.Go([&] { return Generate(chain.front()); });
  for (int i = 0; i < count; ++i) {
    fiber::Channel<int>& in = chain.back();
    const absl::StatusOr<int> prime = in.Receive();
    if (!prime.ok()) return prime.status();
    std::cout << *prime << "\n";
    fiber::Channel<int>& out = chain.emplace_back();
    scope.Go([&in, &out, prime = *prime] { return Filter(prime, in, out); });
  }
  scope.Cancel();
  return scope.Wait();
}

}  // namespace

int main(int argc, char** argv) {
  int count = 25;
  if (argc == 2) {
    const std::string_view text = argv[1];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc() || end != text.data() + text.size()) count = -1;
  }
  if (argc > 2 || count < 0) {
    std::cerr << "usage: sieve [COUNT]\n";
    return 2;
  }
  return sched::Run([count] {
    const absl::Status status = PrintPrimes(count);
    if (!status.ok()) std::cerr << status << "\n";
    return status.ok() ? 0 : 1;
  });
}
