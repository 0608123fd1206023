// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/for_each.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <vector>

#include "fiber/go.h"

namespace loadgen {

void ForEach(int first, int end, int fibers, absl::FunctionRef<void(int)> what) {
  std::atomic<int> next{first};
  std::vector<fiber::JoinHandle<void>> handles;
  handles.reserve(static_cast<size_t>(std::min(fibers, end - first)));
  for (int i = 0; i < std::min(fibers, end - first); ++i) {
    handles.push_back(fiber::Spawn([&] {
      for (;;) {
        const int number = next.fetch_add(1, std::memory_order_relaxed);
        if (number >= end) return;
        what(number);
      }
    }));
  }
  for (auto& handle : handles) handle.Join();
}

}  // namespace loadgen
