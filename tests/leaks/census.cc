// SPDX-License-Identifier: Apache-2.0
#include "tests/leaks/census.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "fiber/internal/park.h"
#include "fiber/internal/record.h"
#include "fiber/internal/stack_arena.h"
#include "fiber/internal/stack_pool.h"
#include "fiber/wait_reason.h"
#include "tests/leaks/mappings.h"

namespace tests {
namespace {

using fiber::internal::Record;

std::vector<CensusEntry>& Entries() {
  static auto* const entries = new std::vector<CensusEntry>;
  return *entries;
}

// Calls visit(name, number) for the numbers in a folder of /proc.
template <class F>
void ForEachNumber(const char* folder, F visit) {
  DIR* directory = opendir(folder);
  if (directory == nullptr) return;  // no descriptor left: then what is counted next tells
  const uint64_t own = static_cast<uint64_t>(dirfd(directory));
  const bool is_of_descriptors = std::string(folder) == "/proc/self/fd";
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] == '.') continue;
    const uint64_t number = strtoull(entry->d_name, nullptr, 10);
    if (!is_of_descriptors || number != own) visit(std::string(entry->d_name), number);
  }
  closedir(directory);
}

// What a fiber is doing, by one who may not touch its stack.
std::string DoingOf(Record& fiber) {
  if (fiber::internal::TryHold(fiber)) {
    const fiber::WaitReason reason = fiber.block.load(std::memory_order_acquire)->reason;  // order: owner
    fiber::internal::Release(fiber);
    return absl::StrCat("waits for ", std::string(fiber::WaitReasonName(reason)));
  }
  switch (fiber.state.load(std::memory_order_acquire)) {
    case fiber::internal::State::kNew:
      return "has not started";
    case fiber::internal::State::kDone:
      return "has ended, but its handle is still there";
    default:
      return "is running or runnable";
  }
}

// What absl::Symbolize has read stays open, a few at a time: the program and its libraries.
bool IsReadForSymbols(const std::string& target) {
  char program[4096];
  const ssize_t size = readlink("/proc/self/exe", program, sizeof program);
  if (size > 0 && target == std::string(program, static_cast<size_t>(size))) return true;
  return target.find(".so.") != std::string::npos || target.ends_with(".so");
}

bool IsKept(const void* begin, const void* end) {
  return fiber::internal::IsSlabOfRecords(begin) || fiber::internal::IsArena(begin) ||
         std::any_of(Entries().begin(), Entries().end(),
                     [&](const CensusEntry& entry) { return entry.keeps(begin, end); });
}

}  // namespace

bool AddToCensus(CensusEntry entry) {
  Entries().push_back(entry);
  return true;
}

Census Census::Take() {
  Census census;
  census.AddDescriptors();
  census.AddThreads();
  census.AddRecords();
  census.AddStacks();
  census.AddMappings();
  census.AddOthers();
  return census;
}

void Census::AddDescriptors() {
  ForEachNumber("/proc/self/fd", [this](const std::string& name, uint64_t fd) {
    struct stat status {};
    if (fstat(static_cast<int>(fd), &status) != 0) return;
    char target[256];
    const ssize_t size = readlink(absl::StrCat("/proc/self/fd/", name).c_str(), target, sizeof target);
    const std::string what(target, size < 0 ? 0 : static_cast<size_t>(size));
    if (IsReadForSymbols(what)) return;
    things_.push_back({Kind::kDescriptor, status.st_ino << 20 | fd, absl::StrCat("descriptor ", fd, ": ", what)});
  });
}

void Census::AddThreads() {
  ForEachNumber("/proc/self/task", [this](const std::string& name, uint64_t tid) {
    std::ifstream file(absl::StrCat("/proc/self/task/", name, "/stat"));
    std::string stat;
    std::getline(file, stat, '\0');  // does not throw where the thread ends meanwhile and the read fails
    const size_t open = stat.find('(');
    const size_t close = stat.rfind(')');
    if (open == std::string::npos || close == std::string::npos) return;  // it has gone
    // After the name come the state, five numbers, and the flags. Who joins a thread is woken later than it is marked
    // as exiting, and before it has left the folder.
    const char* field = stat.c_str() + close + 1;
    for (int i = 0; i < 6; ++i) field = strchr(field + 1, ' ');
    constexpr uint64_t kExiting = 4;        // PF_EXITING
    constexpr uint64_t kOfTheKernel = 16;  // PF_IO_WORKER: io_uring's, which go when they like
    if ((strtoull(field, nullptr, 10) & (kExiting | kOfTheKernel)) != 0) return;
    things_.push_back({Kind::kThread, tid,
                       absl::StrCat("thread ", tid, " '", stat.substr(open + 1, close - open - 1), "'")});
  });
}

void Census::AddRecords() {
  fiber::internal::ForEachRecord([this](Record& fiber) {
    const uint64_t id = fiber.id.load(std::memory_order_acquire);  // order: owner
    if (id == 0) return;
    things_.push_back({Kind::kRecord, id,
                       absl::StrCat("record of ", fiber::internal::DescribeUnheld(fiber), ", which ", DoingOf(fiber))});
  });
}

void Census::AddStacks() {
  const fiber::internal::StackPoolStats stats = fiber::internal::StackDepot::Get().Stats();
  for (int cls = 0; cls < fiber::internal::kStackClasses; ++cls) {
    for (size_t i = stats.free[cls]; i < stats.carved[cls]; ++i) {
      things_.push_back({Kind::kStack, static_cast<uint64_t>(cls) << 32 | (i - stats.free[cls]),
                         absl::StrCat("stack of ", fiber::internal::kStackClassBytes[cls] >> 10, " KiB")});
    }
  }
}

void Census::AddMappings() {
  for (const Mapping& mapping : Mappings()) {
    if (IsKept(mapping.begin, mapping.begin + mapping.bytes)) continue;
    things_.push_back({Kind::kMapping, reinterpret_cast<uint64_t>(mapping.begin),
                       absl::StrCat("mapping of ", mapping.bytes, " bytes, by ", mapping.Site())});
  }
}

void Census::AddOthers() {
  for (size_t entry = 0; entry < Entries().size(); ++entry) {
    const size_t count = Entries()[entry].count();
    for (size_t i = 0; i < count; ++i) {
      things_.push_back({Kind::kOther, static_cast<uint64_t>(entry) << 32 | i, Entries()[entry].what});
    }
  }
}

bool Census::Has(const Thing& thing) const {
  return std::any_of(things_.begin(), things_.end(), [&](const Thing& other) {
    return other.kind == thing.kind && other.id == thing.id;
  });
}

std::string Census::ChangesSince(const Census& before, size_t abandoned_fibers) const {
  constexpr size_t kMost = 20;
  std::string text;
  size_t count = 0;
  size_t records = 0;
  size_t stacks = 0;
  const auto add = [&](const char* how, const Thing& thing) {
    if (++count <= kMost) absl::StrAppend(&text, "\n  ", how, thing.text);
  };
  for (const Thing& thing : things_) {
    if (before.Has(thing)) continue;
    if (thing.kind == Kind::kRecord && ++records <= abandoned_fibers) continue;
    if (thing.kind == Kind::kStack && ++stacks <= abandoned_fibers) continue;
    add("left behind: ", thing);
  }
  for (const Thing& thing : before.things_) {
    if (thing.kind == Kind::kDescriptor && !Has(thing)) add("closed, though another's: ", thing);
  }
  if (count > kMost) absl::StrAppend(&text, "\n  … and ", count - kMost, " more");
  return text;
}

}  // namespace tests
