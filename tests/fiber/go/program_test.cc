// SPDX-License-Identifier: Apache-2.0
//
// Whole programs of channels: row 50 of docs/go_conformance.md.
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "fiber/channel.h"
#include "fiber/mutex.h"
#include "fiber/scope.h"
#include "gtest/gtest.h"
#include "tests/fiber/go/row.h"

namespace fiber {
namespace {

// The primes below `end`, by a chain of fibers, each of which lets pass what its own prime does not
// divide.
std::vector<int> Sieve(int end, size_t capacity) {
  std::vector<std::unique_ptr<Channel<int>>> links;
  std::vector<int> primes;
  links.push_back(std::make_unique<Channel<int>>(capacity));
  Scope scope;
  scope.Go([&first = *links.back(), end] {
    for (int i = 2; i < end; ++i) EXPECT_TRUE(first.Send(i).ok());
    first.Close();
  });
  for (;;) {
    Channel<int>& in = *links.back();
    const absl::StatusOr<int> prime = in.Receive();
    if (!prime.ok()) break;
    primes.push_back(*prime);
    links.push_back(std::make_unique<Channel<int>>(capacity));
    scope.Go([&in, &out = *links.back(), prime = *prime] {
      for (int i : in) {
        if (i % prime == 0) continue;
        EXPECT_TRUE(out.Send(i).ok());
      }
      out.Close();
    });
  }
  EXPECT_TRUE(scope.Wait().ok());
  return primes;
}

GO_ROW(GoProgram, ASieveOfFibersFindsThePrimesBelowAHundred, 50) {
  const std::vector<int> primes = {2,  3,  5,  7,  11, 13, 17, 19, 23, 29, 31, 37, 41,
                                   43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97};
  for (const size_t capacity : {0, 1, 16}) EXPECT_EQ(Sieve(100, capacity), primes);
}

// A power series: its coefficients, for as long as somebody asks for them.
using Series = Channel<int64_t>;

// Makes series, and keeps them and the fibers that compute them until it is destroyed.
class SeriesMaker {
 public:
  ~SeriesMaker() {
    scope_.Cancel();
    (void)scope_.Wait();
  }

  // 1, ratio, ratio^2, …
  Series& Geometric(int64_t ratio) {
    return Make([ratio](SeriesMaker&, Series& out) {
      for (int64_t i = 1; out.Send(i).ok(); i *= ratio) {
      }
    });
  }
  Series& Sum(Series& a, Series& b) {
    return Make([&a, &b](SeriesMaker&, Series& out) {
      for (;;) {
        const auto left = a.Receive(), right = b.Receive();
        if (!left.ok() || !right.ok() || !out.Send(*left + *right).ok()) return;
      }
    });
  }
  // a0 b0 + x (a0 B + b0 A + x A B), with A and B for what follows a0 and b0.
  Series& Product(Series& a, Series& b) {
    return Make([&a, &b](SeriesMaker& maker, Series& out) {
      const auto a0 = a.Receive(), b0 = b.Receive();
      if (!a0.ok() || !b0.ok() || !out.Send(*a0 * *b0).ok()) return;
      auto [a1, a2] = maker.Split(a);
      auto [b1, b2] = maker.Split(b);
      Series& linear = maker.Sum(maker.Scaled(*a0, *b1), maker.Scaled(*b0, *a1));
      Series& rest = maker.Delayed(maker.Product(*a2, *b2));
      maker.Pass(maker.Sum(linear, rest), out);
    });
  }

 private:
  template <class F>
  Series& Make(F body) {
    Series& out = New();
    scope_.Go([this, body, &out] { body(*this, out); });
    return out;
  }
  Series& New() {
    MutexLock hold(mutex_);
    series_.push_back(std::make_unique<Series>());
    return *series_.back();
  }
  Series& Scaled(int64_t factor, Series& in) {
    return Make([factor, &in](SeriesMaker&, Series& out) {
      for (int64_t each : in) {
        if (!out.Send(factor * each).ok()) return;
      }
    });
  }
  Series& Delayed(Series& in) {
    return Make([&in](SeriesMaker& maker, Series& out) {
      if (out.Send(0).ok()) maker.Pass(in, out);
    });
  }
  void Pass(Series& in, Series& out) {
    for (int64_t each : in) {
      if (!out.Send(each).ok()) return;
    }
  }
  // Twice the same series; whoever is ahead in one waits in a buffer for the other.
  std::pair<Series*, Series*> Split(Series& in) {
    MutexLock hold(mutex_);
    for (int i = 0; i < 2; ++i) series_.push_back(std::make_unique<Series>(16));
    Series& one = *series_[series_.size() - 2];
    Series& two = *series_.back();
    scope_.Go([&in, &one, &two] {
      for (int64_t each : in) {
        if (!one.Send(each).ok() || !two.Send(each).ok()) return;
      }
    });
    return {&one, &two};
  }

  Mutex mutex_;
  std::vector<std::unique_ptr<Series>> series_ ABSL_GUARDED_BY(mutex_);
  Scope scope_;  // destroyed first
};

GO_ROW(GoProgram, PowerSeriesAreAddedAndMultipliedByFibersThatAskEachOther, 100) {
  SeriesMaker maker;
  Series& sum = maker.Sum(maker.Geometric(1), maker.Geometric(2));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sum.Receive().value(), 1 + (1 << i));
  // 1/(1-x)^2 is 1 + 2x + 3x^2 + …
  Series& square = maker.Product(maker.Geometric(1), maker.Geometric(1));
  for (int i = 1; i <= 8; ++i) EXPECT_EQ(square.Receive().value(), i);
}

}  // namespace
}  // namespace fiber
