// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_BLOCKING_H_
#define WEFT_FIBER_BLOCKING_H_

#include <concepts>
#include <type_traits>
#include <utility>

#include "fiber/internal/blocking_region.h"

namespace fiber {

// Calls `fn`, which may hold up its thread, without holding up other fibers: they are handed to another thread first, one
// that waits for such work or a new one. For libraries that block: database drivers, DNS, files on slow disks, std::mutex.
//
//   const Rows rows = fiber::Blocking([&] { return legacy_client.Query(text); });
//
// Runs on the fiber's own stack, may refer to its locals, and always waits for `fn`: it can be neither cancelled nor timed
// out, and returns what `fn` returns or throws what it throws. (BlockingDetached() can be left, in blocking_detached.h.)
//
// Inside, the thread counts as a plain one: primitives of fiber/ block it, cancellation and ambient deadlines are not seen,
// fiber::Go and Spawn start fibers of the same runtime, CurrentId() is zero, FiberLocals are fresh, and gone afterwards. The
// fiber stays on its thread, so errno and thread_local variables keep their values.
//
// Costs waking a thread where no other worker is idle. Threads beyond RuntimeOptions::max_threads cannot be had: then the
// other fibers wait for one of these calls to end, which is said in the log, unless the limit is the number of workers. So
// every 16th call yields first, as it is with other calls that go ahead at once.
//
// On a plain thread, and in a simulation, it is just the call. Parks the fiber; `fn` blocks the thread.
template <std::invocable F>
std::invoke_result_t<F> Blocking(F&& fn) {
  internal::BlockingRegion region;
  return std::forward<F>(fn)();
}

// NoMigrate keeps the running fiber on its thread while it lives: for what is bound to a thread (an OpenGL context, a
// library that keeps state in thread_local variables, errno across a park). Parking calls park the fiber as ever, so that
// cancellation, deadlines and select work; but its thread waits with it, and others take over its other fibers. So each one
// takes a thread as long as it lives, as runtime.LockOSThread does in Go: not for every connection.
//
//   fiber::NoMigrate stay;
//   MakeContextCurrent(context);
//   while (frames.Receive().ok()) Draw();
//
// Nests. Nothing on a plain thread, nor in a simulation, which has one thread only.
//
// Thread safety: made and destroyed by the same fiber. Never blocks.
class [[nodiscard]] NoMigrate {
 public:
  NoMigrate() = default;

 private:
  internal::BoundRegion region_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_BLOCKING_H_
