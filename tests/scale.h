// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SCALE_H_
#define WEFT_TESTS_SCALE_H_

#include "fiber/internal/sanitizer.h"

namespace tests {

// Sanitizers cost time and memory, and ThreadSanitizer knows only some thousand fibers at once.
#if defined(WEFT_TSAN)
inline constexpr bool kIsSlow = true;
inline constexpr bool kHasFewFibers = true;
#elif defined(WEFT_ASAN)
inline constexpr bool kIsSlow = true;
inline constexpr bool kHasFewFibers = false;
#else
inline constexpr bool kIsSlow = false;
inline constexpr bool kHasFewFibers = false;
#endif

// How often to do something: `plain` times, or a tenth of it where it takes ten times as long.
template <class T>
constexpr T Scaled(T plain) {
  return kIsSlow ? plain / 10 : plain;
}

}  // namespace tests

#endif  // WEFT_TESTS_SCALE_H_
