// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_SANITIZER_H_
#define WEFT_FIBER_INTERNAL_SANITIZER_H_

// Which sanitizer this build has, and its fiber interface.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEFT_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define WEFT_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WEFT_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define WEFT_TSAN 1
#endif

#ifdef WEFT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef WEFT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// For functions that are entered on one stack and left on another, or never left: ThreadSanitizer keeps a stack of calls
// for each fiber, which would otherwise grow with every fiber that runs there, until it overflows.
#if !defined(WEFT_TSAN)
#define WEFT_NO_TSAN
#elif defined(__clang__)
#define WEFT_NO_TSAN __attribute__((disable_sanitizer_instrumentation))
#else
#define WEFT_NO_TSAN __attribute__((no_sanitize("thread")))
#endif

#endif  // WEFT_FIBER_INTERNAL_SANITIZER_H_
