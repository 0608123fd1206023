// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_LEAKS_MAPPINGS_H_
#define WEFT_TESTS_LEAKS_MAPPINGS_H_

#include <cstddef>
#include <string>
#include <vector>

namespace tests {

// Mapping is memory that this program has mapped.
struct Mapping {
  const char* begin;
  size_t bytes;
  void* caller;
  // The function that did it.
  std::string Site() const;
};

// What was mapped by mmap() and not unmapped as a whole, by the program itself: the C library maps memory for its heap
// and its threads in another way. Empty under sanitizers.
std::vector<Mapping> Mappings();

}  // namespace tests

#endif  // WEFT_TESTS_LEAKS_MAPPINGS_H_
