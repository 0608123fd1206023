// SPDX-License-Identifier: Apache-2.0
//
// Memory, address space and mappings that run out while a runtime is at work: fibers that find no stack wait, the log names
// the limit, those that have one go on, and when the limit is lifted or others have ended, all is as before.
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "netpoll/tcp.h"
#include "tests/limits/at_work.h"

namespace limits_test {
namespace {

using tests::kCannotTest;
using tests::kFine;

constexpr size_t kLargeStack = 1 << 20;

rlim_t NumberIn(const char* path, const char* key = "") {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::stoul(line.substr(strlen(key)));
  }
  return 0;
}

class SoftLimit {
 public:
  SoftLimit(__rlimit_resource which, rlim_t value) : which_(which) {
    EXPECT_EQ(getrlimit(which, &before_), 0);
    const rlimit lowered{value, before_.rlim_max};
    EXPECT_EQ(setrlimit(which, &lowered), 0);
  }
  ~SoftLimit() { EXPECT_EQ(setrlimit(which_, &before_), 0); }

 private:
  const __rlimit_resource which_;
  rlimit before_;
};

// All the mappings that the process may have, but for `spare`.
class AllMappings {
 public:
  explicit AllMappings(int spare) {
    for (;;) {  // each page is a mapping, since its neighbours are of another kind
      const int protection = pages_.size() % 2 == 0 ? PROT_READ : PROT_NONE;
      void* page = mmap(nullptr, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (page == MAP_FAILED) break;
      pages_.push_back(page);
    }
    EXPECT_EQ(errno, ENOMEM);
    for (; spare > 0; --spare) Unmap();
  }
  ~AllMappings() {
    while (!pages_.empty()) Unmap();
  }

 private:
  void Unmap() {
    EXPECT_EQ(munmap(pages_.back(), 4096), 0);
    pages_.pop_back();
  }
  std::vector<void*> pages_;
};

// At the limit: of stacks that would need what is used up. Afterwards all of them run.
template <class Limit>
void ReachAndLift(AtWork& at_work, Limit reach, int count = 200) {
  std::unique_ptr<Crowd> crowd;
  {
    const auto limit = reach();
    crowd = std::make_unique<Crowd>(at_work.runtime(), count, kLargeStack);
    AwaitFibersInLine();
    at_work.ExpectEcho();
    EXPECT_LT(crowd->arrived(), count);
    at_work.ExpectCrowd(500);  // they find stacks that are there
  }
  crowd->AwaitAll();
  crowd.reset();
  at_work.ExpectCrowd();
}

void ExpectOneLine(const std::string& said, const std::vector<std::string>& parts) {
  EXPECT_EQ(tests::CountIn(said, "weft:"), 1) << said;
  for (const std::string& part : parts) {
    EXPECT_NE(said.find(part), std::string::npos) << "no '" << part << "' in: " << said;
  }
}

// A server under ulimit -v would end at the first connection too many.
TEST(MemoryTest, AddressSpaceRunsOutAndComesBack) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        at_work.ExpectCrowd();
        ReachAndLift(at_work, [] {
          const rlim_t used = NumberIn("/proc/self/statm") * 4096;
          return SoftLimit(RLIMIT_AS, used + (4 << 20));
        });
        return kFine;
      },
      &said);
  ExpectOneLine(said, {"no stack for another fiber", "RLIMIT_AS", "raise it (ulimit -v)",
                       "until then fibers wait unstarted"});
}

// As in overcommit mode 2: the kernel counts what is mapped writable, and stacks are committed by chunk.
TEST(MemoryTest, MemoryThatIsCountedWhenMappedRunsOutAndComesBack) {
  std::string said;
  InChild(
      [] {
        StackDepot::Get().SetOptions({.commit_by_chunk = true});
        AtWork at_work;
        at_work.ExpectCrowd();
        ReachAndLift(at_work, [] {
          const rlim_t used = NumberIn("/proc/self/status", "VmData:") << 10;
          return SoftLimit(RLIMIT_DATA, used + (4 << 20));
        });
        return kFine;
      },
      &said);
  ExpectOneLine(said, {"no stack for another fiber", "RLIMIT_DATA", "raise it (ulimit -d)"});
}

// Programs with many mappings of their own, and those whose guards are mappings. Everybody else who is refused a mapping is
// told "Cannot allocate memory", and looks for a leak.
TEST(MemoryTest, MappingsRunOutAndComeBack) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        at_work.ExpectCrowd();
        ReachAndLift(at_work, [] { return AllMappings(0); });
        return kFine;
      },
      &said);
  ExpectOneLine(said, {"no stack for another fiber", "mappings that vm.max_map_count allows (",
                       "raise it (sysctl)"});
}

// Without a budget that leaves the program some, guards alone would get there.
TEST(MemoryTest, GuardsThatFindNoMappingLeftAreCanariesAndSaidToBe) {
  std::string said;
  InChild(
      [] {
        StackDepot::Get().SetOptions({.guard = GuardMode::kMprotect, .mprotect_budget = SIZE_MAX});
        AtWork at_work;
        at_work.ExpectCrowd(500);
        {
          const AllMappings all(30);
          at_work.ExpectCrowd(1500);
        }
        constexpr int kCanary = static_cast<int>(GuardMode::kCanary);
        constexpr int kMprotect = static_cast<int>(GuardMode::kMprotect);
        const auto before = StackDepot::Get().Stats();
        EXPECT_GT(before.guards[kCanary], 900u);
        at_work.ExpectCrowd(2500);
        EXPECT_GT(StackDepot::Get().Stats().guards[kMprotect], before.guards[kMprotect] + 900);
        return kFine;
      },
      &said);
  ExpectOneLine(said, {"have only a canary", "since mprotect says: Cannot allocate memory",
                       "raise vm.max_map_count"});
}

// Not the kernel's memory for sockets, which its error number would have one look for.
TEST(MemoryTest, ASocketThatFindsNoRecordSaysWhatIsMissingAndFindsOneLater) {
  std::string said;
  InChild(
      [] {
        AtWork at_work;
        at_work.runtime().Spawn([] {
          std::vector<int> fds;  // more than the records that are there
          for (int pair[2]; fds.size() < 4000; fds.insert(fds.end(), pair, pair + 2)) {
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
          }
          std::vector<netpoll::TcpStream> streams;
          streams.reserve(fds.size());
          absl::Status refusal;
          {
            const SoftLimit limit(RLIMIT_AS, NumberIn("/proc/self/statm") * 4096);
            while (refusal.ok() && streams.size() < fds.size()) {
              auto stream = netpoll::TcpStream::Adopt(fds[streams.size()]);
              if (stream.ok()) streams.push_back(*std::move(stream));
              refusal = stream.status();
            }
          }
          EXPECT_TRUE(absl::IsResourceExhausted(refusal)) << refusal;
          for (const char* part : {"ulimit -v", "vm.max_map_count", "raise it or use less"}) {
            EXPECT_NE(refusal.message().find(part), absl::string_view::npos) << refusal;
          }
          while (streams.size() < fds.size()) {
            auto stream = netpoll::TcpStream::Adopt(fds[streams.size()]);
            ASSERT_TRUE(stream.ok()) << stream.status();
            streams.push_back(*std::move(stream));
          }
        }).Join();
        return kFine;
      },
      &said);
  EXPECT_EQ(said, "");
}

// Puts what the kernel would say elsewhere in the place of some of its files, for this process alone.
class OtherKernel {
 public:
  OtherKernel() {
    is_there_ = unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 &&
                mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  bool Says(const std::string& path, const std::string& text) {
    const std::string file = testing::TempDir() + "/kernel" + std::to_string(files_++);
    std::ofstream(file) << text;
    is_there_ = is_there_ && mount(file.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) == 0;
    if (!is_there_) fprintf(stderr, "no mount namespaces here: %s\n", strerror(errno));
    return is_there_;
  }

 private:
  bool is_there_ = false;
  int files_ = 0;
};

// The machine's own setting is left alone.
TEST(MemoryTest, InOvercommitModeTwoTheMessageNamesIt) {
  std::string said;
  InChild(
      [] {
        OtherKernel kernel;
        if (!kernel.Says("/proc/sys/vm/overcommit_memory", "2\n")) return kCannotTest;
        AtWork at_work;
        at_work.ExpectCrowd();
        ReachAndLift(at_work, [] {  // the kernel refuses likewise
          const rlim_t used = NumberIn("/proc/self/status", "VmData:") << 10;
          return SoftLimit(RLIMIT_DATA, used + (4 << 20));
        });
        return kFine;
      },
      &said);
  if (IsSkipped()) return;
  ExpectOneLine(said, {"vm.overcommit_memory is 2 and CommitLimit is reached",
                       "raise vm.overcommit_ratio"});
}

// How many of `count` fibers have stacks at the same time; then the others have theirs, and all end.
int CrowdWithStacks(AtWork& at_work, int count) {
  Crowd crowd(at_work.runtime(), count, kSmallStack);
  AwaitFibersInLine();
  at_work.ExpectEcho();
  return crowd.arrived();
}

const std::vector<std::string> kGroupsLimit = {"RuntimeOptions::max_stack_memory", "the control group's memory limit",
                                               "raise it"};

// The kernel's killer gives no error: half of what the control group may use is where fibers begin to wait.
TEST(MemoryTest, FibersWaitBelowTheMemoryLimitOfTheControlGroup) {
  static constexpr int kStacks = 1000;
  std::string said;
  InChild(
      [] {
        OtherKernel kernel;
        const std::string group = testing::TempDir() + "/group";
        if (mkdir(group.c_str(), 0700) != 0 && errno != EEXIST) return 2;
        std::ofstream(group + "/memory.max") << 2 * kStacks * 4096;
        const std::string self = "/proc/" + std::to_string(getpid());
        const std::string mounted = "30 20 0:26 / " + group + " rw - cgroup2 none rw\n";
        if (!kernel.Says(self + "/cgroup", "0::/\n")) return kCannotTest;
        if (!kernel.Says(self + "/mountinfo", mounted)) return kCannotTest;
        AtWork at_work;
        at_work.ExpectCrowd(kStacks / 2);
        EXPECT_LE(CrowdWithStacks(at_work, 3 * kStacks), kStacks);
        at_work.ExpectCrowd(kStacks / 2);
        return kFine;
      },
      &said);
  if (IsSkipped()) return;
  ExpectOneLine(said, kGroupsLimit);
}

// A control group of the kernel's own, made by the parent and removed when the child has ended.
class MemoryGroup {
 public:
  explicit MemoryGroup(size_t bytes) {
    for (const auto& [mounted, limit] : {std::pair{"/sys/fs/cgroup", "/memory.max"},
                                         std::pair{"/sys/fs/cgroup/memory", "/memory.limit_in_bytes"}}) {
      const std::string path = std::string(mounted) + "/weft-" + std::to_string(getpid());
      if (mkdir(path.c_str(), 0700) != 0) continue;
      // Elsewhere than in a file system of the kernel's, nothing is there, and can be written all the same.
      if (access((path + limit).c_str(), W_OK) == 0 && (std::ofstream(path + limit) << bytes << std::flush).good()) {
        path_ = path;
        return;
      }
      rmdir(path.c_str());
    }
  }
  ~MemoryGroup() {
    if (!path_.empty()) EXPECT_EQ(rmdir(path_.c_str()), 0) << path_ << ": " << strerror(errno);
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;

  // The calling process, and what it allocates from here on.
  bool Enter() const {
    return !path_.empty() && (std::ofstream(path_ + "/cgroup.procs") << getpid() << std::flush).good();
  }

 private:
  std::string path_;
};

// Three times as many fibers as it has memory for: the killer would come.
TEST(MemoryTest, AControlGroupThatIsTooSmallForAllFibersLosesNone) {
  if (tests::kIsSlow) GTEST_SKIP() << "shadow memory is charged, too";
  static constexpr int kStacks = 8000;
  const MemoryGroup group(2 * kStacks * 4096);
  std::string said;
  InChild(
      [&group] {
        if (!group.Enter()) {
          fprintf(stderr, "no control groups of memory can be made here: %s\n", strerror(errno));
          return kCannotTest;
        }
        AtWork at_work;
        const int with_stacks = CrowdWithStacks(at_work, 6 * kStacks);
        EXPECT_LE(with_stacks, kStacks);
        EXPECT_GT(with_stacks, kStacks / 2);
        at_work.ExpectCrowd(kStacks / 2);
        return kFine;
      },
      &said);
  if (IsSkipped()) return;
  ExpectOneLine(said, kGroupsLimit);
}

}  // namespace
}  // namespace limits_test
