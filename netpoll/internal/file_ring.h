// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_FILE_RING_H_
#define WEFT_NETPOLL_INTERNAL_FILE_RING_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "fiber/event.h"
#include "fiber/internal/atomic.h"
#include "fiber/internal/spin_lock.h"
#include "netpoll/internal/file_call.h"
#include "netpoll/internal/poller.h"

struct io_uring_cqe;
struct io_uring_sqe;

namespace netpoll::internal {

// FileRing is an instance of io_uring(7), one for a runtime, that reads, writes and syncs files for its fibers. What it
// completes it signals by an eventfd, which the poller watches.
//
//   a fiber                                          any worker
//   lock, fill the one entry, enter the kernel,      in the poller: the eventfd has news. Or it has just
//     unlock                                           entered the kernel
//   collect: it may be done already                  collect: lock, copy what is there, unlock;
//   wait for the operation's event                     write the result, set the event    ← last touch
//   gave up: enter a cancellation for it; wait
//     on, whoever is cancelled
//
// Entries are submitted one by one: the kernel takes one at a time anyway, under a lock of its own, so the queue in is never full;
// and one that it refuses can be taken back, which it must be, since it names a buffer. Completions are never too many for the
// queue out: there is a bound to the operations under way, beyond which callers go elsewhere.
//
// Rejected: to share the ring between threads without a lock, each adding an entry and entering the kernel for one: it is never
// lost, but who is refused cannot take his back, since another may be submitting it. A ring for each worker: a fiber that gives up
// may be on another by then. Signals for asynchronous completions only (IORING_REGISTER_EVENTFD_ASYNC): those of a page that was
// waited for do not count as such.
//
// Thread safety: any worker of the runtime. Lifetime: no operation is under way when it is destroyed. A child of fork() does not
// touch it.
class FileRing final : public Companion {
 public:
  // One transfer by the ring.
  struct Operation {
    explicit Operation(const Transfer& what) : transfer(what) {}

    const Transfer transfer;
    int32_t result = 0;  // as of the system call, or -errno; written before `done` is set
    fiber::Event done;
  };

  // Null: the kernel has none (before 5.6), or lets us have none (seccomp, kernel.io_uring_disabled, descriptors, memory). Never
  // blocks.
  static std::unique_ptr<Companion> Create();
  ~FileRing() override;

  int fd() const override { return event_fd_; }
  void OnNews() override { Collect(); }

  // Begins it; from now on until it is done the kernel may touch the buffer. False: it is not begun, the kernel refused it or
  // there are too many. Never blocks.
  [[nodiscard]] bool Start(Operation& operation);
  // It is to end soon, with whatever result: -ECANCELED if it was not begun. Never blocks.
  void Cancel(Operation& operation);

 private:
  static constexpr unsigned int kEntries = 4;
  static constexpr unsigned int kCompletions = 1024;
  // Each may have a completion, and one of its cancellation.
  static constexpr int kMostUnderWay = kCompletions / 2;

  FileRing() = default;
  bool Open();
  bool HasOperations();
  bool Submit(const io_uring_sqe& entry);
  void Collect();

  int ring_fd_ = -1;  // this and what follows: const once it is open
  int event_fd_ = -1;
  char* queues_ = nullptr;  // mapped: what both sides read and write
  size_t queues_bytes_ = 0;
  io_uring_sqe* entries_ = nullptr;  // mapped
  size_t entries_bytes_ = 0;
  // In `queues_`. The kernel orders its side as the acquire and release here.
  uint32_t* in_head_ = nullptr;   // the kernel's
  uint32_t* in_tail_ = nullptr;   // ours
  uint32_t* in_slots_ = nullptr;
  uint32_t in_mask_ = 0;
  uint32_t* out_head_ = nullptr;  // ours
  uint32_t* out_tail_ = nullptr;  // the kernel's
  uint32_t out_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;

  fiber::internal::BlockingMutex submit_mutex_;  // for the queue in, and across the system call
  fiber::internal::SpinLock collect_lock_;       // for the queue out
  Atomic<int> under_way_{0};
  // order: begun — release before an operation is submitted, acquire after completions were collected: what is in it is visible to
  // who completes it. The kernel orders the two anyway, but says so to neither language nor sanitizers.
  Atomic<uint64_t> begun_{0};
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_FILE_RING_H_
