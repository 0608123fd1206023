// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_FRAME_LINE_H_
#define WEFT_FIBER_INTERNAL_FRAME_LINE_H_

#include <string>

namespace fiber::internal {

// A program counter as a line of a stack: "  0x5581f3a2c1d4  Scale()", with the file and the place in it where there is no symbol.
// `is_return`: it is a return address, so the call is before it. Reads the program's symbols from disk.
std::string FrameLine(void* address, bool is_return);

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_FRAME_LINE_H_
