// SPDX-License-Identifier: Apache-2.0
//
// How an item gets from one to the other, and why none is lost or doubled.
//
//   Send()                                        Receive()
//   lock the channel                              lock the channel
//   somebody waits to receive:                    the buffer holds something: take the oldest;
//     claim the first that can be claimed,          somebody waits to send: claim the first, move its item
//     move the item into its place                  to the end of the buffer
//   else there is room: into the buffer           else somebody waits to send: claim it, take its item
//   else link, unlock, park                       else link, unlock, park
//   unlock                    ← last touch        unlock                    ← last touch
//   unpark the claimed                            unpark the claimed
//
// An item changes hands under the lock, and only after the other side was claimed: its deadline, a cancellation, a close or
// another clause of its select can no longer end its wait another way. Who could not be claimed has given up, and has its
// item, or none. So what a wait's outcome says is what happened to the item.
//
// While the channel is unlocked: somebody who has not given up waits to receive only if the buffer is empty, to send only
// if it is full; both at once never. So whoever finds room or an item overtakes nobody, and items leave in the order in
// which they came, through the buffer or past it.
//
// A claimed sender's item is moved from while it is Parking or Parked; it runs again only after the unpark, which comes
// after the move. The same for where a receiver wants its item.
#include "fiber/channel.h"

namespace fiber::internal {

Waiter* ChannelCore::ClaimFirst(WaitQueue& queue, ClaimedWaiters& claimed) {
  while (Waiter* first = queue.first()) {
    if (claimed.Claim(queue, *first)) return first;
  }
  return nullptr;
}

absl::Status ChannelCore::ParkLocked(Wait wait, WaitQueue& queue, void* value, uint64_t word,
                                     Deadline deadline) {
  const bool is_sender = &queue == &senders_;
  Waiter& waiter = wait.Open();
  waiter.value = value;
  queue.PushBack(waiter);
  word_.UnlockQueue(word | kHasWaiters);
  const uint32_t outcome = wait.Park(deadline);
  if (outcome == 0) return absl::OkStatus();
  if (outcome == kClosedOutcome) return is_sender ? ClosedForSend() : ClosedAndDrained();
  word = word_.LockQueue();  // nobody has claimed it
  if (waiter.is_linked) queue.Remove(waiter);
  word_.UnlockQueue(WithWaiters(word));
  return wait.StatusOf(outcome);
}

bool ChannelCore::CloseNow() {
  ClaimedWaiters claimed;
  const uint64_t word = word_.LockQueue();
  if ((word & kClosed) != 0) {
    word_.UnlockQueue(word);
    return false;
  }
  for (WaitQueue* queue : {&receivers_, &senders_}) {
    while (Waiter* first = queue->first()) {
      claimed.Claim(*queue, *first, first->clause | kClosedOutcome);
    }
  }
  word_.UnlockQueue((word | kClosed) & ~kHasWaiters);
  claimed.Unpark();
  return true;
}

absl::Status ChannelCore::ClosedForSend() {
  return absl::FailedPreconditionError("send on a closed channel");
}

absl::Status ChannelCore::ClosedAndDrained() {
  return absl::OutOfRangeError("the channel is closed and drained");
}

absl::Status ChannelCore::WouldPark() {
  return absl::DeadlineExceededError("the channel is not ready");
}

void ChannelCore::DieWithWaiters() {
  const uint64_t word = word_.LockQueue();
  const size_t senders = senders_.size();
  const size_t receivers = receivers_.size();
  word_.UnlockQueue(word);
  Fatal("fiber::Channel %p was destroyed while %zu waited to send and %zu to receive",
        static_cast<void*>(this), senders, receivers);
}

}  // namespace fiber::internal
