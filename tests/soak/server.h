// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_SOAK_SERVER_H_
#define WEFT_TESTS_SOAK_SERVER_H_

#include <atomic>
#include <cstdint>

#include "fiber/mutex.h"
#include "fiber/wait_group.h"
#include "netpoll/address.h"
#include "netpoll/tcp.h"
#include "tests/soak/random.h"

namespace soak {

// Hello is what a client says first.
struct Hello {
  enum Wish : uint32_t {
    kEcho,          // send back what comes, until its end
    kEchoAfterEnd,  // read to the end, then send everything back
    kEchoAndReset,  // send back `bytes`, then reset the connection
  };
  uint32_t wish = kEcho;
  uint32_t bytes = 0;
};

// Server serves connections of one runtime. It closes its listener time and again, with or without
// fibers that accept from it, and opens another elsewhere.
//
// Thread safety: any fiber, any thread; Serve() by one fiber.
class Server {
 public:
  // Where it listens. Once it has stopped listening there, its generation is another.
  struct Place {
    netpoll::Address address;
    uint64_t generation;
  };

  // Serves until the round ends and there are no more clients.
  void Serve(uint64_t seed);
  // After that no client comes any more.
  void BeLast() { is_last_.store(true, std::memory_order_relaxed); }

  // An empty address: nowhere at the moment.
  Place place();
  bool is_at(const Place& place) const {
    return generation_.load(std::memory_order_acquire) == place.generation;  // order: generation
  }

 private:
  void Listen(Random& random);
  void Accept(netpoll::TcpListener& listener, uint64_t seed);
  void Handle(netpoll::TcpStream& stream);
  void EchoAndReset(netpoll::TcpStream& stream, size_t bytes);

  std::atomic<bool> is_last_{false};
  fiber::WaitGroup handlers_;
  fiber::Mutex mutex_;
  netpoll::Address address_;  // guarded by mutex_
  // order: generation. Publish: counted before a listener is closed, so whoever is refused or reset
  // by its end finds it counted.
  std::atomic<uint64_t> generation_{0};
};

}  // namespace soak

#endif  // WEFT_TESTS_SOAK_SERVER_H_
