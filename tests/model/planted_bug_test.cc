// SPDX-License-Identifier: Apache-2.0
//
// The case named by the first argument must fail, and say what the second says: the code linked has a bug planted in it.
#include <cinttypes>
#include <cstdio>
#include <string>
#include <string_view>

#include "tests/model/case_list.h"
#include "tests/model/explorer.h"

int main(int argc, char** argv) {
  for (const model::NamedCase& named : model::Cases()) {
    if (argc != 3 || std::string_view(argv[1]) != named.name) continue;
    const model::Result result =
        model::Explore({.most_preemptions = named.most_preemptions}, named.make);
    if (result.failure.empty()) {
      std::printf("not found in %" PRIu64 " orders\n", result.schedules);
      return 1;
    }
    std::printf("found in order %" PRIu64 ": %s\n", result.schedules, result.failure.c_str());
    if (result.failure.find(argv[2]) != std::string::npos) return 0;
    std::printf("that is not \"%s\": the case fails for another reason\n", argv[2]);
    return 1;
  }
  std::fprintf(stderr, "usage: planted_bug_test CASE FAILURE\n");
  return 2;
}
