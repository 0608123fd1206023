// SPDX-License-Identifier: Apache-2.0
#include "fiber/internal/terminate.h"

#include <cstdlib>
#include <exception>

#include "fiber/internal/fork.h"
#include "fiber/internal/record.h"
#include "fiber/internal/thread_state.h"

namespace fiber::internal {
namespace {

std::terminate_handler previous_handler = nullptr;

void OnTerminate() {
  if (const Record* current = ThisThread().current; current != nullptr) {
    LogLine("fatal: std::terminate() in %s", Describe(*current).c_str());
  }
  if (previous_handler != nullptr) previous_handler();
  abort();
}

}  // namespace

void InstallTerminateHandler() {
  static constinit Atomic<bool> is_installed{false};
  OnceInAProcess(is_installed, [] {
    previous_handler = std::get_terminate();
    std::set_terminate(OnTerminate);
  });
}

}  // namespace fiber::internal
