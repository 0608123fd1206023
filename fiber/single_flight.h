// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_SINGLE_FLIGHT_H_
#define WEFT_FIBER_SINGLE_FLIGHT_H_

#include <concepts>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <source_location>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait.h"
#include "fiber/mutex.h"
#include "fiber/this_fiber.h"

namespace fiber {

// SingleFlight does at once what many ask for at the same time: those who ask for a key that somebody is fetching already
// get the same result.
//
//   fiber::SingleFlight<std::string, Page> flights;
//   absl::StatusOr<Page> Get(const std::string& url) {
//     return flights.Do(url, [url] { return Fetch(url); }, absl::Seconds(2));      // owns what it captures
//   }
//
// The function runs in a fiber of its own, which belongs to all who wait for it: the deadline and the cancellation of one
// of them, the first too, end no more than his wait. When the last one has gone, the fiber is cancelled, and nobody who
// comes later gets its result. So it may run on when the call that began it has returned, and must not refer to anything
// of the caller's. It inherits the first caller's bound values, but not his deadline.
//
// It is no cache: when the function has returned, its result goes to who waits, and nothing is kept.
//
// The function must not ask for its own key: that ends the process.
//
// Thread safety: any fiber, any thread; on a plain thread the function runs on the one running runtime, as for Spawn().
// Memory ordering: what the function did is visible to who gets its result.
// Lifetime: may be destroyed when no Do() is under way, even while a function that nobody waits for runs on.
template <class K, class V, class Hash = std::hash<K>, class Equal = std::equal_to<K>>
class SingleFlight {
 public:
  // Throws std::bad_alloc. Never blocks.
  SingleFlight() = default;
  SingleFlight(const SingleFlight&) = delete;
  SingleFlight& operator=(const SingleFlight&) = delete;

  // What `fn`, or the one that somebody else gave for `key`, returns, a V or an absl::StatusOr<V>: each caller gets a copy.
  // What escapes it is rethrown to each. kDeadlineExceeded, kCancelled: this caller's wait ended before. Throws
  // std::bad_alloc. Parks the fiber; blocks the thread when called from a plain one.
  template <std::invocable F>
  absl::StatusOr<V> Do(const K& key, F fn, Deadline deadline = {},
                       std::source_location site = std::source_location::current()) {
    if (absl::Status status = internal::CheckCaller(deadline); !status.ok()) return status;
    const std::shared_ptr<Flight> flight = Board(key, std::move(fn), site);
    absl::Status status;
    try {
      status = flight->done.Wait(deadline);
    } catch (...) {  // no memory for a status
      Leave(key, *flight);
      throw;
    }
    if (!status.ok()) {
      Leave(key, *flight);
      return status;
    }
    if (flight->error != nullptr) std::rethrow_exception(flight->error);
    return *flight->result;
  }

 private:
  // One run of a function. Kept by those who wait for it, by its fiber, and while others may join it by the table.
  struct Flight {
    Event done;
    std::optional<absl::StatusOr<V>> result;  // written before `done` is set
    std::exception_ptr error;                 // likewise
    // Guarded by the table's mutex.
    int passengers = 0;
    JoinHandle<void> fiber;  // until the function has returned, or nobody waits any more
  };
  struct Table {
    Mutex mu;
    std::unordered_map<K, std::shared_ptr<Flight>, Hash, Equal> flights ABSL_GUARDED_BY(mu);

    // Nobody can join the flight any more.
    void RemoveLocked(const K& key, const Flight& flight) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
      const auto entry = flights.find(key);
      if (entry != flights.end() && entry->second.get() == &flight) flights.erase(entry);
    }
  };

  template <class F>
  std::shared_ptr<Flight> Board(const K& key, F fn, std::source_location site) {
    MutexLock hold(table_->mu);
    std::shared_ptr<Flight>& entry = table_->flights[key];
    if (entry != nullptr) {
      if (entry->fiber.is_valid() && entry->fiber.id() == CurrentId()) [[unlikely]] {
        internal::Fatal("fiber::SingleFlight %p: Do() for a key by the function that runs for it, which would wait for itself",
                        static_cast<const void*>(this));
      }
      ++entry->passengers;
      return entry;
    }
    try {
      auto flight = std::make_shared<Flight>();
      flight->passengers = 1;
      CancelShield shield;  // its fiber inherits no deadline
      auto fly = [table = table_, flight, key, fn = std::move(fn)]() mutable {
        Fly(*table, *flight, key, std::move(fn));
      };
      flight->fiber = Spawn(std::move(fly), site);
      entry = flight;
      return flight;
    } catch (...) {
      table_->flights.erase(key);
      throw;
    }
  }

  template <class F>
  static void Fly(Table& table, Flight& flight, const K& key, F fn) {
    try {
      F mine = std::move(fn);  // gone before anybody hears of the end
      flight.result.emplace(std::move(mine)());
    } catch (...) {
      flight.error = std::current_exception();
    }
    {
      MutexLock hold(table.mu);
      table.RemoveLocked(key, flight);
      if (flight.fiber.is_valid()) flight.fiber.Detach();
    }
    flight.done.Set();
  }

  // A passenger who does not wait for the end.
  void Leave(const K& key, Flight& flight) {
    MutexLock hold(table_->mu);
    if (--flight.passengers > 0 || !flight.fiber.is_valid()) return;
    table_->RemoveLocked(key, flight);
    flight.fiber.Cancel(absl::CancelledError("nobody waits for it any more"));
    flight.fiber.Detach();
  }

  const std::shared_ptr<Table> table_ = std::make_shared<Table>();
};

}  // namespace fiber

#endif  // WEFT_FIBER_SINGLE_FLIGHT_H_
