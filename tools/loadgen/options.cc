// SPDX-License-Identifier: Apache-2.0
#include "tools/loadgen/options.h"

#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace loadgen {
namespace {

constexpr double kDay = 24 * 60 * 60;

std::string_view NameOf(std::string_view argument) {
  return argument.substr(0, argument.find('='));
}

std::string_view ValueOf(std::string_view argument) {
  const size_t equals = argument.find('=');
  return equals == std::string_view::npos ? std::string_view() : argument.substr(equals + 1);
}

// The value as a number within bounds.
std::optional<double> NumberOf(std::string_view argument, double least, double most) {
  const std::string_view value = ValueOf(argument);
  double number = 0;
  if (!absl::SimpleAtod({value.data(), value.size()}, &number)) return std::nullopt;
  if (!(number >= least && number <= most)) return std::nullopt;  // nan too
  return number;
}

std::optional<int> IntegerOf(std::string_view argument, int least, int most) {
  const std::optional<double> number = NumberOf(argument, least, most);
  if (!number.has_value() || *number != static_cast<int>(*number)) return std::nullopt;
  return static_cast<int>(*number);
}

template <class From, class To>
bool Assign(const std::optional<From>& number, To& field) {
  if (number.has_value()) field = static_cast<To>(*number);
  return number.has_value();
}

bool ParseArgument(std::string_view argument, Options& options) {
  const std::string_view name = NameOf(argument);
  if (name == "--target") {
    absl::StatusOr<netpoll::Address> target = netpoll::Address::Parse(ValueOf(argument));
    if (target.ok()) options.target = *std::move(target);
    return target.ok();
  }
  if (name == "--connections")
    return Assign(IntegerOf(argument, 1, 1'000'000), options.connections);
  if (name == "--busy") return Assign(IntegerOf(argument, 0, 1'000'000), options.busy);
  if (name == "--size") return Assign(IntegerOf(argument, 1, 64 << 20), options.size);
  if (name == "--pipeline") return Assign(IntegerOf(argument, 1, 10'000), options.pipeline);
  if (name == "--workers") return Assign(IntegerOf(argument, 1, 1024), options.workers);
  if (name == "--seconds") {
    const std::optional<double> seconds = NumberOf(argument, 0.01, kDay);
    if (seconds.has_value()) options.time = absl::Seconds(*seconds);
    return seconds.has_value();
  }
  return false;
}

}  // namespace

const char kUsage[] =
    "usage: loadgen --target=HOST:PORT --connections=N [--busy=M] [--seconds=S] [--size=BYTES]\n"
    "               [--pipeline=P] [--workers=W]\n"
    "Opens N connections to an echo server and keeps M of them (default: all) busy for S seconds\n"
    "(default: 10), with P messages (1) of BYTES bytes (64) under way on each; every byte that "
    "comes\n"
    "back is checked. Then proves each idle connection alive with one echo. Exits with 0 if "
    "nothing\n"
    "was wrong and no connection was lost.\n";

absl::StatusOr<Options> ParseOptions(int argc, const char* const* argv) {
  Options options;
  options.busy = -1;
  bool has_target = false;
  for (int i = 1; i < argc; ++i) {
    if (!ParseArgument(argv[i], options)) {
      return absl::InvalidArgumentError(absl::StrCat("'", argv[i], "' is not understood"));
    }
    has_target |= NameOf(argv[i]) == "--target";
  }
  if (!has_target) return absl::InvalidArgumentError("--target is missing");
  if (options.connections == 0) return absl::InvalidArgumentError("--connections is missing");
  if (options.busy < 0) options.busy = options.connections;
  if (options.busy > options.connections) {
    return absl::InvalidArgumentError("--busy is more than --connections");
  }
  return options;
}

}  // namespace loadgen
