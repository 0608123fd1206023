// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_SIM_INTERNAL_WEATHER_H_
#define WEFT_NETPOLL_SIM_INTERNAL_WEATHER_H_

#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/sim/internal/random.h"
#include "netpoll/sim/network.h"

namespace netpoll::sim::internal {

// Weather is what a network has in store for its connections: faults, drawn by a seed. Of what
// cannot happen nothing is drawn, so that one fault more leaves the others where they were as far
// as can be.
//
// Thread safety: any. Held across no switch.
class Weather {
 public:
  Weather(uint64_t seed, const Faults& faults);

  void Set(const Faults& faults);

  // Whether the fault happens now.
  bool Strikes(double Faults::*fault);
  // How long what is sent now is on its way.
  int64_t DelayNs();
  // How many of `bytes` a Read gets. REQUIRES: bytes > 0
  size_t ShortenRead(size_t bytes);

 private:
  fiber::internal::SpinLock lock_;
  Faults faults_ ABSL_GUARDED_BY(lock_);
  fiber::sim::internal::Random random_ ABSL_GUARDED_BY(lock_);
};

}  // namespace netpoll::sim::internal

#endif  // WEFT_NETPOLL_SIM_INTERNAL_WEATHER_H_
