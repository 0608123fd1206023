// SPDX-License-Identifier: Apache-2.0
#include "netpoll/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "fiber/blocking.h"
#include "fiber/blocking_detached.h"
#include "fiber/cancel.h"
#include "fiber/deadline.h"
#include "fiber/go.h"
#include "fiber/internal/system_calls.h"
#include "fiber/internal/thread_pool.h"
#include "fiber/sim/gtest.h"
#include "fiber/this_fiber.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "netpoll/error.h"
#include "netpoll/internal/file_call.h"
#include "netpoll/internal/file_ring.h"
#include "sched/run.h"
#include "tests/netpoll/faults.h"
#include "tests/parked.h"
#include "tests/scale.h"

namespace netpoll_test {
namespace {

using netpoll::ErrnoOf;
using netpoll::File;
using netpoll::FileOptions;
using netpoll::FileStat;
using netpoll::FileType;
using netpoll::IoResult;
using ::testing::HasSubstr;

constexpr FileOptions kNew = {.write = true, .create = true, .truncate = true};

// Who does what a fiber is not to be held up by.
enum class By { kRing, kPool, kPlainThread };

std::string NameOf(By by) {
  switch (by) {
    case By::kRing: return "Ring";
    case By::kPool: return "Pool";
    case By::kPlainThread: return "PlainThread";
  }
  return "";
}

// A directory of its own for each test, and the same results whoever does it.
class FileTest : public testing::TestWithParam<By> {
 protected:
  FileTest() {
    std::string pattern = absl::StrCat(testing::TempDir(), "/file_testXXXXXX");
    directory_ = mkdtemp(pattern.data());
    netpoll::internal::SetMayUseRings(GetParam() == By::kRing);
  }
  ~FileTest() override {
    netpoll::internal::SetMayUseRings(true);
    std::filesystem::remove_all(directory_);
  }

  std::string Path(std::string_view name) const { return absl::StrCat(directory_, "/", std::string(name)); }
  template <class F>
  void Run(F body) {
    if (GetParam() == By::kPlainThread) return body();
    for (const int workers : {1, 2}) sched::Run({.workers = workers}, body);
  }

  std::string directory_;
};
INSTANTIATE_TEST_SUITE_P(By, FileTest, testing::Values(By::kRing, By::kPool, By::kPlainThread),
                         [](const testing::TestParamInfo<By>& info) { return NameOf(info.param); });

// What is in memory of a file is forgotten, as far as the kernel is willing.
void Forget(const File& file) {
  EXPECT_TRUE(file.Fsync().ok());
  EXPECT_EQ(posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED), 0);
}

std::string Pattern(size_t size) {
  std::string data(size, '\0');
  for (size_t i = 0; i < size; ++i) data[i] = static_cast<char>(i * 7 + i / 256);
  return data;
}

TEST_P(FileTest, WhatWasWrittenIsRead) {
  Run([this] {
    const std::string data = Pattern(10'000);
    File file = File::Open(Path("a"), kNew).value();
    const IoResult written = file.Pwrite(data, 5);
    EXPECT_TRUE(written.ok()) << written.status;
    EXPECT_EQ(written.bytes, data.size());
    EXPECT_EQ(file.Size().value(), data.size() + 5);
    for (const bool is_in_memory : {true, false}) {
      if (!is_in_memory) Forget(file);
      std::string back(data.size() + 5, 'x');
      EXPECT_EQ(file.Pread(back, 0).value(), back.size());
      EXPECT_EQ(back, std::string(5, '\0') + data);
    }
    EXPECT_TRUE(file.Close().ok());
  });
}

TEST_P(FileTest, AReadIsShortOnlyAtTheEnd) {
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "0123456789").ok());
    const File file = File::Open(Path("a")).value();
    char buffer[8];
    EXPECT_EQ(file.Pread(buffer, 0).value(), 8u);
    EXPECT_EQ(std::string_view(buffer, 8), "01234567");
    EXPECT_EQ(file.Pread(buffer, 6).value(), 4u);
    EXPECT_EQ(std::string_view(buffer, 4), "6789");
    EXPECT_EQ(file.Pread(buffer, 10).value(), 0u);
    EXPECT_EQ(file.Pread(buffer, 1'000'000).value(), 0u);
    EXPECT_EQ(file.Pread({}, 0).value(), 0u);
    EXPECT_TRUE(absl::IsInvalidArgument(file.Pread(buffer, UINT64_MAX).status()));
  });
}

TEST_P(FileTest, ManyPartsAreTransferredWhole) {
  Run([this] {
    const std::string data = Pattern((size_t{tests::kIsSlow ? 2 : 5} << 20) + 77);
    const File file = File::Open(Path("a"), kNew).value();
    EXPECT_EQ(file.Pwrite(data, 0).bytes, data.size());
    Forget(file);
    std::string back(data.size() + 100, 'x');
    EXPECT_EQ(file.Pread(back, 0).value(), data.size());
    EXPECT_TRUE(std::string_view(back).substr(0, data.size()) == data);
  });
}

TEST_P(FileTest, AppendGoesToTheEndWhoeverElseWrites) {
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "").ok());
    const File one = File::Open(Path("a"), {.read = false, .append = true}).value();
    const File two = File::Open(Path("a"), {.append = true}).value();
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(one.Append("one ").bytes, 4u);
      EXPECT_EQ(two.Append("two ").bytes, 4u);
    }
    // It would write over what is there, or elsewhere.
    const File places = File::Open(Path("a"), {.write = true}).value();
    EXPECT_TRUE(absl::IsInvalidArgument(places.Append("lost").status));
    EXPECT_TRUE(absl::IsInvalidArgument(two.Pwrite("lost", 0).status));
    EXPECT_EQ(netpoll::ReadFile(Path("a"), 100).value(), "one two one two one two ");
  });
}

TEST_P(FileTest, OptionsSayWhatOpenDoes) {
  Run([this] {
    std::filesystem::remove(Path("a"));
    EXPECT_TRUE(absl::IsNotFound(File::Open(Path("a")).status()));
    EXPECT_TRUE(absl::IsNotFound(File::Open(Path("a"), {.write = true}).status()));
    EXPECT_TRUE(File::Open(Path("a"), {.write = true, .create = true, .exclusive = true, .permissions = 0600}).ok());
    EXPECT_EQ(netpoll::StatPath(Path("a")).value().permissions, mode_t{0600});
    const absl::Status taken =
        File::Open(Path("a"), {.write = true, .create = true, .exclusive = true}).status();
    EXPECT_TRUE(absl::IsAlreadyExists(taken)) << taken;
    EXPECT_EQ(ErrnoOf(taken), EEXIST);
    EXPECT_THAT(std::string(taken.message()), HasSubstr(Path("a")));
    for (const FileOptions& nonsense :
         {FileOptions{.read = false}, FileOptions{.exclusive = true}, FileOptions{.truncate = true},
          FileOptions{.write = true, .append = true}}) {
      EXPECT_TRUE(absl::IsInvalidArgument(File::Open(Path("a"), nonsense).status()));
    }
    EXPECT_TRUE(absl::IsInvalidArgument(File::Open(std::string_view("a\0b", 3)).status()));
  });
}

TEST_P(FileTest, WhatCannotBeDoneSaysWhy) {
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "text").ok());
    char buffer[10];
    const auto expect = [](const absl::Status& status, absl::StatusCode code, int error) {
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_EQ(ErrnoOf(status), error) << status;
    };
    const File reader = File::Open(Path("a")).value();
    expect(reader.Pwrite("x", 0).status, absl::StatusCode::kInvalidArgument, EBADF);
    expect(reader.Truncate(1), absl::StatusCode::kInvalidArgument, EINVAL);
    const File writer = File::Open(Path("a"), {.read = false, .write = true}).value();
    expect(writer.Pread(buffer, 0).status(), absl::StatusCode::kInvalidArgument, EBADF);
    expect(File::Open(directory_, {.write = true}).status(), absl::StatusCode::kInvalidArgument, EISDIR);
    const File folder = File::Open(directory_).value();
    expect(folder.Pread(buffer, 0).status(), absl::StatusCode::kInvalidArgument, EISDIR);
    expect(File::Open(Path("a/b")).status(), absl::StatusCode::kInvalidArgument, ENOTDIR);
    const File full = File::Open("/dev/full", {.write = true}).value();
    const IoResult none = full.Pwrite("text", 0);
    expect(none.status, absl::StatusCode::kResourceExhausted, ENOSPC);
    EXPECT_EQ(none.bytes, 0u);
    EXPECT_THAT(std::string(none.status.message()), HasSubstr("no room left; raise it "));
    // What has no places is not read as if it had.
    std::filesystem::remove(Path("fifo"));
    ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
    const File pipe = File::Open(Path("fifo"), {.write = true}).value();
    expect(pipe.Pread(buffer, 0).status(), absl::StatusCode::kInvalidArgument, ESPIPE);
    expect(pipe.Pwrite("text", 0).status, absl::StatusCode::kInvalidArgument, ESPIPE);
  });
}

TEST_P(FileTest, WithoutDescriptorsTheLimitIsNamed) {
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "text").ok());
    const Faults faults({Call::openat, EMFILE, kEach}, {Call::kCount});
    for (const absl::Status& status : {File::Open(Path("a")).status(), netpoll::ReadFile(Path("a"), 10).status(),
                                       netpoll::ListDirectory(directory_).status()}) {
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("ulimit -n"));
    }
  });
}

TEST_P(FileTest, ASystemCallThatFailsIsToldOfAndOneThatIsInterruptedIsMadeAgain) {
  if (GetParam() == By::kRing) return;  // which makes others
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "text").ok());
    const File file = File::Open(Path("a"), {.write = true}).value();
    char buffer[4];
    const struct {
      Call call;
      std::function<absl::Status()> operation;
    } kCalls[] = {
        {Call::openat, [&] { return File::Open(Path("a")).status(); }},
        {Call::openat, [&] { return netpoll::ReadFile(Path("a"), 10).status(); }},
        {Call::pread, [&] { return file.Pread(buffer, 0).status(); }},
        {Call::pread, [&] { return netpoll::ReadFile(Path("a"), 10).status(); }},
        {Call::pwrite, [&] { return file.Pwrite("text", 0).status; }},
        {Call::pwrite, [&] { return netpoll::WriteFile(Path("a"), "text"); }},
        {Call::fsync, [&] { return file.Fsync(); }},
        {Call::fdatasync, [&] { return file.Fdatasync(); }},
        {Call::ftruncate, [&] { return file.Truncate(4); }},
        {Call::statx, [&] { return file.Stat().status(); }},
        {Call::statx, [&] { return netpoll::StatPath(Path("a")).status(); }},
        {Call::getdents64, [&] { return netpoll::ListDirectory(directory_).status(); }},
        {Call::mkdirat, [&] { return netpoll::CreateDirectory(Path("d")); }},
        {Call::renameat, [&] { return netpoll::RenamePath(Path("d"), Path("e")); }},
        {Call::unlinkat, [&] { return netpoll::RemoveDirectory(Path("e")); }},
    };
    for (const auto& each : kCalls) {
      const std::string which = absl::StrCat("call ", static_cast<int>(each.call));
      // What there is in memory is not asked for, or it would be read by another call.
      const Fault never_now = {Call::preadv2, EAGAIN, kEach};
      {
        const Faults faults({each.call, EIO, 1}, never_now);
        const absl::Status status = each.operation();
        EXPECT_TRUE(faults.is_hit()) << which;
        EXPECT_TRUE(absl::IsDataLoss(status)) << which << ": " << status;
        EXPECT_EQ(ErrnoOf(status), EIO) << which;
      }
      const Faults faults({each.call, EINTR, 1}, never_now);
      const absl::Status status = each.operation();
      EXPECT_TRUE(faults.is_hit()) << which;
      EXPECT_TRUE(status.ok()) << which << ": " << status;
    }
  });
}

TEST_P(FileTest, AClosedFileSaysSo) {
  Run([this] {
    File file = File::Open(Path("a"), kNew).value();
    File other = std::move(file);
    char buffer[1];
    for (const absl::Status& status :
         {file.Pread(buffer, 0).status(), file.Pwrite("x", 0).status, file.Append("x").status, file.Fsync(),
          file.Fdatasync(), file.Truncate(0), file.Stat().status(), file.Size().status(), file.Close()}) {
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    }
    EXPECT_EQ(file.fd(), -1);
    EXPECT_GE(other.fd(), 0);
    EXPECT_TRUE(other.Close().ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(other.Close()));
  });
}

TEST_P(FileTest, CloseReportsWhatWasLost) {
  Run([this] {
    File file = File::Open(Path("a"), kNew).value();
    {
      const Faults faults({Call::close, EIO, 1}, {Call::kCount});
      const absl::Status status = file.Close();
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    }
    EXPECT_EQ(file.fd(), -1);
  });
}

TEST_P(FileTest, AFileIsClosedWhoeverIsCancelled) {
  if (GetParam() == By::kPlainThread) return;
  Run([this] {
    auto closer = fiber::Spawn([this] {
      File file = File::Open(Path("a"), kNew).value();
      const fiber::DeadlineScope late(absl::ZeroDuration());
      EXPECT_TRUE(absl::IsDeadlineExceeded(file.Fsync()));
      EXPECT_TRUE(file.Close().ok());
    });
    closer.Join();
  });
}

TEST_P(FileTest, SizeIsCutAndFilledUp) {
  Run([this] {
    const File file = File::Open(Path("a"), kNew).value();
    EXPECT_TRUE(file.Pwrite("0123456789", 0).ok());
    EXPECT_TRUE(file.Truncate(4).ok());
    EXPECT_TRUE(file.Truncate(6).ok());
    EXPECT_TRUE(file.Fdatasync().ok());
    EXPECT_EQ(netpoll::ReadFile(Path("a"), 100).value(), std::string("0123\0\0", 6));
    EXPECT_TRUE(absl::IsInvalidArgument(file.Truncate(UINT64_MAX)));
  });
}

TEST_P(FileTest, StatTellsWhatItIs) {
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "text").ok());
    const File file = File::Open(Path("a")).value();
    const FileStat stat = file.Stat().value();
    EXPECT_EQ(stat.type, FileType::kRegular);
    EXPECT_EQ(stat.size, 4u);
    EXPECT_EQ(stat.links, 1u);
    EXPECT_EQ(stat.owner, geteuid());
    EXPECT_LT(absl::AbsDuration(stat.modified - absl::Now()), absl::Hours(1));
    EXPECT_EQ(netpoll::StatPath(Path("a")).value().inode, stat.inode);
    EXPECT_EQ(netpoll::StatPath(directory_).value().type, FileType::kDirectory);
    EXPECT_EQ(netpoll::StatPath("/dev/null").value().type, FileType::kOther);
    EXPECT_TRUE(absl::IsNotFound(netpoll::StatPath(Path("nothing")).status()));
  });
}

TEST_P(FileTest, WholeFilesAreReadUpToABound) {
  Run([this] {
    const std::string data = Pattern(200'000);
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), data).ok());
    EXPECT_TRUE(netpoll::ReadFile(Path("a"), data.size()).value() == data);
    EXPECT_TRUE(netpoll::ReadFile(Path("a"), SIZE_MAX).value() == data);
    const absl::Status more = netpoll::ReadFile(Path("a"), data.size() - 1).status();
    EXPECT_TRUE(absl::IsResourceExhausted(more)) << more;
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "short").ok());
    EXPECT_EQ(netpoll::ReadFile(Path("a"), 5).value(), "short");
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "").ok());
    EXPECT_EQ(netpoll::ReadFile(Path("a"), 0).value(), "");
    // The kernel makes it up as it is read: its size is 0.
    EXPECT_THAT(netpoll::ReadFile("/proc/self/status", 1 << 20).value(), HasSubstr("Threads:"));
    const std::string settings = netpoll::ReadFile("/proc/sys/net/ipv4/ip_local_port_range", 1 << 20).value();
    EXPECT_EQ(std::count(settings.begin(), settings.end(), '\n'), 1) << settings;
    EXPECT_TRUE(absl::IsResourceExhausted(netpoll::ReadFile("/proc/sys/net/ipv4/ip_local_port_range", 3).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(netpoll::ReadFile(directory_, 10).status()));
  });
}

TEST_P(FileTest, DirectoriesAreMadeListedRenamedAndRemoved) {
  Run([this] {
    ASSERT_TRUE(netpoll::CreateDirectory(Path("d"), 0700).ok());
    EXPECT_TRUE(absl::IsAlreadyExists(netpoll::CreateDirectory(Path("d"))));
    EXPECT_EQ(netpoll::StatPath(Path("d")).value().permissions, mode_t{0700});
    EXPECT_TRUE(netpoll::ListDirectory(Path("d")).value().empty());
    ASSERT_TRUE(netpoll::WriteFile(Path("d/one"), "1").ok());
    ASSERT_TRUE(netpoll::CreateDirectory(Path("d/two")).ok());
    ASSERT_EQ(symlink("one", Path("d/three").c_str()), 0);
    std::vector<std::string> names;
    const auto entries = netpoll::ListDirectory(Path("d")).value();
    for (const netpoll::DirectoryEntry& entry : entries) {
      names.push_back(absl::StrCat(entry.name, entry.type == FileType::kDirectory ? "/"
                                              : entry.type == FileType::kSymlink ? "@" : ""));
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(names, (std::vector<std::string>{"one", "three@", "two/"}));
    EXPECT_EQ(ErrnoOf(netpoll::RemoveDirectory(Path("d"))), ENOTEMPTY);
    EXPECT_TRUE(absl::IsFailedPrecondition(netpoll::RemoveDirectory(Path("d"))));
    EXPECT_TRUE(netpoll::RenamePath(Path("d/one"), Path("e")).ok());
    EXPECT_EQ(netpoll::ReadFile(Path("e"), 10).value(), "1");
    const absl::Status gone = netpoll::RenamePath(Path("d/one"), Path("e"));
    EXPECT_TRUE(absl::IsNotFound(gone));
    EXPECT_THAT(std::string(gone.message()), HasSubstr(Path("e")));
    EXPECT_TRUE(netpoll::RemoveFile(Path("d/three")).ok());
    EXPECT_TRUE(netpoll::RemoveDirectory(Path("d/two")).ok());
    EXPECT_TRUE(netpoll::RemoveDirectory(Path("d")).ok());
    EXPECT_TRUE(netpoll::RemoveFile(Path("e")).ok());
    EXPECT_TRUE(absl::IsNotFound(netpoll::RemoveFile(Path("e"))));
    EXPECT_TRUE(absl::IsNotFound(netpoll::ListDirectory(Path("d")).status()));
  });
}

TEST_P(FileTest, AManyNamedDirectoryIsListedWhole) {
  Run([this] {
    constexpr size_t kNames = 150;
    std::filesystem::create_directory(Path("many"));
    for (size_t i = 0; i < kNames; ++i) {
      std::filesystem::create_symlink("nothing", Path(absl::StrCat("many/", std::string(200, 'x'), i)));
    }
    EXPECT_EQ(netpoll::ListDirectory(Path("many")).value().size(), kNames);
    std::filesystem::remove_all(Path("many"));
  });
}

TEST_P(FileTest, APastDeadlineDoesNothing) {
  Run([this] {
    ASSERT_TRUE(netpoll::WriteFile(Path("a"), "text").ok());
    const File file = File::Open(Path("a"), {.write = true}).value();
    char buffer[4];
    const absl::Duration past = absl::ZeroDuration();
    const IoResult none = file.Pwrite("TEXT", 0, past);
    EXPECT_EQ(none.bytes, 0u);
    for (const absl::Status& status :
         {none.status, file.Pread(buffer, 0, past).status(), file.Fsync(past), file.Truncate(0, past),
          file.Stat(past).status(), File::Open(Path("b"), kNew, past).status(),
          netpoll::WriteFile(Path("b"), "x", past), netpoll::ReadFile(Path("a"), 9, past).status(),
          netpoll::RemoveFile(Path("a"), past), netpoll::RenamePath(Path("a"), Path("b"), past),
          netpoll::CreateDirectory(Path("b"), 0777, past), netpoll::ListDirectory(directory_, past).status()}) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    }
    EXPECT_EQ(netpoll::ReadFile(Path("a"), 100).value(), "text");
    EXPECT_TRUE(absl::IsNotFound(netpoll::StatPath(Path("b")).status()));
  });
}

TEST_P(FileTest, OpeningWhatNobodyElseOpensEndsAtTheDeadline) {
  if (GetParam() == By::kPlainThread) return;
  Run([this] {
    std::filesystem::remove(Path("fifo"));
    ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
    EXPECT_TRUE(absl::IsDeadlineExceeded(File::Open(Path("fifo"), {}, absl::Milliseconds(1)).status()));
    auto reader = fiber::Spawn([this] { return File::Open(Path("fifo")).status(); });
    tests::WaitUntilParked(reader);
    reader.Cancel();
    EXPECT_TRUE(absl::IsCancelled(reader.Join()));
    const File both = File::Open(Path("fifo"), {.write = true}).value();  // lets those opens end
    while (fiber::internal::ThreadPool::Get().threads() > 0) fiber::internal::ThreadPool::Get().EndIdle();
  });
}

// Deadlines from none to about what a call takes: what is reported has been written, and no buffer is touched later.
TEST_P(FileTest, CallsThatEndAtAnyMomentLeaveNothingHalfDone) {
  if (GetParam() == By::kPlainThread) return;
  Run([this] {
    constexpr int kFibers = 8;
    constexpr int kCalls = tests::Scaled(100);
    const File file = File::Open(Path("a"), kNew).value();
    std::vector<fiber::JoinHandle<void>> fibers;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(fiber::Spawn([&, i] {
        const uint64_t place = static_cast<uint64_t>(i) * 8192;
        for (int call = 0; call < kCalls; ++call) {
          const std::string data(4096, static_cast<char>('a' + call % 26));
          const fiber::Deadline soon = absl::Microseconds((call * 7 + i) % 60);
          const IoResult written = file.Pwrite(data, place, soon);
          EXPECT_TRUE(written.ok() || absl::IsDeadlineExceeded(written.status)) << written.status;
          EXPECT_EQ(written.bytes, written.ok() ? data.size() : 0);
          std::string back(4096, 'x');
          const absl::StatusOr<size_t> n = file.Pread(back, place, absl::Microseconds(call % 50));
          if (n.ok() && written.ok()) {
            EXPECT_EQ(back, data);
          }
          EXPECT_TRUE(n.ok() || absl::IsDeadlineExceeded(n.status())) << n.status();
          const absl::Status synced = call % 10 == 0 ? file.Fdatasync(absl::Microseconds(call)) : absl::OkStatus();
          EXPECT_TRUE(synced.ok() || absl::IsDeadlineExceeded(synced)) << synced;
        }
      }));
    }
    for (auto& each : fibers) each.Join();
  });
}

TEST_P(FileTest, ManyFibersReadAndWriteTheirOwnPlaces) {
  if (GetParam() == By::kPlainThread) return;
  Run([this] {
    constexpr int kFibers = tests::kHasFewFibers ? 50 : 200;
    constexpr int kRounds = tests::Scaled(20);
    const File file = File::Open(Path("a"), kNew).value();
    std::atomic<int> right{0};
    std::vector<fiber::JoinHandle<void>> fibers;
    for (int i = 0; i < kFibers; ++i) {
      fibers.push_back(fiber::Spawn([&, i] {
        const uint64_t place = static_cast<uint64_t>(i) * 1000;
        for (int round = 0; round < kRounds; ++round) {
          const std::string data(1000, static_cast<char>(i + round));
          EXPECT_TRUE(file.Pwrite(data, place).ok());
          std::string back(1000, 'x');
          EXPECT_EQ(file.Pread(back, place).value(), back.size());
          right += back == data;
        }
      }));
    }
    for (auto& each : fibers) each.Join();
    EXPECT_EQ(right.load(), kFibers * kRounds);
  });
}

TEST_P(FileTest, AFileOutlivesTheRuntimeThatOpenedIt) {
  File file;
  Run([&] { file = File::Open(Path("a"), kNew).value(); });
  EXPECT_TRUE(file.Pwrite("text", 0).ok());
  Run([&] {
    char buffer[4];
    EXPECT_EQ(file.Pread(buffer, 0).value(), 4u);
  });
}

TEST_P(FileTest, WithoutAThreadToBeHadTheLimitIsNamedAndAFileIsStillClosed) {
  if (GetParam() == By::kPlainThread) return;
  Run([this] {
    File file = File::Open(Path("a"), kNew).value();
    fiber::internal::ThreadPool::Get().EndIdle();
    const Faults faults({Call::pthread_create, EAGAIN, kEach}, {Call::kCount});
    const absl::Status status = file.Truncate(0);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_TRUE(file.Close().ok());
  });
}

// What only the ring does, seen with pipes, which wait for as long as one likes. File has them read by threads.
class FileRingTest : public testing::Test {
 protected:
  void SetUp() override {
    if (netpoll::internal::FileRing::Create() == nullptr) GTEST_SKIP() << "no io_uring here";
    ASSERT_EQ(pipe2(ends_, O_CLOEXEC), 0);
  }
  ~FileRingTest() override {
    for (const int fd : ends_) {
      if (fd >= 0) close(fd);
    }
  }

  // As File does it.
  absl::StatusOr<int64_t> Read(std::span<char> buffer, fiber::Deadline deadline = {}) const {
    int64_t n = 0;
    const absl::Status status = netpoll::internal::MakeTransfer(
        {.kind = netpoll::internal::Transfer::Kind::kRead, .fd = ends_[0], .buffer = buffer.data(), .size = buffer.size()},
        true, deadline, &n);
    if (!status.ok()) return status;
    return n;
  }
  void Feed(std::string_view data) const {
    EXPECT_EQ(write(ends_[1], data.data(), data.size()), static_cast<ssize_t>(data.size()));
  }

  int ends_[2] = {-1, -1};
};

TEST_F(FileRingTest, ACompletionWakesTheFiberAndNeedsNoThread) {
  for (const int workers : {1, 2}) {
    sched::Run({.workers = workers}, [this] {
      const Faults faults({Call::pthread_create, EAGAIN, kEach}, {Call::kCount});
      for (int round = 0; round < 20; ++round) {
        char buffer[8] = {};
        auto reader = fiber::Spawn([&] { return Read(buffer); });
        tests::WaitUntilParked(reader);
        Feed("text");
        EXPECT_EQ(reader.Join().value(), 4);
        EXPECT_STREQ(buffer, "text");
      }
      EXPECT_EQ(fiber::internal::ThreadPool::Get().threads(), 0);
    });
  }
}

TEST_F(FileRingTest, WhatHasBegunIsTakenBackByADeadlineAndTheBufferIsTheCallers) {
  sched::Run({.workers = 2}, [this] {
    char buffer[8] = {};
    for (int round = 0; round < 20; ++round) {
      const absl::Status status = Read(buffer, absl::Microseconds(100 * round)).status();
      EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    }
    Feed("text");
    EXPECT_EQ(buffer[0], '\0');
    EXPECT_EQ(Read(buffer).value(), 4);  // nobody else has taken it
  });
}

std::string ThisThreadsDirectory() { return absl::StrCat("/proc/self/task/", gettid()); }

// The kernel goes on with a transfer in the thread that began it, and has no use for one whose thread has ended.
TEST_F(FileRingTest, WhatAThreadHasBegunThatHasEndedSinceIsDoneByOthers) {
  sched::Run({.workers = 1}, [this] {
    char buffer[8];
    std::string thread;
    auto reader = fiber::Spawn([&] {
      thread = ThisThreadsDirectory();
      return Read(buffer);
    });
    tests::WaitUntilParked(reader);
    const fiber::Deadline enough = absl::Seconds(20);
    while (std::filesystem::exists(thread) && !enough.is_past()) {
      fiber::Sleep(absl::Milliseconds(20)).IgnoreError();
      // Another one has its seat then, until that is late, and this one is called for.
      if (thread == ThisThreadsDirectory()) fiber::Blocking([] { absl::SleepFor(absl::Milliseconds(300)); });
    }
    EXPECT_FALSE(std::filesystem::exists(thread)) << "its thread does not end";
    Feed("text");
    const absl::StatusOr<int64_t> n = reader.Join();
    ASSERT_TRUE(n.ok()) << n.status();
    EXPECT_TRUE(*n == 4 || *n == -ESPIPE) << *n << ": -ESPIPE is a thread's pread";
  });
}

// Else who owns the file could not end either, nor could the runtime.
TEST(FileCloseTest, AFileIsClosedThoughAllThreadsAreInCallsWithoutAnEnd) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  fiber::SetMaxDetachedThreads(1);
  sched::Run({.workers = 1}, [&ends] {
    auto file = netpoll::File::Open("/dev/null");
    ASSERT_TRUE(file.ok()) << file.status();
    const int fd = file->fd();
    const auto read_for_ever = [fd = ends[0]] {
      char byte;
      return read(fd, &byte, 1);
    };
    EXPECT_TRUE(absl::IsDeadlineExceeded(fiber::BlockingDetached(read_for_ever, absl::Milliseconds(20)).status()));
    EXPECT_TRUE(file->Close().ok());
    EXPECT_EQ(fcntl(fd, F_GETFD), -1);
  });
  EXPECT_EQ(write(ends[1], "x", 1), 1);
  fiber::SetMaxDetachedThreads(fiber::internal::ThreadPool::kDefaultMaxThreads);
  while (fiber::internal::ThreadPool::Get().threads() > 1) absl::SleepFor(absl::Milliseconds(1));
  close(ends[0]);
  close(ends[1]);
}

TEST_F(FileRingTest, ARuntimeThatEndsTakesBackWhatHasBegun) {
  sched::Run({.workers = 2}, [this] {
    for (int i = 0; i < 10; ++i) {
      fiber::Go([this] {
        char buffer[8];
        EXPECT_TRUE(absl::IsCancelled(Read(buffer).status()));
      });
    }
    fiber::Yield();
  });
  char byte;
  Feed("x");
  EXPECT_EQ(read(ends_[0], &byte, 1), 1);
}

TEST_F(FileRingTest, TooManyAtATimeGoToTheThreads) {
  if (tests::kHasFewFibers) GTEST_SKIP() << "not so many fibers";
  sched::Run({.workers = 2}, [this] {
    constexpr int kFibers = 600;
    std::atomic<int> elsewhere{0};
    std::vector<fiber::JoinHandle<void>> readers;
    for (int i = 0; i < kFibers; ++i) {
      readers.push_back(fiber::Spawn([&] {
        char byte;
        const absl::StatusOr<int64_t> n = Read({&byte, 1});
        if (n.ok() && *n == -ESPIPE) {
          elsewhere.fetch_add(1);  // a thread's pread
        } else {
          EXPECT_TRUE(absl::IsCancelled(n.status())) << n.status();
        }
      }));
    }
    while (elsewhere.load() < kFibers - 512) fiber::Yield();
    for (auto& reader : readers) reader.Cancel();
    for (auto& reader : readers) reader.Join();
    EXPECT_EQ(elsewhere.load(), kFibers - 512);
  });
}

// Whatever the kernel refuses, files are read and written; by threads, if need be.
TEST(FileRefusalTest, WhereTheRingIsRefusedThreadsDoIt) {
  struct Refusal {
    Call call;
    int error;
    uint64_t nth = kEach;
  };
  std::string name = absl::StrCat(testing::TempDir(), "/file_refusalXXXXXX");
  const int fd = mkstemp(name.data());
  ASSERT_GE(fd, 0);
  close(fd);
  bool has_ring = false;  // where there is none, its calls are not made
  for (const Refusal& refusal :
       {Refusal{Call::io_uring_enter, 0, kNone}, Refusal{Call::io_uring_setup, ENOSYS}, Refusal{Call::io_uring_setup, EPERM}, Refusal{Call::io_uring_setup, EMFILE},
        Refusal{Call::io_uring_setup, ENOMEM}, Refusal{Call::io_uring_setup, EINVAL},
        Refusal{Call::io_uring_register, EINVAL}, Refusal{Call::io_uring_register, EACCES, 2}, Refusal{Call::mmap, ENOMEM},
        Refusal{Call::eventfd, EMFILE, 2}, Refusal{Call::epoll_ctl, ENOSPC, 2}, Refusal{Call::io_uring_enter, EAGAIN},
        Refusal{Call::io_uring_enter, EBUSY}, Refusal{Call::io_uring_enter, EPERM}, Refusal{Call::io_uring_enter, EINTR, 1},
        Refusal{Call::io_uring_enter, EAGAIN, 2}, Refusal{Call::preadv2, EOPNOTSUPP}, Refusal{Call::preadv2, ENOSYS},
        Refusal{Call::preadv2, EAGAIN}}) {
    SCOPED_TRACE(absl::StrCat(static_cast<int>(refusal.call), " ", strerrorname_np(refusal.error)));
    sched::Run({.workers = 1}, [&] {
      const File file = File::Open(name, kNew).value();
      const Faults faults({refusal.call, refusal.error, refusal.nth}, {Call::kCount});
      for (int round = 0; round < 3; ++round) {
        const std::string data = Pattern(3000);
        EXPECT_EQ(file.Pwrite(data, 0).bytes, data.size());
        EXPECT_TRUE(file.Fdatasync().ok());
        std::string back(3000, 'x');
        EXPECT_EQ(file.Pread(back, 0).value(), back.size());
        EXPECT_EQ(back, data);
      }
      if (refusal.nth == kNone) {
        has_ring = faults.count() > 0;
      } else if (has_ring || refusal.call == Call::preadv2) {
        EXPECT_TRUE(faults.is_hit()) << "nothing was refused";
      }
    });
  }
  std::filesystem::remove(name);
}

// Where the kernel is out of memory for it.
TEST(FileRefusalTest, WhatTheRingCannotUnmapStaysAndNothingElse) {
  using fiber::internal::system_calls;
  static std::vector<std::pair<void*, size_t>> kept;
  fiber::internal::SystemCalls refusing = fiber::internal::kKernel;
  refusing.munmap = [](void* address, size_t size) {
    kept.emplace_back(address, size);
    errno = ENOMEM;
    return -1;
  };
  auto ring = netpoll::internal::FileRing::Create();
  if (ring == nullptr) GTEST_SKIP() << "no io_uring here";
  system_calls.store(&refusing, std::memory_order_release);  // order: system-calls
  ring.reset();
  system_calls.store(&fiber::internal::kKernel, std::memory_order_release);  // order: system-calls
  EXPECT_EQ(kept.size(), 2u);
  for (const auto& [address, size] : kept) EXPECT_EQ(munmap(address, size), 0);
}

FIBER_SIM_TEST(FileSimTest, InSimulationFilesAreReadAtOnce) {
  const absl::Duration before = fiber::Now();
  EXPECT_THAT(netpoll::ReadFile("/proc/self/status", 1 << 20).value(), HasSubstr("Threads:"));
  const File file = File::Open("/dev/zero").value();
  char buffer[4] = {1, 1, 1, 1};
  EXPECT_EQ(file.Pread(buffer, 0).value(), 4u);
  EXPECT_EQ(buffer[3], 0);
  EXPECT_EQ(fiber::Now(), before);
}

}  // namespace
}  // namespace netpoll_test
