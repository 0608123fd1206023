// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_FOR_EACH_H_
#define WEFT_FIBER_FOR_EACH_H_

#include <climits>
#include <functional>
#include <iterator>
#include <ranges>
#include <source_location>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "fiber/scope.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"

namespace fiber {

namespace internal {

// Calls fn(element), unless the fiber is cancelled, and makes a Status of what it returns. A failure keeps its slot: nobody
// begins in its place before the scope has heard of it.
template <class F, class E>
absl::Status VisitElement(F& fn, E&& element, Semaphore& slots) {
  absl::Status status = CheckCancelled();
  if (!status.ok()) return status;
  if constexpr (std::is_void_v<std::invoke_result_t<F&, E>>) {
    std::invoke(fn, std::forward<E>(element));
  } else {
    static_assert(std::is_same_v<std::remove_cvref_t<std::invoke_result_t<F&, E>>, absl::Status>,
                  "the function of ForEach returns nothing or an absl::Status");
    status = std::invoke(fn, std::forward<E>(element));
  }
  if (status.ok()) slots.Release();
  return status;
}

}  // namespace internal

// Calls fn(element) for each element of `range`, each call in a fiber of its own, up to `max_running` at once (0: all), and
// waits for them. They begin in the range's order. `fn` returns nothing or an absl::Status.
//
//   absl::Status status = fiber::ForEach(urls, 8, [&](const std::string& url) { return Fetch(url); });
//
// The first failure, a Status other than OK or an exception, cancels the calls under way, lets no others begin, and is
// returned or rethrown once they have ended. kDeadlineExceeded, kCancelled: as for Scope::Wait(), likewise;
// kInvalidArgument: max_running is negative. Throws std::bad_alloc.
//
// The range is iterated by the caller, no more than one element ahead of the calls: it may be a Channel, or have no end.
// Elements that it holds are passed by reference; those that it makes on the way (a view's values, a channel's items) are
// moved.
//
// Parks the fiber. Blocks the thread when called from a plain one.
template <std::ranges::input_range R, class F>
absl::Status ForEach(R&& range, int max_running, F fn,
                     std::source_location site = std::source_location::current()) {
  if (max_running < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("fiber::ForEach with max_running = ", max_running));
  }
  Semaphore slots(max_running == 0 ? INT_MAX : max_running);
  absl::Status stopped;  // why elements were left out
  Scope scope;
  const auto end = std::ranges::end(range);
  for (auto it = std::ranges::begin(range); it != end; ++it) {
    if (stopped = slots.Acquire(); !stopped.ok()) break;
    using Reference = std::ranges::range_reference_t<R>;
    if constexpr (std::ranges::forward_range<R> && std::is_lvalue_reference_v<Reference>) {
      scope.Go([&slots, &fn, &element = *it] { return internal::VisitElement(fn, element, slots); },
               site);
    } else if constexpr (std::is_lvalue_reference_v<Reference>) {
      scope.Go([&slots, &fn, element = std::ranges::range_value_t<R>(std::ranges::iter_move(it))]()
                   mutable { return internal::VisitElement(fn, std::move(element), slots); },
               site);
    } else {
      // No iter_move: of a zip it moves what the ranges below hold.
      scope.Go([&slots, &fn, element = std::ranges::range_value_t<R>(*it)]() mutable {
        return internal::VisitElement(fn, std::move(element), slots);
      }, site);
    }
  }
  absl::Status status = scope.Wait();
  return status.ok() ? stopped : status;
}

}  // namespace fiber

#endif  // WEFT_FIBER_FOR_EACH_H_
