// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INTERNAL_TERMINATE_H_
#define WEFT_FIBER_INTERNAL_TERMINATE_H_

namespace fiber::internal {

// From now on std::terminate() in a fiber (an exception meets noexcept, or a destructor throws while another passes) says
// in which, before it does what it did before. Once a process; a handler that is set later replaces this one.
void InstallTerminateHandler();

}  // namespace fiber::internal

#endif  // WEFT_FIBER_INTERNAL_TERMINATE_H_
