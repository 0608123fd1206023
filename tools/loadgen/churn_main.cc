// SPDX-License-Identifier: Apache-2.0
// Connections that come and go, a thousand a second, while thousands stay:
//
//   bazel run -c opt //tools/loadgen:churn -- --target=127.0.0.1:7000 --server=PID
#include <sys/resource.h>
#include <sys/socket.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "sched/run.h"
#include "tools/loadgen/churn.h"

namespace {

constexpr char kUsage[] =
    "usage: churn --target=127.0.0.1:PORT --server=PID [--held=N] [--per-second=N] [--seconds=N]\n"
    "             [--slack-kib=N]\n"
    "Holds N connections (default: 19000) to an echo server, while others (1000 per second) come,\n"
    "exchange bytes and go, for as many as N seconds (300) are to have; then proves each held one\n"
    "alive. Exits with 0 if no connection was lost, no byte wrong, and the server, the process "
    "PID,\n"
    "keeps no descriptor and grows by no more than 1 % and N KiB (1024).\n";

bool ParseArgument(std::string_view argument, loadgen::ChurnOptions& options) {
  const size_t equals = argument.find('=');
  if (equals == std::string_view::npos) return false;
  const std::string_view name = argument.substr(0, equals);
  const std::string_view value = argument.substr(equals + 1);
  if (name == "--target") {
    const absl::StatusOr<netpoll::Address> target = netpoll::Address::Parse(value);
    if (!target.ok() || target->family() != AF_INET) return false;
    options.target = *target;
    return true;
  }
  int* const field = name == "--server"       ? &options.server
                     : name == "--held"       ? &options.held
                     : name == "--per-second" ? &options.per_second
                     : name == "--seconds"    ? &options.seconds
                     : name == "--slack-kib"  ? &options.slack_kib
                                              : nullptr;
  return field != nullptr && absl::SimpleAtoi({value.data(), value.size()}, field) && *field > 0 &&
         *field <= 10'000'000;
}

}  // namespace

int main(int argc, char** argv) {
  loadgen::ChurnOptions options;
  for (int i = 1; i < argc; ++i) {
    if (ParseArgument(argv[i], options)) continue;
    std::fprintf(stderr, "churn: '%s' is not understood\n%s", argv[i], kUsage);
    return 2;
  }
  if (options.target == netpoll::Address() || options.server == 0 ||
      int64_t{options.per_second} * options.seconds > INT_MAX) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return sched::Run([&] { return loadgen::Churn(options).Run() ? 0 : 1; });
}
