// SPDX-License-Identifier: Apache-2.0
//
// Whoever keeps a worker busy leaves the others their turn, counted in rounds of the busy ones: no clock is judged.
#include <atomic>
#include <cstdint>
#include <memory>
#include <ostream>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/internal/context.h"
#include "fiber/select.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "gtest/gtest.h"
#include "sched/run.h"
#include "sched/runtime.h"
#include "tests/scale.h"

namespace {

// Who keeps the worker busy.
enum class Hog {
  kYielder,
  kYielders,
  kThousandYielders,
  kPingPong,
  kTwoPingPongs,
  kSpawnsAndJoins,
  kSpawnsAndYields,
  kInjected,    // a thread from outside unparks each of a hundred as soon as it has parked
  kNeverParks,  // calls that could park go through at once, as on a socket that is always ready
  kSendsAndReceives,  // likewise, on a channel that never is full or empty
  kSelects,
  kIsLate,  // calls that could park fail at once, since their deadline has passed
};
// Whom it must not keep out.
enum class Guest {
  kSpawnedBefore,      // in the run queue, and older than what the hogs start
  kSpawnedOutside,
  kSpawnedBehindUnparked,  // outside as well, where another was unparked just before
  kUnparkedInside,     // behind another in the next-slot
  kUnparkedOutside,
  kSleeping,
  kYielding,
};

std::ostream& operator<<(std::ostream& out, Hog hog) {
  constexpr const char* kNames[] = {"Yielder",        "Yielders",        "ThousandYielders", "PingPong", "TwoPingPongs",
                                    "SpawnsAndJoins", "SpawnsAndYields", "Injected",         "NeverParks",
                                    "SendsAndReceives", "Selects", "IsLate"};
  return out << kNames[static_cast<int>(hog)];
}
std::ostream& operator<<(std::ostream& out, Guest guest) {
  constexpr const char* kNames[] = {"SpawnedBefore",  "SpawnedOutside",  "SpawnedBehindUnparked",
                                    "UnparkedInside", "UnparkedOutside", "Sleeping",
                                    "Yielding"};
  return out << kNames[static_cast<int>(guest)];
}

uint64_t FibersOf(Hog hog) {
  switch (hog) {
    case Hog::kYielder:
    case Hog::kSpawnsAndJoins:
    case Hog::kSpawnsAndYields:
    case Hog::kNeverParks:
    case Hog::kSendsAndReceives:
    case Hog::kSelects:
    case Hog::kIsLate:
      return 1;
    case Hog::kPingPong:
      return 2;
    case Hog::kTwoPingPongs:
      return 4;
    case Hog::kYielders:
    case Hog::kInjected:
      return 100;
    case Hog::kThousandYielders:
      return 1'000;
  }
  return 0;
}

// What a pair of fibers throws to and fro.
struct Balls {
  fiber::Semaphore of[2] = {fiber::Semaphore(0), fiber::Semaphore(0)};
};

// Fibers that are busy until they are stopped, or until they have been for so long that whoever waits for a turn has
// been forgotten.
class Hogs {
 public:
  explicit Hogs(uint64_t most_rounds) : most_rounds_(most_rounds) {}

  void Start(Hog hog) {
    switch (hog) {
      case Hog::kYielder:
      case Hog::kYielders:
      case Hog::kThousandYielders:
        return StartYielders(FibersOf(hog));
      case Hog::kPingPong:
        return StartPair();
      case Hog::kTwoPingPongs:
        StartPair();
        return StartPair();
      case Hog::kSpawnsAndJoins:
        return Start([this] {
          while (Round()) fiber::Spawn([] {}).Join();
        });
      case Hog::kInjected:
        return StartInjected(FibersOf(hog));
      case Hog::kNeverParks:
        return Start([this] {
          while (Round()) {
            for (int32_t i = 0; i < fiber::internal::kOperationsATurn; ++i) fiber::internal::SpendTurn();
          }
        });
      case Hog::kSendsAndReceives:
        return Start([this] {
          fiber::Channel<int> channel(1);
          while (Round()) {
            for (int32_t i = 0; i < fiber::internal::kChannelOperationsATurn; i += 2) {
              EXPECT_TRUE(channel.Send(i).ok());
              EXPECT_TRUE(channel.Receive().ok());
            }
          }
        });
      case Hog::kSelects:
        return Start([this] {
          fiber::Channel<int> channel(1);
          while (Round()) {
            for (int i = 0; i < fiber::internal::kChannelOperationsATurn; ++i) {
              auto send = fiber::OnSend(channel, i, [] {});
              auto receive = fiber::OnReceive(channel, [](int) {});
              EXPECT_TRUE(fiber::Select(send, receive).ok());
            }
          }
        });
      case Hog::kIsLate:
        return Start([this] {
          fiber::Event event;
          while (Round()) {
            for (int32_t i = 0; i < fiber::internal::kOperationsATurn; ++i) {
              EXPECT_TRUE(absl::IsDeadlineExceeded(event.Wait(absl::ZeroDuration())));
            }
          }
        });
      case Hog::kSpawnsAndYields:
        return Start([this] {
          while (Round()) {
            fiber::Go([] {});
            fiber::Yield();
          }
        });
    }
  }
  void StopAndJoin() {
    is_stopped_.store(true);
    for (auto& fiber : fibers_) fiber.Join();
    are_joined_.store(true);
    if (injector_.joinable()) injector_.join();
  }

  // Whether each has had a round: those that have not started are in nobody's way.
  bool HaveAllStarted() const { return started_.load() == fibers_.size(); }

  // Rounds are counted from here on, or from when a deadline has passed.
  void Count() {
    since_ = rounds_.load();
    is_counting_ = true;
  }
  void CountFrom(absl::Duration deadline) { count_from_ns_.store(absl::ToInt64Nanoseconds(deadline)); }
  uint64_t counted() const { return rounds_.load() - since_.load(); }

 private:
  bool Round() {
    const uint64_t rounds = rounds_.fetch_add(1) + 1;
    if (int64_t from = count_from_ns_.load(); from > absl::ToInt64Nanoseconds(fiber::Now())) {
      since_ = rounds;
    }
    if (is_counting_.load() && rounds - since_.load() > most_rounds_) is_stopped_.store(true);
    return !is_stopped_.load();
  }

  template <class F>
  void Start(F fn) {
    fibers_.push_back(fiber::Spawn([this, fn] {
      started_.fetch_add(1);
      fn();
    }));
  }

  void StartYielders(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      Start([this] {
        while (Round()) fiber::Yield();
      });
    }
  }

  // Each has a permit only when it has parked for it, or is about to: there is no running ahead.
  void StartInjected(uint64_t count) {
    struct Parked {
      fiber::Semaphore permit{0};
      std::atomic<bool> wants_one{false};
    };
    auto all = std::make_shared<std::vector<Parked>>(count);
    for (Parked& each : *all) {
      Start([this, &each] {
        while (Round()) {
          each.wants_one.store(true);
          if (!each.permit.Acquire().ok()) return;
        }
      });
    }
    injector_ = std::thread([this, all] {
      while (!are_joined_.load()) {
        for (Parked& each : *all) {
          if (each.wants_one.exchange(false)) each.permit.Release();
        }
        std::this_thread::yield();
      }
    });
  }

  void StartPair() {
    auto balls = std::make_shared<Balls>();
    for (int side : {0, 1}) {
      Start([this, balls, side] {
        bool goes_on = true;
        while (goes_on) {
          goes_on = Round();
          balls->of[1 - side].Release();
          if (!balls->of[side].Acquire().ok()) return;
        }
        balls->of[1 - side].Release();
      });
    }
  }

  const uint64_t most_rounds_;
  std::vector<fiber::JoinHandle<void>> fibers_;
  std::thread injector_;
  std::atomic<bool> is_stopped_{false};
  std::atomic<bool> are_joined_{false};
  std::atomic<bool> is_counting_{false};
  std::atomic<size_t> started_{0};
  std::atomic<uint64_t> rounds_{0};
  std::atomic<uint64_t> since_{0};
  std::atomic<int64_t> count_from_ns_{0};
};

using FairnessTest = testing::TestWithParam<std::tuple<int, Hog, Guest>>;

// Runs fn() on a thread from outside, while the worker does nothing: so no round passes unnoticed.
template <class F>
void FromOutside(F fn) {
  std::thread(fn).join();
}

TEST_P(FairnessTest, AGuestHasItsTurnWithinSomeRoundsOfTheHogs) {
  const auto [workers, hog, guest] = GetParam();
  if (tests::kHasFewFibers && hog == Hog::kThousandYielders) GTEST_SKIP() << "a hundred are enough";
  // A round of each hog, and the larger of: two looks at the shared queues, one for each of them; eight chains of a pair, of
  // 32 runs and 64 rounds each. With more workers the kernel may stop one in between: then only that nobody is forgotten.
  const uint64_t most = workers == 1 ? FibersOf(hog) + 512 : 50'000'000;
  const bool has_long_rounds = hog == Hog::kSendsAndReceives || hog == Hog::kSelects;
  const bool is_short = workers > 1 || hog == Hog::kThousandYielders || tests::kIsSlow;
  const int repeats = has_long_rounds && tests::kIsSlow ? 2 : is_short ? 5 : 20;
  // No spare threads: while a fiber waits for a thread, below, nobody else is to run.
  sched::Runtime runtime({.workers = workers, .max_threads = workers});
  for (int repeat = 0; repeat < repeats; ++repeat) {
    uint64_t waited = 0;
    runtime
        .Spawn([&, hog = hog, guest = guest] {
          Hogs hogs(2 * most);
          // Alone: only ticks pass, so that what goes by even ticks goes by odd ones another time.
          for (int i = 0; i < repeat; ++i) fiber::Yield();
          fiber::Event other, other_parks, unparked, parked, ended;
          const auto arrive = [&] {
            waited = hogs.counted();
            ended.Set();
          };
          const auto wait_and_arrive = [&] {
            parked.Set();
            EXPECT_TRUE(unparked.Wait().ok());
            arrive();
          };
          if (guest == Guest::kSpawnedBefore) {
            fiber::Go(arrive);
            hogs.Count();
            hogs.Start(hog);
            EXPECT_TRUE(ended.Wait().ok());
            hogs.StopAndJoin();
            return;
          }
          if (guest == Guest::kUnparkedInside || guest == Guest::kUnparkedOutside) {
            fiber::Go(wait_and_arrive);
            EXPECT_TRUE(parked.Wait().ok());
          }
          auto displaces = fiber::Spawn([&] {
            other_parks.Set();
            (void)other.Wait();
          });
          EXPECT_TRUE(other_parks.Wait().ok());
          hogs.Start(hog);
          while (!hogs.HaveAllStarted()) fiber::Yield();
          for (int i = 0; i < 10; ++i) fiber::Yield();  // they are under way
          hogs.Count();
          switch (guest) {
            case Guest::kSpawnedBefore:
              break;
            case Guest::kSpawnedOutside:
              FromOutside([&] { runtime.Go(arrive); });
              break;
            case Guest::kSpawnedBehindUnparked:
              FromOutside([&] {
                other.Set();
                runtime.Go(arrive);
              });
              break;
            case Guest::kUnparkedInside:
              unparked.Set();
              other.Set();
              break;
            case Guest::kUnparkedOutside:
              FromOutside([&] { unparked.Set(); });
              break;
            case Guest::kSleeping: {
              // 1/64 late is allowed.
              const absl::Duration slept = absl::Microseconds(200);
              hogs.CountFrom(fiber::Now() + slept + slept / 64);
              EXPECT_TRUE(fiber::Sleep(slept).ok());
              arrive();
              break;
            }
            case Guest::kYielding:
              fiber::Yield();
              arrive();
              break;
          }
          EXPECT_TRUE(ended.Wait().ok());
          hogs.StopAndJoin();
          other.Set();
          displaces.Join();
        })
        .Join();
    EXPECT_LT(waited, most) << "repeat " << repeat;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Mixes, FairnessTest,
    testing::Combine(testing::Values(1, 2),
                     testing::Values(Hog::kYielder, Hog::kYielders, Hog::kThousandYielders, Hog::kPingPong,
                                     Hog::kTwoPingPongs, Hog::kSpawnsAndJoins, Hog::kSpawnsAndYields,
                                     Hog::kInjected, Hog::kNeverParks, Hog::kSendsAndReceives,
                                     Hog::kSelects, Hog::kIsLate),
                     testing::Values(Guest::kSpawnedBefore, Guest::kSpawnedOutside,
                                     Guest::kSpawnedBehindUnparked, Guest::kUnparkedInside,
                                     Guest::kUnparkedOutside, Guest::kSleeping, Guest::kYielding)),
    [](const auto& info) {
      std::ostringstream name;
      name << std::get<0>(info.param) << "Workers" << std::get<1>(info.param) << "Leave"
           << std::get<2>(info.param);
      return name.str();
    });

// Each hog does not only leave others a turn, it leaves them all the same.
TEST(FairnessTest, ThousandsOfYieldersOnOneWorkerGetOnAlike) {
  for (int fibers : {10, 300, 3000}) {  // the last are more than a ring holds
    if (tests::kHasFewFibers && fibers > 300) continue;
    std::vector<uint64_t> rounds(static_cast<size_t>(fibers));
    const uint64_t all = 20 * rounds.size();
    uint64_t total = 0;  // one worker: one fiber at a time
    int unstarted = fibers;
    uint64_t most_before = 500 * rounds.size();  // rounds until all have started
    sched::Run({.workers = 1, .max_threads = 1}, [&] {
      fiber::WaitGroup group;
      group.Add(fibers);
      for (uint64_t& mine : rounds) {
        fiber::Go([&] {
          --unstarted;
          while (total < all && most_before > 0) {
            if (unstarted == 0) {
              ++mine;
              ++total;
            } else {
              --most_before;
            }
            fiber::Yield();
          }
          group.Done();
        });
      }
      EXPECT_TRUE(group.Wait().ok());
    });
    for (uint64_t mine : rounds) {
      EXPECT_GE(mine, 5u) << fibers;
      EXPECT_LE(mine, 80u) << fibers;
    }
  }
}

// Go's TestPingPongHog: a pair that hands over by the next-slot leaves others their share, though they only yield.
// Rounds of milliseconds: 61 of them would be much to wait for one that was spawned from outside, and as much for the next.
TEST(FairnessTest, LongRoundsDoNotKeepOutWhoeverIsSpawnedFromOutside) {
  sched::Runtime runtime({.workers = 1});
  std::atomic<bool> is_over{false};
  std::atomic<int> rounds{0};
  std::vector<fiber::JoinHandle<void>> hogs;
  for (int i = 0; i < 2; ++i) {
    hogs.push_back(runtime.Spawn([&] {
      for (; !is_over; fiber::Yield()) {
        for (const fiber::Deadline end = absl::Milliseconds(2); !end.is_past();) {
        }
        rounds.fetch_add(1);
      }
    }));
  }
  constexpr int kGuests = 10;
  const int before = rounds;
  for (int i = 0; i < kGuests; ++i) runtime.Spawn([] {}).Join();
  EXPECT_LT(rounds - before, kGuests * 40);
  is_over = true;
  for (auto& hog : hogs) hog.Join();
}

TEST(FairnessTest, AHeavyPairAndALightPairShare) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    bool is_stopped = false;  // one worker: one fiber at a time
    const auto start_pair = [&is_stopped](uint64_t* exchanges) {
      auto balls = std::make_shared<Balls>();
      std::vector<fiber::JoinHandle<void>> pair;
      for (int side : {0, 1}) {
        pair.push_back(fiber::Spawn([&is_stopped, exchanges, balls, side] {
          while (!is_stopped) {
            ++*exchanges;
            balls->of[1 - side].Release();
            if (!balls->of[side].Acquire().ok()) return;
          }
          balls->of[1 - side].Release();
        }));
      }
      return pair;
    };
    uint64_t heavy = 0;
    uint64_t light = 0;
    auto heavy_pair = start_pair(&heavy);
    auto lights = std::vector<fiber::JoinHandle<void>>();
    for (int i = 0; i < 2; ++i) {
      lights.push_back(fiber::Spawn([&] {
        while (!is_stopped) {
          ++light;
          fiber::Yield();
        }
      }));
    }
    while (heavy + light < tests::Scaled(200'000u)) fiber::Yield();
    is_stopped = true;
    for (auto& each : heavy_pair) each.Join();
    for (auto& each : lights) each.Join();
    EXPECT_LT(heavy, 150 * light);
    EXPECT_LT(light, 20 * heavy);
  });
}

// One that starts a fiber and yields, for ever, does not fill the memory with fibers that have not started.
TEST(FairnessTest, ASpawnerThatYieldsIsNotAheadOfItsChildren) {
  for (int workers : {1, 2}) {
    const int kSpawns = tests::Scaled(100'000);
    std::atomic<int> live{0};
    int most = 0;
    sched::Run({.workers = workers}, [&] {
      for (int i = 0; i < kSpawns; ++i) {
        const int now = live.fetch_add(1) + 1;
        if (now > most) most = now;
        fiber::Go([&] { live.fetch_sub(1); });
        fiber::Yield();
      }
    });
    if (workers == 1) {
      EXPECT_LE(most, 100);
    }
    EXPECT_EQ(live.load(), 0);
  }
}

// Also where the thread's own stack has its turn between the two, as it does every so many rounds: who yields is queued by then,
// and what has not started comes behind what is.
TEST(FairnessTest, WhatWasStartedRunsBeforeAYieldReturns) {
  sched::Run({.workers = 1, .max_threads = 1}, [] {
    int behind = 0;
    for (int i = 0; i < 1'000; ++i) {
      bool has_run = false;
      auto child = fiber::Spawn([&] { has_run = true; });
      fiber::Yield();
      if (!has_run) ++behind;
      child.Join();
    }
    EXPECT_EQ(behind, 0);
  });
}

}  // namespace
