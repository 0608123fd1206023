// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_SCHED_INTERNAL_UNWIND_H_
#define WEFT_SCHED_INTERNAL_UNWIND_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sched::internal {

// StackImage is a copy of the inner part of a stack, with the addresses that it had there.
struct StackImage {
  uintptr_t low = 0;                   // where the first byte was
  std::vector<unsigned char> bytes;

  // The word that was at `address`. False: it is not in the copy.
  bool Read(uintptr_t address, uintptr_t* word) const {
    if (address % sizeof *word != 0 || address < low || address - low > bytes.size() ||
        bytes.size() - (address - low) < sizeof *word) {
      return false;
    }
    std::memcpy(word, bytes.data() + (address - low), sizeof *word);
    return true;
  }
};

// What is known of a thread's registers.
struct Registers {
  uintptr_t pc = 0;
  uintptr_t sp = 0;
  uintptr_t fp = 0;  // the frame pointer, if it is known
  bool has_fp = false;
};

// The program counters of the frames on a copied stack, innermost first, at most `most`. Takes what memory it is given for
// the thread's own: whatever it holds, nothing outside of it is read but the program's code and unwind tables.
// Never blocks.
//
// A blocked thread's frame pointer is not known, and C libraries keep none. So frames are found by the unwind tables, in which
// those without a frame pointer count from the stack pointer; where a table wants a frame pointer that nobody has saved on the
// way, the stack is searched for the innermost frame that can be meant: one that returns to behind a call of the very function,
// if there is one. Otherwise what is left of a call that has returned may be taken for it, or a frame be left out.
std::vector<void*> Unwind(const StackImage& stack, Registers registers, size_t most);

}  // namespace sched::internal

#endif  // WEFT_SCHED_INTERNAL_UNWIND_H_
