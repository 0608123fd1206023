// SPDX-License-Identifier: Apache-2.0
#include "fiber/for_each.h"

#include <algorithm>
#include <atomic>
#include <list>
#include <memory>
#include <numeric>
#include <ranges>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/sim/gtest.h"
#include "fiber/this_fiber.h"
#include "gtest/gtest.h"
#include "sched/gtest.h"
#include "sched/runtime.h"
#include "tests/scale.h"

namespace fiber {
namespace {

FIBER_SIM_TEST(ForEachTest, VisitsEveryElementByReferenceAndWaits) {
  std::vector<std::unique_ptr<int>> elements;  // which cannot be copied
  for (int i = 0; i < 5; ++i) elements.push_back(std::make_unique<int>(i));
  EXPECT_TRUE(ForEach(elements, 0, [](std::unique_ptr<int>& element) {
                (void)Sleep(absl::Seconds(1));
                *element *= 10;
              }).ok());
  int sum = 0;
  for (const auto& each : elements) sum += *each;
  EXPECT_EQ(sum, 100);
}

FIBER_SIM_TEST(ForEachTest, NoMoreThanMaxRunningRunAtOnceAndTheyBeginInOrder) {
  const absl::Duration start = Now();
  int running = 0, most = 0, started = 0;
  EXPECT_TRUE(ForEach(std::views::iota(0, 6), 2, [&](int i) {
                EXPECT_EQ(started++ / 2, i / 2);
                most = std::max(most, ++running);
                (void)Sleep(absl::Seconds(1));
                --running;
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(most, 2);
  EXPECT_EQ(Now() - start, absl::Seconds(3));
}

FIBER_SIM_TEST(ForEachTest, TheFirstFailureCancelsTheRestAndIsReturned) {
  int begun = 0, cancelled = 0;
  const auto visit = [&](int i) {
    ++begun;
    if (i == 1) {
      (void)Sleep(absl::Seconds(1));
      return absl::NotFoundError("second");
    }
    const absl::Status status = Sleep(absl::InfiniteDuration());
    cancelled += absl::IsCancelled(status);
    return status;
  };
  // A range without end.
  EXPECT_EQ(ForEach(std::views::iota(0), 3, visit), absl::NotFoundError("second"));
  EXPECT_EQ(begun, 3);
  EXPECT_EQ(cancelled, 2);
  EXPECT_TRUE(CheckCancelled().ok());
}

FIBER_SIM_TEST(ForEachTest, AnExceptionIsRethrownOnceAllHaveEnded) {
  int running = 0;
  EXPECT_THROW((void)ForEach(std::vector<int>{0, 1, 2, 3}, 0,
                             [&](int i) {
                               ++running;
                               (void)Sleep(absl::Seconds(i + 1));
                               --running;
                               if (i == 2) throw std::runtime_error("third");
                             }),
               std::runtime_error);
  EXPECT_EQ(running, 0);
}

FIBER_SIM_TEST(ForEachTest, CancellationAndDeadlinesOfTheCallerEndIt) {
  int begun = 0, ended = 0;
  const auto visit = [&](int) {
    ++begun;
    (void)Sleep(absl::InfiniteDuration());
    ++ended;
  };
  auto caller = Spawn([&] { return ForEach(std::vector<int>(10), 3, visit); });
  (void)Sleep(absl::Seconds(1));
  caller.Cancel();
  EXPECT_TRUE(absl::IsCancelled(caller.Join()));
  EXPECT_EQ(begun, 3);
  EXPECT_EQ(ended, 3);
  {
    DeadlineScope ambient(absl::Seconds(1));
    EXPECT_TRUE(absl::IsDeadlineExceeded(ForEach(std::vector<int>(10), 3, visit)));
  }
  EXPECT_EQ(begun, 6);
  EXPECT_EQ(ended, 6);
}

FIBER_SIM_TEST(ForEachTest, TakesItemsFromAChannelAsCallsCanBegin) {
  Channel<std::unique_ptr<int>> items;
  int sent = 0, sum = 0;
  auto sender = Spawn([&] {
    for (int i = 1; i <= 6; ++i) {
      EXPECT_TRUE(items.Send(std::make_unique<int>(i)).ok());
      ++sent;
    }
    items.Close();
  });
  Event may_go;
  auto visitor = Spawn([&] {
    return ForEach(items, 2, [&](std::unique_ptr<int> item) {
      EXPECT_TRUE(may_go.Wait().ok());
      sum += *item;
    });
  });
  (void)Sleep(absl::Seconds(1));
  EXPECT_EQ(sent, 3);  // two in calls, one at hand
  may_go.Set();
  EXPECT_TRUE(visitor.Join().ok());
  sender.Join();
  EXPECT_EQ(sum, 21);
}

FIBER_SIM_TEST(ForEachTest, EmptyRangesAndNegativeBoundsCallNothing) {
  const auto fail = [](int) { ADD_FAILURE(); };
  EXPECT_TRUE(ForEach(std::vector<int>{}, 1, fail).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(ForEach(std::vector<int>{1}, -1, fail)));
}

FIBER_SIM_TEST(ForEachTest, AViewsValuesAreMovedToTheirCalls) {
  std::list<int> numbers = {1, 2, 3};
  std::string all;
  EXPECT_TRUE(ForEach(numbers | std::views::transform([](int i) { return std::to_string(i); }), 1,
                      [&](std::string text) { all += text; })
                  .ok());
  EXPECT_EQ(all, "123");
}

FIBER_TEST_ON(ForEachTest, AllElementsAreVisitedOnce, 1, 2, 8) {
  std::vector<std::atomic<int>> visits(tests::Scaled(5'000));
  EXPECT_TRUE(ForEach(visits, 16, [](std::atomic<int>& visit) {
                if (visit.fetch_add(1, std::memory_order_relaxed) == 0) Yield();
              }).ok());
  for (const auto& each : visits) EXPECT_EQ(each.load(std::memory_order_relaxed), 1);
}

FIBER_TEST_ON(ForEachTest, FailuresEndItAllTheTime, 1, 2, 8) {
  for (int round = 0; round < tests::Scaled(300); ++round) {
    std::atomic<int> running{0};
    const absl::Status status = ForEach(std::views::iota(0), 4, [&](int i) {
      running.fetch_add(1, std::memory_order_relaxed);
      if (i % 3 == 0) Yield();
      running.fetch_sub(1, std::memory_order_relaxed);
      return i == round % 20 ? absl::InternalError("enough") : absl::OkStatus();
    });
    EXPECT_EQ(status, absl::InternalError("enough"));
    EXPECT_EQ(running.load(std::memory_order_relaxed), 0);
  }
}

TEST(ForEachTest, OnAPlainThreadAnEndingRuntimeIsAFailure) {
  auto runtime = std::make_unique<sched::Runtime>(sched::RuntimeOptions{.workers = 2});
  Event begun;
  absl::Status status;
  std::thread caller([&] {
    status = ForEach(std::vector<int>{1, 2, 3}, 3, [&](int) {
      begun.Set();
      return Sleep(absl::InfiniteDuration());
    });
  });
  EXPECT_TRUE(begun.Wait().ok());
  // All three have been spawned, or the runtime would end under the caller's hands.
  while (runtime->stats().fibers_spawned < 3) std::this_thread::yield();
  EXPECT_TRUE(runtime->Shutdown(absl::Seconds(10)).ok());
  caller.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

// A range of pairs made on the fly whose iter_move moves what lies beneath, as std::views::zip has it.
struct Named {
  std::string& name;
  operator std::string() const { return name; }
};
class Names {
 public:
  class Iterator {
   public:
    using value_type = std::string;
    using difference_type = std::ptrdiff_t;
    Iterator() = default;
    explicit Iterator(std::string* at) : at_(at) {}
    Named operator*() const { return {*at_}; }
    Iterator& operator++() {
      ++at_;
      return *this;
    }
    void operator++(int) { ++at_; }
    bool operator==(const Iterator&) const = default;
    [[maybe_unused]] friend std::string iter_move(const Iterator& it) { return std::move(*it.at_); }

   private:
    std::string* at_ = nullptr;
  };
  explicit Names(std::vector<std::string>& names) : names_(&names) {}
  Iterator begin() const { return Iterator(names_->data()); }
  Iterator end() const { return Iterator(names_->data() + names_->size()); }

 private:
  std::vector<std::string>* names_;
};
}  // namespace
}  // namespace fiber

template <template <class> class A, template <class> class B>
struct std::basic_common_reference<fiber::Named, std::string, A, B> {
  using type = std::string;
};
template <template <class> class A, template <class> class B>
struct std::basic_common_reference<std::string, fiber::Named, A, B> {
  using type = std::string;
};

namespace fiber {
namespace {

FIBER_SIM_TEST(ForEachTest, WhatTheRangeRefersToStaysWhereItIs) {
  std::vector<std::string> names = {"a name that is long enough for the heap", "second"};
  std::vector<std::string> seen;
  EXPECT_TRUE(ForEach(Names(names), 1, [&](std::string name) { seen.push_back(name); }).ok());
  EXPECT_EQ(seen, names);
  EXPECT_EQ(names[1], "second");
}

}  // namespace
}  // namespace fiber
