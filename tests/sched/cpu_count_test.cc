// SPDX-License-Identifier: Apache-2.0
#include "sched/internal/cpu_count.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "sched/internal/cgroup.h"

namespace sched::internal {
namespace {

// A directory that stands for the root of a machine's file system.
class CpuCountTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/weft_cpu_count_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr) << strerror(errno);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& contents) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full, std::ios::binary) << contents;
  }

  void Cgroup(const std::string& lines) { Write("/proc/self/cgroup", lines); }
  void Mountinfo(const std::string& lines) { Write("/proc/self/mountinfo", lines); }

  void MountV2(const std::string& group) {
    Cgroup("0::" + group + "\n");
    Mountinfo(
        "22 1 0:20 / /proc rw,relatime - proc proc rw\n"
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
  }

  void MountV1(const std::string& group) {
    Cgroup("5:memory:" + group + "\n4:cpu,cpuacct:" + group +
           "\n3:cpuset:/elsewhere\n1:name=systemd:/\n");
    Mountinfo(
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpuacct,cpu\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n");
  }

  void QuotaV1(const std::string& directory, const std::string& quota, const std::string& period) {
    Write(directory + "/cpu.cfs_quota_us", quota + "\n");
    Write(directory + "/cpu.cfs_period_us", period + "\n");
  }

  CgroupSources cgroup() const { return {.root = root_}; }

  CpuSources WithCpus(size_t count, size_t kernel_cpus) const {
    return {.cgroup = cgroup(), .get_affinity = [=](size_t bytes, cpu_set_t* mask) {
              if (bytes * 8 < kernel_cpus) {
                errno = EINVAL;
                return -1;
              }
              for (size_t i = 0; i < count; ++i) CPU_SET_S(kernel_cpus - 1 - i, bytes, mask);
              return 0;
            }};
  }

  std::string root_;
};

TEST_F(CpuCountTest, WithoutAnyFilesThereIsNoLimit) {
  EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt);
  EXPECT_EQ(CgroupMemoryMax(cgroup()), SIZE_MAX);
  EXPECT_EQ(UsableCpus(WithCpus(7, 64)), 7);
}

TEST_F(CpuCountTest, TheMachineItselfGivesAPlausibleAnswer) {
  EXPECT_GE(UsableCpus(), 1);
  EXPECT_LE(UsableCpus(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  EXPECT_GT(CgroupMemoryMax(), size_t{1} << 20);
}

TEST_F(CpuCountTest, AffinityOfOneCpuIsSeen) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &before)) ++cpu;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(UsableCpus(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST_F(CpuCountTest, MachinesOfMoreThan1024CpusAreCounted) {
  EXPECT_EQ(UsableCpus(WithCpus(1025, 1025)), 1025);
  EXPECT_EQ(UsableCpus(WithCpus(3, 8192)), 3);
  EXPECT_EQ(UsableCpus(WithCpus(8192, 8192)), 8192);
}

TEST_F(CpuCountTest, AffinityThatCannotBeHadFallsBackToTheCpusOnline) {
  for (const int error : {EPERM, ENOSYS, EINVAL}) {
    const CpuSources sources = {.cgroup = cgroup(), .get_affinity = [=](size_t, cpu_set_t*) {
                                  errno = error;
                                  return -1;
                                }};
    EXPECT_EQ(UsableCpus(sources), sysconf(_SC_NPROCESSORS_ONLN));
  }
}

TEST_F(CpuCountTest, EmptyAffinityIsOneCpu) { EXPECT_EQ(UsableCpus(WithCpus(0, 64)), 1); }

TEST_F(CpuCountTest, Version2QuotaIsRoundedUp) {
  MountV2("/app");
  struct Case {
    const char* cpu_max;
    std::optional<int> cpus;
  };
  for (const Case& c :
       {Case{"150000 100000\n", 2}, Case{"100000 100000\n", 1}, Case{"100001 100000\n", 2},
        Case{"1000 100000\n", 1}, Case{"1600000 100000\n", 16}, Case{"50000 25000\n", 2},
        Case{"max 100000\n", std::nullopt}, Case{"max\n", std::nullopt},
        Case{"9223372036854775807 1\n", INT32_MAX}}) {
    Write("/sys/fs/cgroup/app/cpu.max", c.cpu_max);
    EXPECT_EQ(CgroupCpuQuota(cgroup()), c.cpus) << c.cpu_max;
  }
}

TEST_F(CpuCountTest, TheTightestGroupOnTheWayToTheRootCounts) {
  MountV2("/a/b/c");
  Write("/sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/a/b/cpu.max", "600000 100000\n");
  Write("/sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  Write("/sys/fs/cgroup/other/cpu.max", "100000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 3);
  Write("/sys/fs/cgroup/cpu.max", "200000 100000\n");  // a container sees its own group here
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 2);
  Write("/sys/fs/cgroup/a/b/c/cpu.max", "5000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 1);
}

TEST_F(CpuCountTest, UsableCpusIsTheSmallerOfAffinityAndQuota) {
  MountV2("/");
  Write("/sys/fs/cgroup/cpu.max", "350000 100000\n");
  EXPECT_EQ(UsableCpus(WithCpus(8, 64)), 4);
  EXPECT_EQ(UsableCpus(WithCpus(3, 64)), 3);
}

TEST_F(CpuCountTest, AChangedQuotaIsSeenByTheNextCall) {
  MountV2("/");
  Write("/sys/fs/cgroup/cpu.max", "350000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 4);
  Write("/sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt);
}

TEST_F(CpuCountTest, Version1QuotaIsReadFromTheCpuController) {
  MountV1("/docker/abc");
  QuotaV1("/sys/fs/cgroup/cpu,cpuacct/docker/abc", "-1", "100000");
  QuotaV1("/sys/fs/cgroup/cpu,cpuacct", "-1", "100000");
  QuotaV1("/sys/fs/cgroup/cpuset/docker/abc", "100000", "100000");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt);
  QuotaV1("/sys/fs/cgroup/cpu,cpuacct/docker", "450000", "100000");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 5);
  QuotaV1("/sys/fs/cgroup/cpu,cpuacct/docker/abc", "120000", "50000");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 3);
}

TEST_F(CpuCountTest, HybridTakesTheTightestOfBothVersions) {
  Cgroup("5:memory:/m\n1:cpu:/one\n0::/two\n");
  Mountinfo(
      "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
      "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
      "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  QuotaV1("/sys/fs/cgroup/cpu/one", "700000", "100000");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 7);
  Write("/sys/fs/cgroup/unified/two/cpu.max", "500000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 5);
  Write("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "1000000\n");
  EXPECT_EQ(CgroupMemoryMax(cgroup()), 1000000u);
}

// Docker without a cgroup namespace: the container's own group lies at the mount point, while
// /proc/self/cgroup tells the whole way from the host's root.
TEST_F(CpuCountTest, APartialMountIsSubtractedFromTheGroupsPath) {
  Cgroup("4:cpu,cpuacct:/docker/abc/worker\n");
  Mountinfo("32 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n");
  QuotaV1("/sys/fs/cgroup/cpu/worker", "200000", "100000");
  QuotaV1("/sys/fs/cgroup/cpu/docker/abc/worker", "100000", "100000");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 2);
}

TEST_F(CpuCountTest, AMountOfANeighbourIsNotMistakenForOurs) {
  Cgroup("0::/docker/abcd\n");
  Mountinfo(
      "32 31 0:29 /docker/abc /mnt/neighbour rw - cgroup2 cgroup2 rw\n"
      "33 31 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  Write("/mnt/neighbour/cpu.max", "100000 100000\n");
  Write("/mnt/neighbour/d/cpu.max", "100000 100000\n");
  Write("/sys/fs/cgroup/docker/abcd/cpu.max", "300000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 3);
}

// Namespaces that hide where we are: what lies at the mount point is all there is to see.
TEST_F(CpuCountTest, AGroupThatCannotBePlacedIsLookedForAtTheMountPoint) {
  struct Case {
    const char* group;
    const char* mount_root;
  };
  for (const Case& c : {Case{"/host/only", "/docker/abc"}, Case{"/", "/.."}, Case{"/../..", "/"},
                        Case{"/../other", "/"}, Case{"/does/not/exist", "/"}}) {
    Cgroup(std::string("0::") + c.group + "\n");
    Mountinfo(std::string("33 31 0:29 ") + c.mount_root +
              " /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    Write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
    Write("/sys/fs/other/cpu.max", "100000 100000\n");
    EXPECT_EQ(CgroupCpuQuota(cgroup()), 3) << c.group << " in " << c.mount_root;
  }
}

TEST_F(CpuCountTest, MountinfoMayHaveOptionalFieldsAndEscapedNames) {
  Cgroup("0::/my group\n");
  Mountinfo(
      "33 31 0:29 / /sys/fs\\040cg\\134x rw shared:1 master:2 propagate_from:3 - cgroup2 none "
      "rw\n");
  Write("/sys/fs cg\\x/my group/cpu.max", "300000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 3);
}

TEST_F(CpuCountTest, AGroupNamedWithColonsIsFound) {
  MountV2("/a:b:c");
  Write("/sys/fs/cgroup/a:b:c/cpu.max", "300000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 3);
}

TEST_F(CpuCountTest, GarbageIsNoLimit) {
  MountV2("/g");
  for (const std::string& garbage :
       {std::string(), std::string("\n"), std::string("0 100000"), std::string("-1 100000"),
        std::string("100000 0"), std::string("100000 -5"), std::string("100000"),
        std::string("100000 100000 7"), std::string("1e5 100000"), std::string("abc def"),
        std::string("99999999999999999999999 100000"), std::string("100000  100000x"),
        std::string("\0\0\0", 3), std::string(100'000, '9')}) {
    Write("/sys/fs/cgroup/g/cpu.max", garbage);
    Write("/sys/fs/cgroup/g/memory.max", garbage.substr(0, garbage.find(' ')) + "z");
    EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt) << garbage.substr(0, 40);
    EXPECT_EQ(CgroupMemoryMax(cgroup()), SIZE_MAX) << garbage.substr(0, 40);
  }
}

TEST_F(CpuCountTest, GarbageInProcIsNoLimit) {
  Write("/sys/fs/cgroup/cpu.max", "100000 100000\n");
  const std::string good = "33 31 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
  for (const char* group : {"", "\n\n", "0:", "0::", "0::relative", "::::", "zero"}) {
    Cgroup(group);
    Mountinfo(good);
    EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt) << group;
  }
  Cgroup("0::/\n");
  for (const char* mounts :
       {"", "\n", "-", "33 31 - cgroup2 cgroup2 rw\n", "33 31 0:29 / /sys/fs/cgroup rw cgroup2\n",
        "33 31 0:29 / /sys/fs/cgroup rw - cgroup2\n"}) {
    Mountinfo(mounts);
    EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt) << mounts;
  }
  Mountinfo(good);
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 1);
}

TEST_F(CpuCountTest, RandomBytesNeverCrash) {
  const std::string alphabet = "0123456789 :/-\n\\,.abcgrouprw2max\t";
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const auto noise = [&](std::string text) {
      for (int i = 0; i < 8; ++i) {
        const char c =
            random() % 8 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
        text.insert(text.begin() + static_cast<ptrdiff_t>(random() % (text.size() + 1)), c);
        text.erase(random() % text.size(), 1);
      }
      return text;
    };
    Cgroup(noise("0::/a/b\n1:cpu,memory:/a\n"));
    Mountinfo(noise(
        "33 31 0:29 / /cg rw - cgroup2 cgroup2 rw\n34 31 0:29 /a /cg rw - cgroup c rw,cpu\n"));
    Write("/cg/cpu.max", noise("200000 100000\n"));
    Write("/cg/memory.max", noise("200000\n"));
    EXPECT_GE(UsableCpus(WithCpus(4, 64)), 1);
    EXPECT_LE(UsableCpus(WithCpus(4, 64)), 4);
    EXPECT_GT(CgroupMemoryMax(cgroup()), 0u);
  }
}

TEST_F(CpuCountTest, UnreadableFilesAreNoLimit) {
  MountV2("/g");
  std::filesystem::create_directories(root_ + "/sys/fs/cgroup/g/cpu.max");  // a directory
  EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt);
  Write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(CgroupCpuQuota(cgroup()), 2);
  if (geteuid() != 0) {
    chmod((root_ + "/sys/fs/cgroup/cpu.max").c_str(), 0);
    EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt);
  }
}

TEST_F(CpuCountTest, TheTightestMemoryLimitCounts) {
  MountV2("/a/b");
  Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(CgroupMemoryMax(cgroup()), SIZE_MAX);
  Write("/sys/fs/cgroup/a/memory.max", "2147483648\n");
  EXPECT_EQ(CgroupMemoryMax(cgroup()), size_t{1} << 31);
  Write("/sys/fs/cgroup/memory.max", "1073741824\n");
  EXPECT_EQ(CgroupMemoryMax(cgroup()), size_t{1} << 30);
}

TEST_F(CpuCountTest, Version1MemoryLimitHasALargeNumberForNone) {
  MountV1("/docker/abc");
  for (const char* none :
       {"9223372036854771712\n", "9223372036854710272\n", "9223372036854775807\n", "-1\n", "0\n"}) {
    Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", none);
    EXPECT_EQ(CgroupMemoryMax(cgroup()), SIZE_MAX) << none;
  }
  Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "536870912\n");
  EXPECT_EQ(CgroupMemoryMax(cgroup()), size_t{1} << 29);
  EXPECT_EQ(CgroupCpuQuota(cgroup()), std::nullopt);
}

TEST(WorkersFromEnvTest, UnsetAndEmptyAskForNothing) {
  EXPECT_EQ(WorkersFromEnv(nullptr).value(), std::nullopt);
  EXPECT_EQ(WorkersFromEnv("").value(), std::nullopt);
}

TEST(WorkersFromEnvTest, WholeNumbersInRangeAreTaken) {
  EXPECT_EQ(WorkersFromEnv("1").value(), 1);
  EXPECT_EQ(WorkersFromEnv("16").value(), 16);
  EXPECT_EQ(WorkersFromEnv("1024").value(), 1024);
}

TEST(WorkersFromEnvTest, EverythingElseIsAnErrorThatNamesVariableAndValue) {
  for (const char* bad :
       {"0", "1025", "-1", "+4", " 4", "4 ", "4x", "four", "1.5", "0x4", "99999999999999999999"}) {
    const absl::Status status = WorkersFromEnv(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(status.message(), std::string("WEFT_WORKERS=\"") + bad +
                                    "\": it has to be a whole number from 1 to 1024");
  }
  const absl::Status status = WorkersFromEnv(("\n\x01" + std::string(1000, 'x')).c_str()).status();
  EXPECT_NE(status.message().find("WEFT_WORKERS=\"\\n\\x01xxx"), std::string::npos) << status;
  EXPECT_LT(status.message().size(), 200u);
}

}  // namespace
}  // namespace sched::internal
