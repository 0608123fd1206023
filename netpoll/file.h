// SPDX-License-Identifier: Apache-2.0
//
// Files and directories, without holding up a worker.
//
//   absl::Status Save(std::string_view path, std::string_view data) {
//     auto file = netpoll::File::Open(path, {.write = true, .create = true, .truncate = true});
//     if (!file.ok()) return file.status();
//     if (netpoll::IoResult written = file->Pwrite(data, 0); !written.ok()) return written.status;
//     if (absl::Status status = file->Fsync(); !status.ok()) return status;
//     return file->Close();
//   }
//
// Files are always ready, says epoll, and then block whoever reads what is not in memory. So what may block is done
// elsewhere while the fiber parks: by the kernel (io_uring), where it offers that and the environment does not say
// WEFT_IO_URING=0, and otherwise by the threads of fiber/blocking_detached.h, whose number bounds what is done at a time.
// What a file has in memory is read at once. On a plain thread, and in simulation, all calls are plain system calls, which nothing
// ends once they are begun.
//
// Errors, by code; netpoll::ErrnoOf() has the errno:
//
// | code                | means                                                                       |
// |---------------------|-----------------------------------------------------------------------------|
// | kNotFound           | no such file or directory                                                      |
// | kAlreadyExists      | there is one already                                                        |
// | kPermissionDenied   | not allowed; a file system that is read-only                                |
// | kInvalidArgument    | not with this kind of file (a directory, a pipe), a bad path, not opened for it |
// | kFailedPrecondition | Close() was called; a directory that is not empty, another file system, busy   |
// | kResourceExhausted  | room on the device, quota, descriptors, threads, memory: the message names the limit |
// | kDataLoss           | the device failed (EIO): what was written before may be lost                |
// | kUnavailable        | anything else                                                               |
// | kDeadlineExceeded, kCancelled | the caller's time is up, or he was cancelled                      |
//
// Whatever takes a path throws std::bad_alloc.
//
// Deadlines and cancellation are looked at before anything is begun, and between parts of a MiB. A part that was begun refers
// to the caller's buffer, so a call that is cancelled or late asks the kernel to stop, and returns when it has: with io_uring
// that is at once for what has not reached the device, with threads when the system call is over. Opening, listing, and reading a
// whole file own what they need: there the wait ends at once, and what comes of the call is dropped.
//
// Terminals, pipes and the like can be read without an end; for them there is netpoll/wait.h.
#ifndef WEFT_NETPOLL_FILE_H_
#define WEFT_NETPOLL_FILE_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/deadline.h"
#include "netpoll/stream.h"

namespace netpoll {

// FileOptions says how a file is opened.
struct FileOptions {
  bool read = true;
  bool write = false;
  bool append = false;        // for Append() only: what is written goes to the end, whoever else writes
  bool create = false;        // if there is none
  bool exclusive = false;     // with `create`: there must be none
  bool truncate = false;      // what is in it goes
  mode_t permissions = 0666;  // of one that is created, less the process's umask
};

enum class FileType : uint8_t { kUnknown, kRegular, kDirectory, kSymlink, kOther };

// FileStat is what a file system knows of a file.
struct FileStat {
  FileType type = FileType::kUnknown;
  mode_t permissions = 0;
  uint64_t size = 0;   // bytes
  uint64_t inode = 0;
  uint64_t links = 0;  // names that it has
  uid_t owner = 0;
  gid_t group = 0;
  absl::Time modified;
};

// DirectoryEntry is one name in a directory.
struct DirectoryEntry {
  std::string name;
  FileType type = FileType::kUnknown;  // which some file systems do not say

  friend bool operator==(const DirectoryEntry&, const DirectoryEntry&) = default;
};

// File is an open file, read and written at any place. It has no position of its own, so any number of calls may go on at once.
//
//   char header[512];
//   absl::StatusOr<size_t> n = file.Pread(header, 0, absl::Seconds(1));
//   if (!n.ok()) return n.status();
//   if (*n < sizeof header) return absl::DataLossError("cut off");
//
// Thread safety: any fiber, any thread; but for Close(), assignment and destruction, which nothing else may be beside.
// Memory ordering: a read that begins when a write has returned sees what was written.
// Lifetime: independent of runtimes. A child of fork() has it, too.
class [[nodiscard]] File {
 public:
  // Opens it, for what `options` say. Parks the fiber; blocks the thread when called from a plain one. Errors as above, and
  // kInvalidArgument: options that contradict each other. When it fails by its deadline or cancellation, the file may be
  // opened all the same a while later (created, emptied), and is closed then.
  static absl::StatusOr<File> Open(std::string_view path, const FileOptions& options = {},
                                   fiber::Deadline deadline = {});

  // Closed: every call fails with kFailedPrecondition. Never blocks.
  File() = default;
  File(File&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        may_use_ring_(other.may_use_ring_),
        appends_(other.appends_),
        path_(std::move(other.path_)) {}
  // Closes what it has, as the destructor.
  File& operator=(File&& other) noexcept;
  // Close(), whose result is lost: call that if you have written. Parks the fiber; blocks the thread when called from a plain
  // one.
  ~File();

  // Reads from `offset` on until `buffer` is full or the file ends. Returns how many bytes: less than buffer.size() only at the
  // end, 0 at or behind it. Parks the fiber while the bytes come from the device; blocks the thread when called from a plain
  // one. Errors as above; what is in the buffer then is undefined.
  absl::StatusOr<size_t> Pread(std::span<char> buffer, uint64_t offset,
                               fiber::Deadline deadline = {}) const;

  // Writes all of `data` at `offset`, or says how many bytes were written and why no more. They are on the device when Fsync()
  // says so. Parks the fiber; blocks the thread when called from a plain one. Errors as above.
  IoResult Pwrite(std::string_view data, uint64_t offset, fiber::Deadline deadline = {}) const;
  // The same at the end of a file opened with FileOptions::append, wherever that is by then.
  IoResult Append(std::string_view data, fiber::Deadline deadline = {}) const;

  // Until what was written is on the device; Fdatasync() leaves out what is not needed to read it again, as the time of the
  // change. Parks the fiber; blocks the thread when called from a plain one. Errors as above. After kDataLoss another call that
  // succeeds says nothing of what was lost.
  absl::Status Fsync(fiber::Deadline deadline = {}) const;
  absl::Status Fdatasync(fiber::Deadline deadline = {}) const;

  // Cuts it off at `size` bytes, or fills it up with zeroes. Parks the fiber; blocks the thread when called from a plain one.
  // Errors as above.
  absl::Status Truncate(uint64_t size, fiber::Deadline deadline = {}) const;

  // What the file system knows of it; its size in bytes. Parks the fiber; blocks the thread when called from a plain one.
  // Errors as above.
  absl::StatusOr<FileStat> Stat(fiber::Deadline deadline = {}) const;
  absl::StatusOr<uint64_t> Size(fiber::Deadline deadline = {}) const;

  // Closes it, whoever is cancelled: there is no deadline to this. (If all threads stay in other calls for a second, the worker
  // does it.) Parks the fiber; blocks the thread when called from a plain one. An error is about what was written before, which
  // may be lost; closed it is. kFailedPrecondition: it was already.
  absl::Status Close();

  // -1: closed. Never blocks.
  int fd() const { return fd_; }

 private:
  File(int fd, bool may_use_ring, bool appends, std::string path)
      : fd_(fd), may_use_ring_(may_use_ring), appends_(appends), path_(std::move(path)) {}

  static absl::StatusOr<File> OpenHere(const std::string& path, int flags, mode_t permissions);
  IoResult WriteParts(std::string_view data, uint64_t offset, bool is_at_end,
                      fiber::Deadline deadline) const;
  absl::Status Sync(bool with_metadata, fiber::Deadline deadline) const;

  int fd_ = -1;
  bool may_use_ring_ = false;  // pread(2) and io_uring mean the same: not for what has no places, as a pipe
  bool appends_ = false;       // opened with FileOptions::append
  std::string path_;           // for messages
};

// The whole of a file, of at most `max` bytes. Parks the fiber; blocks the thread when called from a plain one. Errors as for
// File, and kResourceExhausted: there are more.
//
//   absl::StatusOr<std::string> config = netpoll::ReadFile("/etc/server.conf", 1 << 20);
absl::StatusOr<std::string> ReadFile(std::string_view path, size_t max, fiber::Deadline deadline = {});

// Makes `data` all there is in a file, which is created if there is none. Where it fails, some of it may be there: to replace a
// file as one, write another and RenamePath() that. Parks the fiber; blocks the thread when called from a plain one. Errors as
// for File.
absl::Status WriteFile(std::string_view path, std::string_view data, fiber::Deadline deadline = {});

// The names in a directory, but "." and "..", in no order. Parks the fiber; blocks the thread when called from a plain one. Errors
// as for File.
absl::StatusOr<std::vector<DirectoryEntry>> ListDirectory(std::string_view path,
                                                          fiber::Deadline deadline = {});

// What the file system knows of what `path` leads to. Parks the fiber; blocks the thread when called from a plain one. Errors
// as for File.
absl::StatusOr<FileStat> StatPath(std::string_view path, fiber::Deadline deadline = {});

// Gives a file or directory another name in its file system, in one step; a file of that name goes. Parks the fiber until it is
// done or has failed, whoever is cancelled meanwhile; blocks the thread when called from a plain one. Errors as for File.
absl::Status RenamePath(std::string_view from, std::string_view to, fiber::Deadline deadline = {});

// Takes away a file's name (RemoveDirectory: that of an empty directory), and the file with its last one. Waits as RenamePath().
// Errors as for File.
absl::Status RemoveFile(std::string_view path, fiber::Deadline deadline = {});
absl::Status RemoveDirectory(std::string_view path, fiber::Deadline deadline = {});

// Makes a directory, with these permissions less the process's umask. Waits as RenamePath(). Errors as for File.
absl::Status CreateDirectory(std::string_view path, mode_t permissions = 0777,
                             fiber::Deadline deadline = {});

}  // namespace netpoll

#endif  // WEFT_NETPOLL_FILE_H_
