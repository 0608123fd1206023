// SPDX-License-Identifier: Apache-2.0
#include "netpoll/internal/file_ring.h"

#include <errno.h>
#include <linux/io_uring.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "netpoll/internal/syscalls.h"

namespace netpoll::internal {
namespace {

uint32_t LoadAcquire(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
void StoreRelease(uint32_t* word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

io_uring_sqe EntryOf(const Transfer& transfer) {
  io_uring_sqe entry;
  memset(&entry, 0, sizeof entry);
  entry.fd = transfer.fd;
  switch (transfer.kind) {
    case Transfer::Kind::kRead:
    case Transfer::Kind::kWrite:
      entry.opcode = transfer.kind == Transfer::Kind::kRead ? IORING_OP_READ : IORING_OP_WRITE;
      entry.addr = reinterpret_cast<uintptr_t>(transfer.buffer);
      entry.len = static_cast<uint32_t>(transfer.size);  // a part
      entry.off = transfer.offset;
      break;
    case Transfer::Kind::kSync:
    case Transfer::Kind::kSyncData:
      entry.opcode = IORING_OP_FSYNC;
      entry.fsync_flags = transfer.kind == Transfer::Kind::kSync ? 0 : IORING_FSYNC_DATASYNC;
      break;
  }
  return entry;
}

}  // namespace

std::unique_ptr<Companion> FileRing::Create() {
  std::unique_ptr<FileRing> ring(new FileRing);
  if (!ring->Open()) return nullptr;
  return ring;
}

bool FileRing::Open() {
  io_uring_params params;
  memset(&params, 0, sizeof params);
  params.flags = IORING_SETUP_CQSIZE;
  params.cq_entries = kCompletions;
  ring_fd_ = MakeRing(kEntries, &params);
  if (ring_fd_ < 0) return false;
  constexpr uint32_t kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP;
  if ((params.features & kNeeded) != kNeeded || !HasOperations()) return false;

  queues_bytes_ = std::max(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                           params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
  queues_ = static_cast<char*>(MapRing(ring_fd_, queues_bytes_, IORING_OFF_SQ_RING));
  entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
  entries_ = static_cast<io_uring_sqe*>(MapRing(ring_fd_, entries_bytes_, IORING_OFF_SQES));
  if (queues_ == nullptr || entries_ == nullptr) return false;
  const auto word = [this](uint32_t offset) { return reinterpret_cast<uint32_t*>(queues_ + offset); };
  in_head_ = word(params.sq_off.head);
  in_tail_ = word(params.sq_off.tail);
  in_slots_ = word(params.sq_off.array);
  in_mask_ = *word(params.sq_off.ring_mask);
  out_head_ = word(params.cq_off.head);
  out_tail_ = word(params.cq_off.tail);
  out_mask_ = *word(params.cq_off.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(queues_ + params.cq_off.cqes);

  event_fd_ = MakeEventFd();
  return event_fd_ >= 0 && RegisterWithRing(ring_fd_, IORING_REGISTER_EVENTFD, &event_fd_, 1) == 0;
}

// What seccomp refuses shows here, or when it is submitted.
bool FileRing::HasOperations() {
  constexpr unsigned int kOperations = 64;
  alignas(io_uring_probe) char buffer[sizeof(io_uring_probe) + kOperations * sizeof(io_uring_probe_op)] = {};
  if (RegisterWithRing(ring_fd_, IORING_REGISTER_PROBE, buffer, kOperations) < 0) return false;
  const auto* probe = reinterpret_cast<const io_uring_probe*>(buffer);
  for (const unsigned int operation : {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_FSYNC, IORING_OP_ASYNC_CANCEL}) {
    if (operation > probe->last_op || (probe->ops[operation].flags & IO_URING_OP_SUPPORTED) == 0) return false;
  }
  return true;
}

FileRing::~FileRing() {
  if (entries_ != nullptr) UnmapRing(entries_, entries_bytes_);
  if (queues_ != nullptr) UnmapRing(queues_, queues_bytes_);
  if (event_fd_ >= 0) Close(event_fd_);
  if (ring_fd_ >= 0) Close(ring_fd_);
}

bool FileRing::Start(Operation& operation) {
  if (under_way_.fetch_add(1, std::memory_order_relaxed) < kMostUnderWay) {
    io_uring_sqe entry = EntryOf(operation.transfer);
    entry.user_data = reinterpret_cast<uintptr_t>(&operation);
    begun_.fetch_add(1, std::memory_order_release);  // order: begun
    if (Submit(entry)) {
      Collect();
      return true;
    }
  }
  under_way_.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

// Not submitted: then it takes as long as it takes.
void FileRing::Cancel(Operation& operation) {
  io_uring_sqe entry;
  memset(&entry, 0, sizeof entry);
  entry.opcode = IORING_OP_ASYNC_CANCEL;
  entry.fd = -1;
  entry.addr = reinterpret_cast<uintptr_t>(&operation);
  (void)Submit(entry);  // its own completion has no operation
  Collect();
}

// The kernel says what it has taken by the queue's head, whatever the system call returns.
bool FileRing::Submit(const io_uring_sqe& entry) {
  std::lock_guard hold(submit_mutex_);
  const uint32_t tail = *in_tail_;
  const uint32_t index = tail & in_mask_;
  entries_[index] = entry;
  in_slots_[index] = index;
  StoreRelease(in_tail_, tail + 1);
  while (SubmitToRing(ring_fd_, 1) == -EINTR && LoadAcquire(in_head_) != tail + 1) {
  }
  if (LoadAcquire(in_head_) == tail + 1) return true;
  StoreRelease(in_tail_, tail);
  return false;
}

void FileRing::Collect() {
  constexpr int kBatch = 32;
  struct Done {
    Operation* operation;
    int32_t result;
  } done[kBatch];
  int count;
  do {
    count = 0;
    {
      fiber::internal::SpinLockHolder hold(collect_lock_);
      uint32_t head = *out_head_;
      const uint32_t tail = LoadAcquire(out_tail_);
      for (; head != tail && count < kBatch; ++head) {
        const io_uring_cqe& completion = completions_[head & out_mask_];
        done[count++] = {reinterpret_cast<Operation*>(completion.user_data), completion.res};
      }
      StoreRelease(out_head_, head);
    }
    (void)begun_.load(std::memory_order_acquire);  // order: begun
    for (int i = 0; i < count; ++i) {
      Operation* const operation = done[i].operation;
      if (operation == nullptr) continue;  // a cancellation
      under_way_.fetch_sub(1, std::memory_order_relaxed);
      operation->result = done[i].result;
      operation->done.Set();
    }
  } while (count == kBatch);
}

}  // namespace netpoll::internal
