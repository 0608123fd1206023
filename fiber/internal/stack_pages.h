// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_STACK_PAGES_H_
#define WEFT_FIBER_INTERNAL_STACK_PAGES_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "fiber/internal/wait_block.h"

namespace fiber::internal {

// As madvise(2) for as many ranges as the kernel takes in one call, from the first on. Returns
// their number: 0 before Linux 6.15 and where system calls are filtered.
size_t AdvisePages(const iovec* ranges, size_t count, int advice);

// Gives the pages of each range back to the kernel; guards within it stay. False in
// is_discarded[i]: the kernel refuses to (locked memory, most likely), and the range has what it had,
// but for pages before the one that is refused.
void DiscardPages(const iovec* ranges, size_t count, bool* is_discarded);

// Makes the uppermost page of each stack of a list resident, up to kMaxStackBatch of them, in one
// call. Each would fault otherwise when its fiber begins, and a fault costs more than its page (in a
// virtual machine: 21 us of which 13 were left). What the kernel refuses faults as ever. By who has
// the stacks.
void PopulateTops(WaitBlock* list);

// Which pages are in memory, asked of the kernel for many neighbours at once: 0.3 us a stack where
// stacks are visited one after the other, 1.8 us if each were asked about alone.
//
// Thread safety: one thread at a time.
class Residency {
 public:
  // How many of the pages from `low` on, `pages` of them. An answer may be as old as the last
  // Forget(). 0 if the kernel does not say.
  size_t Count(const char* low, size_t pages);
  void Forget() { asked_ = 0; }

 private:
  static constexpr size_t kWindowPages = 2048;

  bool Ask(uintptr_t start, size_t pages);

  uintptr_t start_ = 0;  // of what the kernel was asked about last
  size_t asked_ = 0;     // pages from there on
  unsigned char is_resident_[kWindowPages];
};

// Gives back the pages of a stack below `below` (a page under it stays) if more than
// `threshold_pages` of them are resident; the guard stays. Returns how many bytes were given back.
// The caller holds the stack's parked fiber, which has not run since residency.Forget().
size_t TrimStackBelow(WaitBlock& block, const char* below, size_t threshold_pages,
                      Residency& residency);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_STACK_PAGES_H_
