// SPDX-License-Identifier: Apache-2.0
// One fiber listens to several channels, whose number is known at run time only, and leaves when none
// has said anything for a while.
#include <cstddef>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/scope.h"
#include "fiber/select.h"
#include "sched/run.h"

namespace {

constexpr absl::Duration kPatience = absl::Milliseconds(500);

using Words = fiber::Channel<std::string>;

// How many words come from all of `sources`, until none has for a while.
absl::StatusOr<int> CountWords(const std::vector<std::unique_ptr<Words>>& sources) {
  int words = 0;
  std::vector<bool> is_open(sources.size(), true);
  for (bool is_over = false; !is_over;) {
    fiber::ClauseList clauses;
    for (size_t i = 0; i < sources.size(); ++i) {
      if (!is_open[i]) continue;  // closed and drained: it would be ready for ever
      clauses.Add(fiber::OnReceive(*sources[i], [&, i](absl::StatusOr<std::string> word) {
        is_open[i] = word.ok();
        words += word.ok() ? 1 : 0;
      }));
    }
    clauses.Add(fiber::OnDeadline(kPatience, [&] { is_over = true; }));
    if (auto which = fiber::Select(clauses); !which.ok()) return which.status();
  }
  return words;
}

}  // namespace

int main() {
  return sched::Run([] {
    std::vector<std::unique_ptr<Words>> sources;
    for (int i = 0; i < 4; ++i) sources.push_back(std::make_unique<Words>());
    fiber::Scope scope;
    for (size_t i = 0; i + 1 < sources.size(); ++i) {  // the last one stays silent
      scope.Go([&words = *sources[i], i]() -> absl::Status {
        for (size_t k = 0; k < 10 * (i + 1); ++k) {
          if (absl::Status status = words.Send("over"); !status.ok()) return status;
        }
        words.Close();
        return absl::OkStatus();
      });
    }
    const absl::StatusOr<int> count = CountWords(sources);
    if (absl::Status status = scope.Wait(); !status.ok() || !count.ok()) {
      std::cerr << status << ", " << count.status() << "\n";
      return 1;
    }
    std::cout << *count << " words, then silence\n";
    return 0;
  });
}
