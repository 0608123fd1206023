// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_DESCRIPTOR_SLAB_H_
#define WEFT_NETPOLL_INTERNAL_DESCRIPTOR_SLAB_H_

#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"

namespace netpoll::internal {

class Descriptor;

// DescriptorSlab is the process's descriptor records. Their memory is never given back and holds nothing else, so that a
// poller with a stale event finds a record, if not the one meant.
//
// Thread safety: any thread. A child of fork() may go on using it.
class DescriptorSlab {
 public:
  // A free record; null: no memory.
  static Descriptor* Take();
  static void Give(Descriptor& descriptor);

  // Every record there ever was, free ones too.
  static void ForEach(absl::FunctionRef<void(Descriptor&)> visit);
  static size_t CountInUse();
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_DESCRIPTOR_SLAB_H_
