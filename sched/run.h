// SPDX-License-Identifier: Apache-2.0
#if __cplusplus < 202002L
#error "Weft is C++20: build with -std=c++20 (Bazel: build --cxxopt=-std=c++20)"
#endif
#ifndef WEFT_SCHED_RUN_H_
#define WEFT_SCHED_RUN_H_

#include <concepts>
#include <source_location>
#include <type_traits>
#include <utility>

#include "sched/runtime.h"

namespace sched {

// Runs `main` as the first fiber of a new runtime and returns what it returns; rethrows what escapes it. When it has
// ended, what is left is cancelled and drained; fibers that survive RuntimeOptions::drain are named and end the process.
// Throws what the constructor of a Runtime throws. Blocks the thread.
//
//   int main() {
//     return sched::Run([] {
//       fiber::Go([] { … });
//       return 0;
//     });
//   }
template <std::invocable F>
std::remove_cvref_t<std::invoke_result_t<F>> Run(
    RuntimeOptions options, F main, std::source_location site = std::source_location::current()) {
  Runtime runtime(options);
  return runtime.Spawn({.name = "main"}, std::move(main), site).Join();
}
template <std::invocable F>
std::remove_cvref_t<std::invoke_result_t<F>> Run(
    F main, std::source_location site = std::source_location::current()) {
  return Run(RuntimeOptions{}, std::move(main), site);
}

}  // namespace sched

#endif  // WEFT_SCHED_RUN_H_
