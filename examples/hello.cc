// SPDX-License-Identifier: Apache-2.0
// Fibers sleep at the same time and are joined in turn; what they return, or throw, comes out of
// Join().
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "fiber/go.h"
#include "fiber/this_fiber.h"
#include "sched/run.h"

int main() {
  return sched::Run([]() -> int {
    std::vector<fiber::JoinHandle<std::string>> words;
    for (const char* word : {"over", "under", "over"}) {
      words.push_back(fiber::Spawn([word, naps = words.size()]() -> std::string {
        if (!fiber::Sleep(absl::Milliseconds(30 - 10 * static_cast<int>(naps))).ok()) return "-";
        return word;
      }));
    }
    for (auto& word : words) std::cout << "a fiber says " << word.Join() << "\n";

    auto tangle = fiber::Spawn([]() -> int { throw std::runtime_error("a knot"); });
    try {
      return tangle.Join();
    } catch (const std::exception& error) {
      std::cout << "another was stopped by " << error.what() << "\n";
    }
    return 0;
  });
}
