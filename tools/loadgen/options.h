// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TOOLS_LOADGEN_OPTIONS_H_
#define WEFT_TOOLS_LOADGEN_OPTIONS_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "netpoll/address.h"

namespace loadgen {

extern const char kUsage[];

struct Options {
  netpoll::Address target;
  int connections = 0;
  int busy = 0;  // of the connections
  absl::Duration time = absl::Seconds(10);
  size_t size = 64;  // bytes of a message
  int pipeline = 1;  // messages under way on a busy connection
  int workers = 0;   // 0: the runtime's default
};

// kInvalidArgument names the argument that is wrong.
absl::StatusOr<Options> ParseOptions(int argc, const char* const* argv);

}  // namespace loadgen

#endif  // WEFT_TOOLS_LOADGEN_OPTIONS_H_
