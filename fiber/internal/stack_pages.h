// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_PAGES_H_
#define WEFT_FIBER_INTERNAL_STACK_PAGES_H_

#include <sys/uio.h>

#include <cstddef>

#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// As madvise(2) for as many ranges as the kernel takes in one call, from the first on. Returns
// their number: 0 before Linux 6.15 and where system calls are filtered.
size_t AdvisePages(const iovec* ranges, size_t count, int advice);

// Gives the pages of each range back to the kernel; guards within it stay. False in
// is_discarded[i]: the kernel refuses to (locked memory, most likely), and the range is as it was.
void DiscardPages(const iovec* ranges, size_t count, bool* is_discarded);

// Gives back the pages of a stack below `below` (a page under it stays) if more than
// `threshold_pages` of them are resident; the guard stays. Returns how many bytes were given back.
// The caller holds the stack's parked fiber.
size_t TrimStackBelow(WaitBlock& block, const char* below, size_t threshold_pages);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_PAGES_H_
