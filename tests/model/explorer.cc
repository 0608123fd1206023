// SPDX-License-Identifier: Apache-2.0
#include "tests/model/explorer.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/blocking_region.h"
#include "fiber/internal/futex.h"
#include "fiber/internal/thread_state.h"
#include "fiber/internal/wait_block.h"

namespace model {
namespace {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;
using fiber::internal::ModelAccess;
using fiber::internal::ThreadState;
using fiber::internal::WaitBlock;

constexpr int kMostThreads = 8;
constexpr size_t kStackBytes = 128 << 10;
constexpr int kMostSteps = 100'000;
constexpr size_t kNever = SIZE_MAX;
constexpr size_t kMostShown = 1000;  // of the steps of a schedule that failed

// What a thread is about to do.
struct Step {
  enum Kind { kNothing, kRead, kWrite, kAnything } kind = kNothing;
  const void* address = nullptr;
};

bool AreIndependent(const Step& a, const Step& b) {
  if (a.kind == Step::kNothing || b.kind == Step::kNothing) return true;
  if (a.kind == Step::kAnything || b.kind == Step::kAnything) return false;
  return a.address != b.address || (a.kind == Step::kRead && b.kind == Step::kRead);
}

struct Thread {
  std::function<void()> body;
  char* stack = nullptr;
  fcontext_t context = nullptr;
  Step next;
  bool is_done = false;
  std::function<bool()> can_go_on;  // empty: it can
  size_t gave_way_at = kNever;      // after so many turns
  std::optional<ThreadState> state;
  int error = 0;  // its errno
  // The access before this: of what, and how often that had changed by then.
  const void* last_address = nullptr;
  uint64_t last_changes = 0;
  std::optional<WaitBlock> block;
};

// A choice: which thread goes on, or what chance decides.
struct Node {
  uint8_t options[kMostThreads];
  uint8_t count = 0;
  uint8_t index = 0;
  uint32_t sleeping = 0;  // threads whose turn here would repeat what was tried
};

class Explorer {
 public:
  Explorer(const Options& options, absl::FunctionRef<Case()> make)
      : options_(options), make_(make) {}

  Result Run() {
    do {
      RunOnce();
      ++result_.schedules;
      if (is_redundant_) ++result_.redundant;
      if (!result_.failure.empty()) return result_;
      if (result_.schedules == options_.most_schedules) return result_;
    } while (NextPath());
    result_.is_complete = true;
    return result_;
  }

  bool is_running() const { return current_ != nullptr; }
  Thread& current() { return *current_; }

  // The current thread is about to do `step`.
  void Point(Step step) {
    current_->next = step;
    if (++steps_ > kMostSteps) Fail("it does not end");
    Choose();
    current_->next = {};
    if (step.address != nullptr && destroyed_.contains(step.address)) Fail("use after destruction");
  }

  // The current thread cannot go on before `can_go_on`.
  void Block(Step step, std::function<bool()> can_go_on) {
    current_->can_go_on = std::move(can_go_on);
    Point(step);
    current_->can_go_on = nullptr;
  }

  [[noreturn]] void Fail(const std::string& why) {
    if (result_.failure.empty()) {
      result_.failure = absl::StrCat(why, " in schedule ", result_.schedules, ":");
      for (size_t i = 0; i < trace_.size(); ++i) {
        if (i == kMostShown / 2 && trace_.size() > kMostShown) {
          i = trace_.size() - kMostShown / 2;
          absl::StrAppend(&result_.failure, " …");
        }
        const auto& [thread, step] = trace_[i];
        absl::StrAppend(&result_.failure, " t", thread,
                        step.kind == Step::kRead    ? "r"
                        : step.kind == Step::kWrite ? "w"
                                                    : "");
      }
    }
    // Stacks and objects are left as they are: the exploration is over.
    left_ = &std::exchange(current_, nullptr)->context;
    jump_fcontext(main_, nullptr);
    abort();
  }

  void Access(ModelAccess access, const void* address) {
    Point({access == ModelAccess::kRead ? Step::kRead : Step::kWrite, address});
    current_->last_address = address;
    current_->last_changes = changes_[address];
  }
  void Changed(const void* address) { ++changes_[address]; }
  void Spin() {
    const void* const address = current_->last_address;
    Block({Step::kRead, address},
          [this, address, seen = current_->last_changes] { return changes_[address] != seen; });
  }
  // The current thread goes on when another has had a turn, or none of them can.
  void GiveWay() {
    Thread& self = *current_;
    self.gave_way_at = trace_.size();
    Block({Step::kAnything, nullptr}, [this, &self] {
      if (trace_.size() != self.gave_way_at) return true;
      return std::none_of(threads_, threads_ + thread_count_, [&](Thread& other) {
        if (&other == &self || other.is_done) return false;
        if (other.gave_way_at != kNever) return trace_.size() != other.gave_way_at;
        return !other.can_go_on || other.can_go_on();
      });
    });
    self.gave_way_at = kNever;
  }
  // Part of what the current thread does in its turn: threads that sleep go on doing so.
  uint32_t ChooseBelow(uint32_t n) {
    if (n > kMostThreads) abort();
    if (is_redundant_) return 0;
    if (depth_ == path_.size()) {
      Node node;
      while (node.count < n) {
        node.options[node.count] = node.count;
        ++node.count;
      }
      path_.push_back(node);
    }
    const Node& node = path_[depth_++];
    return node.options[node.index];
  }
  void Destroyed(const void* address) { destroyed_.insert(address); }
  void Created(const void* address) { destroyed_.erase(address); }
  int64_t clock_ns = 1;
  int64_t passed_ns = 0;

 private:
  static void Enter(transfer_t from);

  int IndexOf(const Thread& thread) const { return static_cast<int>(&thread - threads_); }

  // Predicates look at Atomics without making points of that.
  bool CanGoOn(Thread& thread) {
    if (thread.is_done) return false;
    if (!thread.can_go_on) return true;
    Thread* const current = std::exchange(current_, nullptr);
    const bool can = thread.can_go_on();
    current_ = current;
    return can;
  }

  void RunOnce() {
    Case the_case = make_();
    std::vector<std::function<void()>> bodies = std::move(the_case.threads);
    thread_count_ = static_cast<int>(bodies.size()) + 1;
    if (thread_count_ > kMostThreads) abort();
    // The last look, and the end of the case's objects, are a thread's too: what they find fails
    // the schedule.
    bodies.push_back([this, finish = std::move(the_case.finish)]() mutable {
      if (finish) finish();
      finish = nullptr;
      for (int i = 0; i + 1 < thread_count_; ++i) threads_[i].body = nullptr;
    });
    steps_ = 0;
    depth_ = 0;
    preemptions_ = 0;
    sleeping_ = 0;
    is_redundant_ = false;
    destroyed_.clear();
    changes_.clear();
    trace_.clear();
    clock_ns = 1;
    passed_ns = 0;
    for (int i = 0; i < thread_count_; ++i) {
      Thread& thread = threads_[i];
      if (thread.stack == nullptr) {
        void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) abort();
        thread.stack = static_cast<char*>(stack);
      }
      thread.body = std::move(bodies[i]);
      thread.context = make_fcontext(thread.stack + kStackBytes, kStackBytes, &Enter);
      thread.next = {};
      thread.is_done = false;
      thread.can_go_on = nullptr;
      thread.gave_way_at = kNever;
      thread.state.emplace().errno_address = &thread.error;
      thread.block.emplace();
    }
    threads_[thread_count_ - 1].can_go_on = [this] {
      for (int i = 0; i + 1 < thread_count_; ++i) {
        if (!threads_[i].is_done) return false;
      }
      return true;
    };
    destroyed_.clear();
    Choose();  // returns when all threads have ended, or the schedule has failed
  }

  // Gives the next turn to one of the threads; returns when it is the caller's again.
  void Choose() {
    Thread* const self = current_;
    uint32_t able = 0;
    bool are_all_done = true;
    for (int i = 0; i < thread_count_; ++i) {
      are_all_done &= threads_[i].is_done;
      if (CanGoOn(threads_[i])) able |= 1u << i;
    }
    if (are_all_done) return Switch(nullptr);
    if (able == 0) Fail(Stuck());
    const int own = self == nullptr ? -1 : IndexOf(*self);
    const int next = Next(able, own);
    trace_.emplace_back(next, threads_[next].next);
    if (next != own && own >= 0 && (able >> own & 1) != 0) ++preemptions_;
    Switch(&threads_[next]);
  }

  int Next(uint32_t able, int own) {
    const bool is_own_able = own >= 0 && (able >> own & 1) != 0;
    const bool is_bounded = options_.most_preemptions != kAllOrders;
    if (is_redundant_ || (is_bounded && is_own_able && preemptions_ == options_.most_preemptions)) {
      return is_own_able ? own : __builtin_ctz(able);
    }
    if (depth_ == path_.size()) {
      Node node;
      node.sleeping = sleeping_;
      const uint32_t awake = able & ~sleeping_;
      if (awake == 0) {
        is_redundant_ = true;
        return is_own_able ? own : __builtin_ctz(able);
      }
      if (is_own_able && (awake >> own & 1) != 0)
        node.options[node.count++] = static_cast<uint8_t>(own);
      for (int i = 0; i < thread_count_; ++i) {
        if (i != own && (awake >> i & 1) != 0) node.options[node.count++] = static_cast<uint8_t>(i);
      }
      path_.push_back(node);
    }
    const Node& node = path_[depth_++];
    const int next = node.options[node.index];
    if ((able >> next & 1) == 0) {
      std::fprintf(stderr, "model: a case does not do the same each time\n");
      abort();
    }
    if (!is_bounded) {
      uint32_t sleeping = node.sleeping;
      for (int i = 0; i < node.index; ++i) sleeping |= 1u << node.options[i];
      sleeping_ = 0;
      for (int i = 0; i < thread_count_; ++i) {
        if ((sleeping >> i & 1) != 0 && AreIndependent(threads_[i].next, threads_[next].next)) {
          sleeping_ |= 1u << i;
        }
      }
    }
    return next;
  }

  bool NextPath() {
    path_.resize(depth_);
    while (!path_.empty() && path_.back().index + 1 == path_.back().count) path_.pop_back();
    if (path_.empty()) return false;
    ++path_.back().index;
    return true;
  }

  void Switch(Thread* to) {
    Thread* const from = current_;
    if (to == from) return;
    current_ = to;
    left_ = from == nullptr ? &main_ : &from->context;
    const transfer_t transfer = jump_fcontext(to == nullptr ? main_ : to->context, nullptr);
    if (transfer.fctx != nullptr) *left_ = transfer.fctx;
  }

  std::string Stuck() {
    std::string text = "nobody can go on (done:";
    for (int i = 0; i < thread_count_; ++i) absl::StrAppend(&text, " ", threads_[i].is_done);
    return absl::StrCat(text, ")");
  }

  const Options options_;
  const absl::FunctionRef<Case()> make_;
  Result result_;
  Thread threads_[kMostThreads];
  int thread_count_ = 0;
  Thread* current_ = nullptr;  // null: the explorer itself
  fcontext_t main_ = nullptr;
  fcontext_t* left_ = nullptr;

  std::vector<Node>
      path_;  // of the schedule that runs: choices already made, and their alternatives
  size_t depth_ = 0;
  uint32_t sleeping_ = 0;
  bool is_redundant_ = false;
  int preemptions_ = 0;
  int steps_ = 0;
  std::vector<std::pair<int, Step>> trace_;
  std::unordered_map<const void*, uint64_t> changes_;
  std::unordered_set<const void*> destroyed_;
};

Explorer* explorer = nullptr;

void Explorer::Enter(transfer_t from) {
  *explorer->left_ = from.fctx;
  Thread& self = *explorer->current_;
  self.can_go_on = nullptr;
  self.body();
  self.is_done = true;
  explorer->Choose();
  abort();  // nobody comes back here
}

bool IsRunning() { return explorer != nullptr && explorer->is_running(); }

}  // namespace

Result Explore(const Options& options, absl::FunctionRef<Case()> make) {
  auto mine = std::make_unique<Explorer>(options, make);
  explorer = mine.get();
  Result result = mine->Run();
  explorer = nullptr;
  if (!result.failure.empty()) (void)mine.release();  // threads are still on their stacks
  return result;
}

void Check(bool ok, const char* what) {
  if (ok) return;
  if (IsRunning()) explorer->Fail(what);
  std::fprintf(stderr, "model: %s\n", what);
  abort();
}

void Touch(const void* address) {
  if (IsRunning()) explorer->Point({Step::kWrite, address});
}

void TouchAll() {
  if (IsRunning()) explorer->Point({Step::kAnything, nullptr});
}

void Await(const void* address, std::function<bool()> is_true) {
  explorer->Block({Step::kWrite, address}, std::move(is_true));
}

uint32_t ChooseBelow(uint32_t n) { return explorer->ChooseBelow(n); }

int64_t clock_ns() { return explorer->clock_ns; }
void set_clock_ns(int64_t ns) { explorer->clock_ns = ns; }
int64_t passed_ns() { return explorer->passed_ns; }

}  // namespace model

// Where the code that ships meets the operating system.
// ---------------------------------------------------------------

namespace fiber::internal {

using model::explorer;
using model::IsRunning;
using model::Step;

void BeforeModelAccess(const void* address, ModelAccess access) {
  if (IsRunning()) explorer->Access(access, address);
}

void AfterModelChange(const void* address) {
  if (IsRunning()) explorer->Changed(address);
}

void ModelSpin() {
  if (IsRunning()) explorer->Spin();
}

void ModelGiveWay() {
  if (IsRunning()) explorer->GiveWay();
}

void ModelDestroyed(const void* address) {
  if (IsRunning()) explorer->Destroyed(address);
}

void ModelCreated(const void* address) {
  if (IsRunning()) explorer->Created(address);
}

ThreadState& ThisThread() {
  static ThreadState* const outside = new ThreadState;
  return IsRunning() ? *explorer->current().state : *outside;
}

WaitBlock& PlainBlock(ThreadState&) { return *explorer->current().block; }

uint32_t RandomBelow(ThreadState&, uint32_t n) { return model::ChooseBelow(n); }
uint32_t ChooseBelow(uint32_t n) { return model::ChooseBelow(n); }

// Weak: one case has the real one.
[[gnu::weak]] void SpendTurn(int32_t) {}

int64_t MonotonicNs() { return model::clock_ns(); }
int64_t NowNs() { return model::clock_ns(); }
int64_t ThreadCpuNs() { return 0; }

// No fiber of a case is bound to its thread.
void ParkBound(Record&) { model::Check(false, "a bound fiber"); }

bool FutexWait(Atomic<uint32_t>& word, uint32_t expected, int64_t deadline_ns) {
  const auto is_changed = [&word, expected] {
    return word.load(std::memory_order_relaxed) != expected;
  };
  const bool may_time_out = deadline_ns != kNeverNs;
  bool has_changed = false;
  explorer->Block({Step::kRead, &word}, [&] {
    has_changed = is_changed();
    return has_changed || may_time_out;
  });
  if (!has_changed) explorer->passed_ns = std::max(explorer->passed_ns, deadline_ns);
  return has_changed;
}

void FutexWake(Atomic<uint32_t>&, int) {}  // a sleeper looks by itself

void Fatal(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  model::Check(false, text);
  abort();
}

void LogLine(const char*, ...) {}

}  // namespace fiber::internal
