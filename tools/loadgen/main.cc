// SPDX-License-Identifier: Apache-2.0
// Load for an echo server:
//
//   bazel run -c opt //tools/loadgen -- --target=127.0.0.1:7000 --connections=10000 --busy=1000
#include <sys/resource.h>

#include <iostream>

#include "absl/status/statusor.h"
#include "sched/run.h"
#include "tools/loadgen/client.h"
#include "tools/loadgen/options.h"

namespace {

// What the process opens besides connections.
constexpr rlim_t kOtherDescriptors = 100;

// Takes all descriptors there are; says so if they are too few.
bool RaiseDescriptorLimit(int connections) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (static_cast<rlim_t>(connections) + kOtherDescriptors <= limit.rlim_max) return true;
  const rlim_t most = limit.rlim_max > kOtherDescriptors ? limit.rlim_max - kOtherDescriptors : 0;
  std::cerr << "loadgen: " << connections
            << " connections need as many descriptors, and a process may open " << limit.rlim_max
            << " (ulimit -Hn): at most " << most
            << " connections. Raise the limit, or run several.\n";
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const absl::StatusOr<loadgen::Options> options = loadgen::ParseOptions(argc, argv);
  if (!options.ok()) {
    std::cerr << "loadgen: " << options.status().message() << "\n" << loadgen::kUsage;
    return 2;
  }
  if (!RaiseDescriptorLimit(options->connections)) return 1;
  return sched::Run({.workers = options->workers}, [&] { return loadgen::Client(*options).Run(); });
}
