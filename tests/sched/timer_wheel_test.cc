// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/timer_wheel.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/scale.h"

namespace {
int allocations_until_failure = -1;  // negative: none fails
}  // namespace

// Not inlined: g++ otherwise takes them for mismatched.
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (allocations_until_failure >= 0 && allocations_until_failure-- == 0) throw std::bad_alloc();
  void* block = std::malloc(bytes);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
[[gnu::noinline]] void operator delete(void* block) noexcept { std::free(block); }
[[gnu::noinline]] void operator delete(void* block, size_t) noexcept { std::free(block); }

namespace sched::internal {
namespace {

using Entry = TimerWheel::Entry;

constexpr int64_t kMicrosecond = 1000;
constexpr int64_t kMillisecond = 1000 * kMicrosecond;
constexpr int64_t kSecond = 1000 * kMillisecond;
constexpr int64_t kHour = 3600 * kSecond;
constexpr int64_t kDay = 24 * kHour;
constexpr int64_t kYear = 365 * kDay;
constexpr size_t kAll = SIZE_MAX;

void* Key(uint64_t id) { return reinterpret_cast<void*>(static_cast<uintptr_t>(id)); }
uint64_t Id(const Entry& entry) { return reinterpret_cast<uintptr_t>(entry.key); }

// The promise of the header: an entry is late by less than this.
int64_t Slack(int64_t duration) {
  return std::min<int64_t>(int64_t{1} << 20, std::max<int64_t>(1024, duration / 64));
}

std::vector<Entry> ExpireAll(TimerWheel& wheel, int64_t now) {
  std::vector<Entry> due;
  EXPECT_FALSE(wheel.Expire(now, kAll, &due));
  return due;
}

// What a thread does that sleeps until NextDue() each time. Returns when the only entry came.
int64_t SleepUntilDue(TimerWheel& wheel) {
  for (int i = 0; i < 100; ++i) {
    const int64_t now = wheel.NextDue();
    if (now == TimerWheel::kNever) return TimerWheel::kNever;
    if (!ExpireAll(wheel, now).empty()) return now;
  }
  ADD_FAILURE() << "NextDue() makes no progress";
  return TimerWheel::kNever;
}

TEST(TimerWheelTest, IsNeverDueWhenEmpty) {
  TimerWheel wheel(123);
  EXPECT_EQ(wheel.NextDue(), TimerWheel::kNever);
  EXPECT_EQ(wheel.size(), 0u);
  EXPECT_TRUE(ExpireAll(wheel, TimerWheel::kNever).empty());
  EXPECT_EQ(wheel.NextDue(), TimerWheel::kNever);
}

TEST(TimerWheelTest, IsSmallWhenEmpty) {
  TimerWheel wheel(0);
  EXPECT_LE(wheel.bytes(), 1024u);
}

TEST(TimerWheelTest, HandsOutKeyAndDeadlineOnce) {
  TimerWheel wheel(0);
  wheel.Insert(Key(7), 5 * kMillisecond, 0);
  EXPECT_EQ(wheel.size(), 1u);
  EXPECT_TRUE(ExpireAll(wheel, 5 * kMillisecond - 1).empty());
  const std::vector<Entry> due = ExpireAll(wheel, 6 * kMillisecond);
  ASSERT_EQ(due.size(), 1u);
  EXPECT_EQ(due[0].key, Key(7));
  EXPECT_EQ(due[0].deadline_ns, 5 * kMillisecond);
  EXPECT_EQ(wheel.size(), 0u);
  EXPECT_EQ(wheel.NextDue(), TimerWheel::kNever);
  EXPECT_TRUE(ExpireAll(wheel, kHour).empty());
}

TEST(TimerWheelTest, AppendsToWhatIsThere) {
  TimerWheel wheel(0);
  wheel.Insert(Key(2), 10, 0);
  std::vector<Entry> due = {{.key = Key(1), .deadline_ns = 1}};
  EXPECT_FALSE(wheel.Expire(kSecond, kAll, &due));
  ASSERT_EQ(due.size(), 2u);
  EXPECT_EQ(Id(due[0]), 1u);
  EXPECT_EQ(Id(due[1]), 2u);
}

// Every power of two and its neighbours, up to 2^62 ns, at awkward phases of the clock.
TEST(TimerWheelTest, IsNeverEarlyAndLateByLessThanASlotAtEveryScale) {
  for (const int64_t start : {int64_t{0}, int64_t{1}, int64_t{1023}, int64_t{999'999'937},
                              (int64_t{1} << 40) - 1, 3 * kYear + 12345, -kSecond - 77}) {
    for (int bit = 0; bit < 62; ++bit) {
      for (const int64_t delta : {-1, 0, 1, 511}) {
        const int64_t duration = (int64_t{1} << bit) + delta;
        TimerWheel wheel(start);
        wheel.Insert(Key(1), start + duration, start);
        const int64_t came = SleepUntilDue(wheel);
        EXPECT_GE(came, start + duration) << "start " << start << " duration " << duration;
        EXPECT_LT(came - (start + duration), Slack(duration))
            << "start " << start << " duration " << duration;
      }
    }
  }
}

TEST(TimerWheelTest, SlotsAreAsWideAsThePrecisionAllows) {
  struct Case {
    int64_t duration;
    int64_t width;
  };
  for (const Case& c : {Case{100 * kMicrosecond, 1 << 10}, Case{524'287, 1 << 10},
                        Case{524'288, 1 << 13}, Case{4 * kMillisecond, 1 << 13},
                        Case{5 * kMillisecond, 1 << 16}, Case{33 * kMillisecond, 1 << 16},
                        Case{34 * kMillisecond, 1 << 19}, Case{268 * kMillisecond, 1 << 19},
                        Case{269 * kMillisecond, 1 << 20}, Case{kHour, 1 << 20}}) {
    const int64_t deadline = kYear + c.duration;
    TimerWheel wheel(kYear);
    wheel.Insert(Key(1), deadline, kYear);
    const int64_t came = SleepUntilDue(wheel);
    EXPECT_EQ(came, (deadline + c.width - 1) / c.width * c.width) << c.duration;
  }
}

// A sleeper is not disturbed for nothing: near entries come with the first wake-up, far ones after
// at most one more for each level above them.
TEST(TimerWheelTest, NextDueIsExactForNearAndCoarseForFarEntries) {
  struct Case {
    int64_t duration;
    int wakes;
  };
  for (const Case& c : {Case{10 * kMicrosecond, 1}, Case{200 * kMillisecond, 1}, Case{kSecond, 1},
                        Case{20 * kSecond, 2}, Case{kHour, 3}, Case{30 * kDay, 4}}) {
    TimerWheel wheel(0);
    wheel.Insert(Key(1), c.duration, 0);
    int wakes = 0;
    std::vector<Entry> due;
    while (due.empty()) {
      const int64_t next = wheel.NextDue();
      ASSERT_LT(next, c.duration + Slack(c.duration));
      wheel.Expire(next, kAll, &due);
      ASSERT_LE(++wakes, c.wakes) << c.duration;
    }
  }
}

TEST(TimerWheelTest, NextDueIsExactAlsoAfterATimeWithoutExpire) {
  TimerWheel wheel(0);
  const int64_t deadline = kHour + 600 * kMillisecond;
  wheel.Insert(Key(1), deadline, kHour);
  EXPECT_GE(wheel.NextDue(), deadline);
  EXPECT_LT(wheel.NextDue(), deadline + Slack(600 * kMillisecond));
}

TEST(TimerWheelTest, EarlierInsertMovesNextDueForward) {
  TimerWheel wheel(0);
  wheel.Insert(Key(1), kHour, 0);
  const int64_t far = wheel.NextDue();
  EXPECT_LE(far, kHour + kMillisecond * 2);
  wheel.Insert(Key(2), kMillisecond, 0);
  EXPECT_GE(wheel.NextDue(), kMillisecond);
  EXPECT_LT(wheel.NextDue(), kMillisecond + Slack(kMillisecond));
  EXPECT_EQ(ExpireAll(wheel, wheel.NextDue()).size(), 1u);
  EXPECT_EQ(wheel.NextDue(), far);
}

TEST(TimerWheelTest, PastDeadlinesComeWithTheNextExpire) {
  TimerWheel wheel(kSecond);
  wheel.Insert(Key(1), kSecond, kSecond);
  wheel.Insert(Key(2), 5, kSecond);
  wheel.Insert(Key(3), -kHour, kSecond);
  wheel.Insert(Key(4), INT64_MIN, kSecond);
  EXPECT_LE(wheel.NextDue(), kSecond);
  EXPECT_EQ(ExpireAll(wheel, kSecond).size(), 4u);
}

// Whoever looks after overdue timers must see for how long they have been, however busy the wheel
// is.
TEST(TimerWheelTest, NextDueStaysWhileExpireIsOverdue) {
  TimerWheel wheel(0);
  for (int i = 0; i < 10; ++i) wheel.Insert(Key(1), 40 * kMicrosecond, 0);
  const int64_t due_at = wheel.NextDue();
  for (int64_t now = 0; now < kSecond; now += 10 * kMicrosecond) {
    wheel.Insert(Key(2), now + 50 * kMicrosecond, now);
    wheel.Insert(Key(4), now + 900 * kMillisecond, now);
  }
  EXPECT_EQ(wheel.NextDue(), due_at);
  wheel.Insert(Key(3), kSecond - 1, kSecond);
  EXPECT_EQ(wheel.NextDue(), due_at);
}

TEST(TimerWheelTest, AnEarlierNowCountsAsTheLatestSeen) {
  TimerWheel wheel(0);
  wheel.Insert(Key(1), 2 * kSecond, kSecond);
  EXPECT_TRUE(ExpireAll(wheel, 0).empty());
  // One thread read the clock before, but took the lock after another.
  EXPECT_EQ(ExpireAll(wheel, 3 * kSecond).size(), 1u);
  wheel.Insert(Key(2), 2 * kSecond + 1, 2 * kSecond);
  EXPECT_EQ(ExpireAll(wheel, 2 * kSecond).size(), 1u);
  wheel.Insert(Key(3), 3 * kSecond + 100 * kMicrosecond, 2 * kSecond);
  const int64_t came = SleepUntilDue(wheel);
  EXPECT_GE(came, 3 * kSecond + 100 * kMicrosecond);
  EXPECT_LT(came, 3 * kSecond + 100 * kMicrosecond + 1024);
}

TEST(TimerWheelTest, TheEndOfTimeIsHeldAndNeverComes) {
  TimerWheel wheel(kSecond);
  wheel.Insert(Key(1), TimerWheel::kNever, kSecond);
  wheel.Insert(Key(2), TimerWheel::kNever - 1, kSecond);
  wheel.Insert(Key(3), 280 * kYear, kSecond);
  EXPECT_TRUE(ExpireAll(wheel, 279 * kYear).empty());
  const std::vector<Entry> due = ExpireAll(wheel, TimerWheel::kNever);
  ASSERT_EQ(due.size(), 1u);
  EXPECT_EQ(Id(due[0]), 3u);
  EXPECT_EQ(wheel.size(), 2u);
  EXPECT_EQ(wheel.NextDue(), TimerWheel::kNever);
  wheel.Sweep([](const Entry&) { return false; });
  EXPECT_EQ(wheel.size(), 0u);
}

TEST(TimerWheelTest, WholeRangeOfTheClockDoesNotOverflow) {
  TimerWheel wheel(INT64_MIN);
  wheel.Insert(Key(1), INT64_MIN + 100, INT64_MIN);
  wheel.Insert(Key(2), 0, INT64_MIN);
  wheel.Insert(Key(3), 250 * kYear, INT64_MIN);
  EXPECT_EQ(ExpireAll(wheel, INT64_MIN + kSecond).size(), 1u);
  EXPECT_EQ(ExpireAll(wheel, kSecond).size(), 1u);
  EXPECT_EQ(ExpireAll(wheel, 251 * kYear).size(), 1u);
}

// A suspended machine: everything between is due at once, the rest keeps its precision.
TEST(TimerWheelTest, JumpOfTheClockHandsOutAllThatPassed) {
  TimerWheel wheel(0);
  uint64_t id = 0;
  for (int64_t duration = kMicrosecond; duration < 100 * kDay; duration = duration * 3 / 2 + 7) {
    wheel.Insert(Key(++id), duration, 0);
  }
  const uint64_t inserted = id;
  int64_t previous = 0;
  uint64_t seen = 0;
  for (const int64_t now : {kHour, 40 * kDay, 101 * kDay}) {
    for (const Entry& entry : ExpireAll(wheel, now)) {
      EXPECT_GT(entry.deadline_ns, previous - 2 * kMillisecond);
      EXPECT_LE(entry.deadline_ns, now);
      ++seen;
    }
    previous = now;
  }
  EXPECT_EQ(seen, inserted);
}

TEST(TimerWheelTest, JumpHandsOutInTheOrderOfDeadlines) {
  TimerWheel wheel(0);
  std::vector<int64_t> deadlines;
  for (int i = 0; i < 200; ++i) deadlines.push_back((i * 7919 % 200 + 1) * kSecond / 3);
  for (int i = 0; i < 200; ++i) wheel.Insert(Key(i + 1), deadlines[i], 0);
  const std::vector<Entry> due = ExpireAll(wheel, kHour);
  ASSERT_EQ(due.size(), 200u);
  EXPECT_TRUE(std::is_sorted(due.begin(), due.end(), [](const Entry& a, const Entry& b) {
    return a.deadline_ns < b.deadline_ns;
  }));
}

// Inserting goes on although nobody expires: the slots of the last round are still full when they
// are needed again.
TEST(TimerWheelTest, InsertingWithoutExpiringForManyRoundsLosesNothing) {
  TimerWheel wheel(0);
  uint64_t id = 0;
  for (const int64_t duration : {100 * kMicrosecond, 3 * kMillisecond, 20 * kMillisecond,
                                 200 * kMillisecond, 900 * kMillisecond, 100 * kSecond}) {
    for (int i = 0; i < 5000; ++i) {
      const int64_t now = static_cast<int64_t>(i) * (duration / 7 + 3);
      wheel.Insert(Key(++id), now + duration, now);
    }
  }
  std::vector<Entry> due = ExpireAll(wheel, kYear);
  EXPECT_EQ(due.size(), id);
}

TEST(TimerWheelTest, ExpireIsCheapWhenNothingIsDue) {
  TimerWheel wheel(0);
  wheel.Insert(Key(1), kHour, 0);
  wheel.Insert(Key(2), 200 * kMillisecond, 0);
  std::vector<Entry> due;
  for (int i = 0; i < 10'000'000; ++i) wheel.Expire(kMillisecond + i, 64, &due);
  EXPECT_TRUE(due.empty());
  EXPECT_EQ(wheel.size(), 2u);
}

TEST(TimerWheelTest, BatchesAreBoundedAndSayThatMoreIsDue) {
  TimerWheel wheel(0);
  for (int i = 0; i < 1000; ++i) wheel.Insert(Key(i + 1), kMillisecond + i, 0);
  std::vector<Entry> due;
  EXPECT_TRUE(wheel.Expire(kSecond, 0, &due));
  EXPECT_TRUE(due.empty());
  for (int i = 0; i < 9; ++i) {
    EXPECT_TRUE(wheel.Expire(kSecond, 100, &due));
    EXPECT_EQ(due.size(), 100u);
    EXPECT_LE(wheel.NextDue(), kSecond);
    due.clear();
  }
  EXPECT_FALSE(wheel.Expire(kSecond, 100, &due));
  EXPECT_EQ(due.size(), 100u);
  EXPECT_FALSE(wheel.Expire(kSecond, 0, &due));
}

// Spreading a far slot is bounded as well, also when nothing comes out of it for a while, and
// timers keep coming in between.
TEST(TimerWheelTest, CascadesAreBoundedByTheBatch) {
  constexpr int kCount = 5000;
  TimerWheel wheel(0);
  for (int i = 0; i < kCount; ++i) wheel.Insert(Key(i + 1), kHour + i * kMicrosecond, 0);
  const int64_t now = wheel.NextDue();  // the far slot has to be spread, nothing is due
  std::vector<Entry> due;
  int calls = 1;
  while (wheel.Expire(now, 10, &due)) {
    wheel.Insert(Key(kCount + calls), now + kHour, now);
    ASSERT_LE(++calls, kCount);
  }
  EXPECT_GE(calls, kCount / 10 - 1);
  EXPECT_TRUE(due.empty());
  EXPECT_EQ(wheel.size(), static_cast<size_t>(kCount + calls - 1));
  EXPECT_EQ(ExpireAll(wheel, 3 * kHour).size(), static_cast<size_t>(kCount + calls - 1));
}

TEST(TimerWheelTest, FarEntriesAreSpreadInTheSlackOfEarlierCalls) {
  constexpr int kCount = 10'000;
  TimerWheel wheel(0);
  for (int i = 0; i < kCount; ++i)
    wheel.Insert(Key(i + 1), 10 * kSecond + i * 10 * kMicrosecond, 0);
  std::vector<Entry> due;
  for (int64_t now = 9 * kSecond; now < 10 * kSecond; now += kMillisecond) {
    EXPECT_FALSE(wheel.Expire(now, 64, &due)) << now;
  }
  EXPECT_TRUE(due.empty());
  // All is in fine slots: one step for each of them is enough.
  wheel.Expire(10 * kSecond + 50 * kMillisecond, 4900, &due);
  EXPECT_EQ(due.size(), 4900u);
}

TEST(TimerWheelTest, SweepKeepsWhatIsAskedFor) {
  TimerWheel wheel(0);
  constexpr int kCount = 20'000;
  for (int i = 0; i < kCount; ++i)
    wheel.Insert(Key(i), (i % 100) * (i % 100) * 10 * kMillisecond, 0);
  const size_t before = wheel.bytes();
  wheel.Sweep([](const Entry& entry) { return Id(entry) % 16 == 3; });
  EXPECT_EQ(wheel.size(), static_cast<size_t>(kCount / 16));
  EXPECT_LT(wheel.bytes(), before * 2 / 3);
  const std::vector<Entry> due = ExpireAll(wheel, kHour);
  EXPECT_EQ(due.size(), static_cast<size_t>(kCount / 16));
  for (const Entry& entry : due) EXPECT_EQ(Id(entry) % 16, 3u);
}

TEST(TimerWheelTest, SweepCorrectsNextDueAndReachesWhatIsAlreadyDue) {
  TimerWheel wheel(0);
  wheel.Insert(Key(1), kMillisecond, 0);
  wheel.Insert(Key(2), 100 * kMillisecond, 0);
  wheel.Insert(Key(3), -5, 0);
  wheel.Sweep([](const Entry& entry) { return Id(entry) == 2; });
  EXPECT_EQ(wheel.size(), 1u);
  EXPECT_GE(wheel.NextDue(), 100 * kMillisecond);
  wheel.Sweep([](const Entry&) { return false; });
  EXPECT_EQ(wheel.NextDue(), TimerWheel::kNever);
}

TEST(TimerWheelTest, HoldsAMillionEntriesInLittleMoreThanTheirSize) {
  constexpr size_t kCount = tests::Scaled(1'000'000);
  for (const int64_t range : {kMillisecond, 100 * kMillisecond, kSecond, 30 * kSecond, 30 * kDay}) {
    TimerWheel wheel(0);
    for (size_t i = 0; i < kCount; ++i) {
      wheel.Insert(Key(i), 1 + static_cast<int64_t>(i * 7919 % kCount) * (range / 1000) / 1000, 0);
    }
    EXPECT_EQ(wheel.size(), kCount);
    EXPECT_LE(wheel.bytes(), 24u * kCount) << range;
    std::vector<Entry> due;
    due.reserve(kCount);
    while (wheel.Expire(range + kSecond, 256, &due)) {
    }
    EXPECT_EQ(due.size(), kCount);
    EXPECT_EQ(wheel.size(), 0u);
    EXPECT_LE(wheel.bytes(), 160u * 1024) << "a burst gives its memory back";
  }
}

// Whichever allocation fails, what was inserted comes out once and what was refused does not.
TEST(TimerWheelTest, FailedAllocationsLoseNothing) {
  constexpr uint64_t kCount = 2000;
  int failures = 0;
  for (int every = 0; every < 12; ++every) {
    TimerWheel wheel(0);
    std::vector<int> expected(kCount, 0);
    for (uint64_t i = 0; i < kCount; ++i) {
      const auto deadline = static_cast<int64_t>(i * 7919 % kCount) * kSecond;
      allocations_until_failure = every;
      try {
        wheel.Insert(Key(i), deadline, 0);
        expected[i] = 1;
      } catch (const std::bad_alloc&) {
        ++failures;
      }
      allocations_until_failure = -1;
    }
    std::vector<int> came(kCount, 0);
    for (int64_t now = 0; wheel.size() > 0;) {
      std::vector<Entry> due;
      allocations_until_failure = every;
      try {
        wheel.Expire(now, 100, &due);
        now = std::max(now, wheel.NextDue());
      } catch (const std::bad_alloc&) {
        ++failures;
        allocations_until_failure = -1;
        wheel.Expire(now, 1, &due);  // memory is there for a moment
      }
      allocations_until_failure = -1;
      for (const Entry& entry : due) ++came[Id(entry)];
    }
    EXPECT_EQ(came, expected) << "every " << every;
  }
  EXPECT_GT(failures, 100);
}

// A multimap is the wheel without its cleverness. Checked after every step: nothing early, nothing
// lost, nothing twice, nothing held back beyond its slack, and NextDue() never later than that.
class Model {
 public:
  explicit Model(uint64_t seed) : random_(seed), now_(Below(kYear)), wheel_(now_) {}

  void Step() {
    switch (Below(16)) {
      case 0:
        SleepUntilNextDue();
        break;
      case 1:
        Sweep();
        break;
      case 2:
        now_ += LogUniform(30 * kDay);
        break;
      case 3:
      case 4:
      case 5:
        now_ += LogUniform(10 * kMillisecond);
        break;
      case 6:
      case 7:
        Expire(1 + Below(20));
        break;
      case 8:
        Expire(kAll);
        break;
      default:
        Insert();
        break;
    }
    ASSERT_EQ(wheel_.size(), by_deadline_.size());
    ASSERT_EQ(wheel_.NextDue() == TimerWheel::kNever, by_deadline_.empty());
    ASSERT_LE(wheel_.NextDue(), LatestDue());
  }

  void Drain() {
    while (!by_deadline_.empty()) {
      const int64_t next = wheel_.NextDue();
      now_ = std::max(now_, next);
      const size_t before = by_deadline_.size();
      Expire(kAll);
      ASSERT_GT(wheel_.NextDue(), now_);
      stuck_ = by_deadline_.size() == before ? stuck_ + 1 : 0;
      ASSERT_LT(stuck_, 10) << "NextDue() makes no progress";
    }
  }

 private:
  struct Timer {
    uint64_t id;
    int64_t latest;
  };

  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(bound));
  }
  int64_t LogUniform(int64_t max) { return Below(1 + (max >> Below(45))); }

  int64_t LatestDue() const {
    int64_t latest = TimerWheel::kNever;
    int looked_at = 0;
    for (const auto& [deadline, timer] : by_deadline_) {
      latest = std::min(latest, timer.latest);
      if (++looked_at == 20) break;
    }
    return latest;
  }

  void Insert() {
    const int64_t duration = LogUniform(30 * kDay) - (Below(10) == 0 ? kMillisecond : 0);
    const int64_t count = Below(20) == 0 ? 200 : 1;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t deadline = now_ + duration + i * (duration / 1000);
      wheel_.Insert(Key(++last_id_), deadline, now_);
      by_deadline_.emplace(
          deadline,
          Timer{last_id_, std::max(now_, deadline) + Slack(std::max<int64_t>(deadline - now_, 0))});
    }
  }

  void Expire(size_t max) {
    std::vector<Entry> due;
    const bool more = wheel_.Expire(now_, max, &due);
    ASSERT_LE(due.size(), max);
    for (const Entry& entry : due) {
      ASSERT_LE(entry.deadline_ns, now_) << "early";
      ASSERT_TRUE(Remove(entry)) << "never inserted, or handed out twice";
    }
    if (more) return;
    for (const auto& [deadline, timer] : by_deadline_) {
      if (deadline > now_) break;
      ASSERT_GT(timer.latest, now_) << "held back";
    }
  }

  bool Remove(const Entry& entry) {
    auto [first, last] = by_deadline_.equal_range(entry.deadline_ns);
    for (auto it = first; it != last; ++it) {
      if (it->second.id != Id(entry)) continue;
      by_deadline_.erase(it);
      return true;
    }
    return false;
  }

  void SleepUntilNextDue() {
    if (wheel_.NextDue() == TimerWheel::kNever) return;
    now_ = std::max(now_, wheel_.NextDue());
    Expire(1 + Below(1000));
  }

  void Sweep() {
    if (Below(10) != 0) return;
    const uint64_t modulus = 2 + static_cast<uint64_t>(Below(5));
    wheel_.Sweep([&](const Entry& entry) { return Id(entry) % modulus != 0; });
    std::erase_if(by_deadline_, [&](const auto& item) { return item.second.id % modulus == 0; });
  }

  std::mt19937_64 random_;
  int64_t now_;
  TimerWheel wheel_;
  std::multimap<int64_t, Timer> by_deadline_;
  uint64_t last_id_ = 0;
  int stuck_ = 0;
};

TEST(TimerWheelTest, BehavesLikeAMultimapOnManySeeds) {
  for (uint64_t seed = 1; seed <= tests::Scaled(300u); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model(seed);
    for (int i = 0; i < 1000; ++i) {
      model.Step();
      ASSERT_FALSE(testing::Test::HasFailure());
    }
    model.Drain();
    ASSERT_FALSE(testing::Test::HasFailure());
  }
}

}  // namespace
}  // namespace sched::internal
