// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/stall_reporter.h"

#include <cstdlib>
#include <new>
#include <string_view>

#include "fiber/internal/system_calls.h"

namespace sched::internal {

namespace {

bool IsLogging() {
  const char* const wish = getenv("WEFT_STALL_LOG");
  return wish == nullptr || std::string_view(wish) != "0";
}

}  // namespace

StallReporter::StallReporter(Hook hook) : hook_(std::move(hook)), is_logging_(IsLogging()) {}

StallReporter::~StallReporter() {
  Join();
  Speak();  // what there was no thread for
}

void StallReporter::Tell(Stall stall, int64_t now_ns) {
  {
    std::lock_guard hold(mutex_);
    if (waiting_.size() >= kMostWaiting) return;
    const std::source_location site = stall.site;
    waiting_.push_back(std::move(stall));
    if (hook_ == nullptr) log_.NoteReported(site, now_ns);
    if (is_speaking_) return;
    is_speaking_ = true;
  }
  Join();  // the last one, which has nothing more to say
  has_thread_ = fiber::internal::System().pthread_create(&thread_, nullptr, &Entry, this) == 0;
  if (has_thread_) return;
  // It may wait for a fiber that only the monitor can free: it is told later.
  std::lock_guard hold(mutex_);
  is_speaking_ = false;
}

void StallReporter::Join() {
  if (!has_thread_) return;
  pthread_join(thread_, nullptr);  // cannot fail: it is joined once, and by another
  has_thread_ = false;
}

void* StallReporter::Entry(void* reporter) {
  pthread_setname_np(pthread_self(), "weft-report");  // only a name: may fail
  static_cast<StallReporter*>(reporter)->Speak();
  return nullptr;
}

void StallReporter::Speak() {
  for (;;) {
    Stall stall;
    {
      std::lock_guard hold(mutex_);
      if (waiting_.empty()) {
        is_speaking_ = false;
        return;
      }
      stall = std::move(waiting_.front());
      waiting_.pop_front();
    }
    if (hook_ != nullptr) {
      hook_(stall);
    } else {
      try {
        WriteStall(stall);
      } catch (const std::bad_alloc&) {
        // There is no memory for its text.
      }
    }
  }
}

}  // namespace sched::internal
