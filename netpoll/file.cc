// SPDX-License-Identifier: Apache-2.0
#include "netpoll/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "netpoll/internal/file_call.h"
#include "netpoll/internal/file_status.h"
#include "netpoll/internal/syscalls.h"

namespace netpoll {

using fiber::Deadline;
using internal::ClosedFileStatus;
using internal::FileStatus;
using internal::MakeCall;
using internal::MakeDetachedCall;
using internal::MakeTransfer;
using internal::Transfer;

namespace {

// What is done at a time: a cancellation waits for no more, and other fibers for no longer a copy.
constexpr size_t kPart = size_t{1} << 20;
constexpr size_t kReadAtOnce = size_t{64} << 10;

// The kernel's paths end at a zero.
absl::Status CheckPath(std::string_view path, std::string_view operation) {
  if (path.find('\0') == std::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(operation), ": the path has a zero byte in it"));
}

// The kernel's offsets are signed, and io_uring takes -1 for something else.
absl::Status CheckRange(uint64_t offset, size_t size, std::string_view operation,
                        std::string_view path) {
  if (offset <= INT64_MAX && size <= INT64_MAX - offset) return absl::OkStatus();
  return FileStatus(EINVAL, operation, path);
}

absl::StatusOr<int> FlagsOf(const FileOptions& options) {
  const bool writes = options.write || options.append;
  if (!options.read && !writes) {
    return absl::InvalidArgumentError("FileOptions: neither `read` nor `write` nor `append`");
  }
  if (options.exclusive && !options.create) {
    return absl::InvalidArgumentError("FileOptions: `exclusive` without `create`");
  }
  if (options.truncate && !writes) {
    return absl::InvalidArgumentError("FileOptions: `truncate` without `write`");
  }
  if (options.write && options.append) {
    return absl::InvalidArgumentError("FileOptions: `append` is for Append(), `write` for Pwrite()");
  }
  int flags = !writes ? O_RDONLY : options.read ? O_RDWR : O_WRONLY;
  if (options.append) flags |= O_APPEND;
  if (options.create) flags |= O_CREAT;
  if (options.exclusive) flags |= O_EXCL;
  if (options.truncate) flags |= O_TRUNC;
  return flags;
}

FileType TypeOfMode(uint16_t mode) {
  if (S_ISREG(mode)) return FileType::kRegular;
  if (S_ISDIR(mode)) return FileType::kDirectory;
  if (S_ISLNK(mode)) return FileType::kSymlink;
  return FileType::kOther;
}

FileType TypeOfEntry(unsigned char type) {
  switch (type) {
    case DT_UNKNOWN: return FileType::kUnknown;
    case DT_REG: return FileType::kRegular;
    case DT_DIR: return FileType::kDirectory;
    case DT_LNK: return FileType::kSymlink;
    default: return FileType::kOther;
  }
}

FileStat StatOf(const struct statx& kernels) {
  FileStat stat;
  stat.type = TypeOfMode(kernels.stx_mode);
  stat.permissions = kernels.stx_mode & 07777;
  stat.size = kernels.stx_size;
  stat.inode = kernels.stx_ino;
  stat.links = kernels.stx_nlink;
  stat.owner = kernels.stx_uid;
  stat.group = kernels.stx_gid;
  stat.modified = absl::FromUnixSeconds(kernels.stx_mtime.tv_sec) +
                  absl::Nanoseconds(kernels.stx_mtime.tv_nsec);
  return stat;
}

// The following may block, and are called where they may.

// OpenFd closes a descriptor, whatever is thrown meanwhile.
struct OpenFd {
  const int fd;
  ~OpenFd() {
    if (fd >= 0) internal::Close(fd);
  }
};

absl::StatusOr<std::string> ReadFileHere(const std::string& path, size_t max) {
  const OpenFd open{internal::OpenFile(path.c_str(), O_RDONLY, 0)};
  const int fd = open.fd;
  if (fd < 0) return FileStatus(-fd, "open", path);
  // What the kernel makes up as it is read (/proc) has no size; what grows meanwhile has more than it says.
  struct statx stat {};
  int64_t n = internal::StatFile(fd, &stat);
  const size_t said = n < 0 ? 0 : std::min<uint64_t>(stat.stx_size, max);
  // Of /proc/sys there is only what the first read asks for.
  const size_t first = said == 0 ? kReadAtOnce : said + 1;
  std::string data;
  size_t filled = 0;
  do {
    if (filled == data.size()) data.resize(filled == 0 ? first : std::max(2 * filled, kReadAtOnce));
    n = internal::ReadAt(fd, data.data() + filled, std::min(data.size() - filled, kPart), filled);
    if (n > 0) filled += static_cast<size_t>(n);
  } while (n > 0 && filled <= max);
  if (n < 0) return FileStatus(static_cast<int>(-n), "read", path);
  if (filled > max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("read ", path, ": there are more than the ", max, " bytes that `max` allows; raise it "));
  }
  data.resize(filled);
  return data;
}

absl::StatusOr<std::vector<DirectoryEntry>> ListHere(const std::string& path) {
  const OpenFd open{internal::OpenFile(path.c_str(), O_RDONLY | O_DIRECTORY, 0)};
  const int fd = open.fd;
  if (fd < 0) return FileStatus(-fd, "list", path);
  std::vector<DirectoryEntry> entries;
  alignas(dirent64) char buffer[16 << 10];
  ssize_t n;
  while ((n = internal::ReadFolder(fd, buffer, sizeof buffer)) > 0) {
    for (ssize_t at = 0; at < n;) {
      const auto* entry = reinterpret_cast<const dirent64*>(buffer + at);
      const std::string_view name(entry->d_name);
      if (name != "." && name != "..") entries.push_back({std::string(name), TypeOfEntry(entry->d_type)});
      at += entry->d_reclen;
    }
  }
  if (n < 0) return FileStatus(static_cast<int>(-n), "list", path);
  return entries;
}

// A call that changes something in a file system, and is waited for to the end.
template <class F>
absl::Status Change(std::string_view operation, std::string_view subject, Deadline deadline, F change) {
  if (absl::Status status = CheckPath(subject, operation); !status.ok()) return status;
  int error = 0;
  absl::Status status = MakeCall([&] { error = change(); }, deadline);
  if (status.ok() && error < 0) return FileStatus(-error, operation, subject);
  return status;
}

}  // namespace

absl::StatusOr<File> File::OpenHere(const std::string& path, int flags, mode_t permissions) {
  std::string name = path;  // while there is no descriptor yet that would be lost if it throws
  const int fd = internal::OpenFile(path.c_str(), flags, permissions);
  if (fd < 0) return FileStatus(-fd, "open", path);
  struct statx stat {};
  const bool is_known = internal::StatFile(fd, &stat) == 0;
  const bool has_places = is_known && (S_ISREG(stat.stx_mode) || S_ISBLK(stat.stx_mode));
  return File(fd, has_places, (flags & O_APPEND) != 0, std::move(name));
}

absl::StatusOr<File> File::Open(std::string_view path, const FileOptions& options, Deadline deadline) {
  if (absl::Status status = CheckPath(path, "open"); !status.ok()) return status;
  const absl::StatusOr<int> flags = FlagsOf(options);
  if (!flags.ok()) return flags.status();
  return MakeDetachedCall(
      [path = std::string(path), flags = *flags, permissions = options.permissions] {
        return OpenHere(path, flags, permissions);
      },
      deadline);
}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    Close().IgnoreError();
    fd_ = std::exchange(other.fd_, -1);
    may_use_ring_ = other.may_use_ring_;
    appends_ = other.appends_;
    path_ = std::move(other.path_);
  }
  return *this;
}

File::~File() { Close().IgnoreError(); }

absl::Status File::Close() {
  if (fd_ < 0) return ClosedFileStatus();
  int error = 0;
  internal::MakeCallRegardless([&error, fd = std::exchange(fd_, -1)] { error = internal::CloseFile(fd); });
  return error < 0 ? FileStatus(-error, "close", path_) : absl::OkStatus();
}

absl::StatusOr<size_t> File::Pread(std::span<char> buffer, uint64_t offset, Deadline deadline) const {
  if (fd_ < 0) return ClosedFileStatus();
  if (absl::Status status = CheckRange(offset, buffer.size(), "read", path_); !status.ok()) return status;
  size_t filled = 0;
  int64_t n = 0;
  do {
    const size_t left = buffer.size() - filled;
    absl::Status status = MakeTransfer({.kind = Transfer::Kind::kRead,
                                        .fd = fd_,
                                        .buffer = buffer.data() + filled,
                                        .size = std::min(left, kPart),
                                        .offset = offset + filled},
                                       may_use_ring_, deadline, &n);
    if (!status.ok()) return status;
    if (n < 0) return FileStatus(static_cast<int>(-n), "read", path_);
    filled += static_cast<size_t>(n);
  } while (n > 0 && filled < buffer.size());
  return filled;
}

IoResult File::Pwrite(std::string_view data, uint64_t offset, Deadline deadline) const {
  return WriteParts(data, offset, false, deadline);
}

IoResult File::Append(std::string_view data, Deadline deadline) const {
  return WriteParts(data, 0, true, deadline);
}

// At the end: O_APPEND has the kernel ignore the offset.
IoResult File::WriteParts(std::string_view data, uint64_t offset, bool is_at_end,
                          Deadline deadline) const {
  IoResult result;
  if (fd_ < 0) {
    result.status = ClosedFileStatus();
    return result;
  }
  if (is_at_end != appends_) {  // O_APPEND ignores offsets; without it there is none that means the end
    result.status = absl::InvalidArgumentError(
        absl::StrCat("write ", path_, is_at_end ? ": Append(), but it was not opened with FileOptions::append"
                                                : ": Pwrite(), but it was opened with FileOptions::append, for Append() only"));
    return result;
  }
  result.status = CheckRange(offset, data.size(), "write", path_);
  while (result.ok() && (result.bytes < data.size() || data.empty())) {
    int64_t n = 0;
    result.status = MakeTransfer({.kind = Transfer::Kind::kWrite,
                                  .fd = fd_,
                                  .buffer = const_cast<char*>(data.data()) + result.bytes,
                                  .size = std::min(data.size() - result.bytes, kPart),
                                  .offset = is_at_end ? 0 : offset + result.bytes},
                                 may_use_ring_, deadline, &n);
    if (!result.ok()) break;
    if (n < 0) result.status = FileStatus(static_cast<int>(-n), "write", path_);
    if (n == 0 && !data.empty()) result.status = FileStatus(EIO, "write", path_);  // or it would go on for ever
    if (n <= 0) break;
    result.bytes += static_cast<size_t>(n);
  }
  return result;
}

absl::Status File::Sync(bool with_metadata, Deadline deadline) const {
  if (fd_ < 0) return ClosedFileStatus();
  int64_t n = 0;
  absl::Status status = MakeTransfer(
      {.kind = with_metadata ? Transfer::Kind::kSync : Transfer::Kind::kSyncData, .fd = fd_},
      may_use_ring_, deadline, &n);
  if (status.ok() && n < 0) return FileStatus(static_cast<int>(-n), "sync", path_);
  return status;
}

absl::Status File::Fsync(Deadline deadline) const { return Sync(true, deadline); }

absl::Status File::Fdatasync(Deadline deadline) const { return Sync(false, deadline); }

absl::Status File::Truncate(uint64_t size, Deadline deadline) const {
  if (fd_ < 0) return ClosedFileStatus();
  if (absl::Status status = CheckRange(size, 0, "truncate", path_); !status.ok()) return status;
  int error = 0;
  absl::Status status = MakeCall([&] { error = internal::SetFileSize(fd_, size); }, deadline);
  if (status.ok() && error < 0) return FileStatus(-error, "truncate", path_);
  return status;
}

absl::StatusOr<FileStat> File::Stat(Deadline deadline) const {
  if (fd_ < 0) return ClosedFileStatus();
  struct statx stat {};
  int error = 0;
  absl::Status status = MakeCall([&] { error = internal::StatFile(fd_, &stat); }, deadline);
  if (!status.ok()) return status;
  if (error < 0) return FileStatus(-error, "stat", path_);
  return StatOf(stat);
}

absl::StatusOr<uint64_t> File::Size(Deadline deadline) const {
  const absl::StatusOr<FileStat> stat = Stat(deadline);
  if (!stat.ok()) return stat.status();
  return stat->size;
}

absl::StatusOr<std::string> ReadFile(std::string_view path, size_t max, Deadline deadline) {
  if (absl::Status status = CheckPath(path, "open"); !status.ok()) return status;
  return MakeDetachedCall([path = std::string(path), max] { return ReadFileHere(path, max); }, deadline);
}

absl::Status WriteFile(std::string_view path, std::string_view data, Deadline deadline) {
  absl::StatusOr<File> file = File::Open(
      path, {.read = false, .write = true, .create = true, .truncate = true}, deadline);
  if (!file.ok()) return file.status();
  absl::Status status = file->Pwrite(data, 0, deadline).status;
  status.Update(file->Close());
  return status;
}

absl::StatusOr<std::vector<DirectoryEntry>> ListDirectory(std::string_view path, Deadline deadline) {
  if (absl::Status status = CheckPath(path, "list"); !status.ok()) return status;
  return MakeDetachedCall([path = std::string(path)] { return ListHere(path); }, deadline);
}

absl::StatusOr<FileStat> StatPath(std::string_view path, Deadline deadline) {
  if (absl::Status status = CheckPath(path, "stat"); !status.ok()) return status;
  return MakeDetachedCall(
      [path = std::string(path)]() -> absl::StatusOr<FileStat> {
        struct statx stat {};
        const int error = internal::StatPath(path.c_str(), true, &stat);
        if (error < 0) return FileStatus(-error, "stat", path);
        return StatOf(stat);
      },
      deadline);
}

absl::Status RenamePath(std::string_view from, std::string_view to, Deadline deadline) {
  const std::string old_name(from);
  const std::string new_name(to);
  return Change("rename", absl::StrCat(old_name, " to ", new_name), deadline,
                [&] { return internal::RenamePath(old_name.c_str(), new_name.c_str()); });
}

absl::Status RemoveFile(std::string_view path, Deadline deadline) {
  const std::string name(path);
  return Change("remove", name, deadline, [&] { return internal::RemovePath(name.c_str(), false); });
}

absl::Status RemoveDirectory(std::string_view path, Deadline deadline) {
  const std::string name(path);
  return Change("remove", name, deadline, [&] { return internal::RemovePath(name.c_str(), true); });
}

absl::Status CreateDirectory(std::string_view path, mode_t permissions, Deadline deadline) {
  const std::string name(path);
  return Change("create", name, deadline,
                [&] { return internal::MakeFolder(name.c_str(), permissions); });
}

}  // namespace netpoll
