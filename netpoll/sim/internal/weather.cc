// SPDX-License-Identifier: Apache-2.0
#include "netpoll/sim/internal/weather.h"

#include <algorithm>

#include "absl/time/time.h"
#include "fiber/internal/thread_state.h"

namespace netpoll::sim::internal {

using fiber::internal::SpinLockHolder;

namespace {

void CheckFaults(const Faults& faults) {
  for (double probability :
       {faults.short_read, faults.reset, faults.vanish, faults.refuse, faults.unreachable}) {
    if (!(probability >= 0 && probability <= 1)) {
      fiber::internal::Fatal("netpoll::sim::Faults: %g is no probability", probability);
    }
  }
  if (faults.min_delay < absl::ZeroDuration() ||
      std::max(faults.min_delay, faults.max_delay) > absl::Hours(24 * 365 * 100)) {  // sums of them fit the clock
    fiber::internal::Fatal("netpoll::sim::Faults: a delay is neither negative nor more than a hundred years");
  }
}

}  // namespace

Weather::Weather(uint64_t seed, const Faults& faults) : faults_(faults), random_(seed) {
  CheckFaults(faults);
}

void Weather::Set(const Faults& faults) {
  CheckFaults(faults);
  SpinLockHolder hold(lock_);
  faults_ = faults;
}

bool Weather::Strikes(double Faults::*fault) {
  SpinLockHolder hold(lock_);
  return faults_.*fault > 0 && random_.Chance(faults_.*fault);
}

int64_t Weather::DelayNs() {
  SpinLockHolder hold(lock_);
  const int64_t least = absl::ToInt64Nanoseconds(faults_.min_delay);
  const int64_t most = absl::ToInt64Nanoseconds(faults_.max_delay);
  if (most <= least) return least;
  return least + static_cast<int64_t>(random_.Below(static_cast<uint64_t>(most - least) + 1));
}

size_t Weather::ShortenRead(size_t bytes) {
  SpinLockHolder hold(lock_);
  if (bytes == 1 || faults_.short_read == 0 || !random_.Chance(faults_.short_read)) return bytes;
  return 1 + static_cast<size_t>(random_.Below(bytes - 1));
}

}  // namespace netpoll::sim::internal
