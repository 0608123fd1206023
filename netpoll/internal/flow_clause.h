// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_NETPOLL_INTERNAL_FLOW_CLAUSE_H_
#define WEFT_NETPOLL_INTERNAL_FLOW_CLAUSE_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/deadline.h"
#include "fiber/internal/clause.h"
#include "fiber/internal/wait.h"
#include "netpoll/internal/direction.h"

namespace netpoll::internal {

class Descriptor;
struct Flow;

// FlowClause is the clause of a select that waits for news of a descriptor.
//
// A slot takes one waiter, whoever has the flow locked. So the select locks the flow, as a call would, and has it until it
// is over; while somebody else has it, the clause is queued for it. Being handed the flow is no news: the select then looks
// at everything again, this time with the flow.
//
// Once it has the flow it clears `ready` and asks poll(2), as a call clears it and makes its system call; news that comes
// later is found by the link (poll_slot.h). A flow that is left with `ready` cleared may have something to read: so it is
// no longer taken for drained.
class FlowClause : public fiber::internal::Clause {
 public:
  // Null: of a stream that is not there, which counts as closed.
  FlowClause(Descriptor* descriptor, Direction direction)
      : descriptor_(descriptor), direction_(direction) {}
  FlowClause(FlowClause&& other) noexcept  // of one that is in no select
      : FlowClause(other.descriptor_, other.direction_) {
    is_enabled = other.is_enabled;
  }
  ~FlowClause() override { Release(); }

  void Prepare() override;
  void Release() override;
  bool IsReady() override { return is_over_; }
  bool TryLink(fiber::internal::Wait& wait) override;
  void Unlink(fiber::internal::Wait& wait) override;
  fiber::Deadline deadline() const override { return armed_; }
  bool IsOver(uint32_t outcome) override;

 protected:
  // OK: there is news.
  const absl::Status& status() const { return status_; }

 private:
  enum class Hold : uint8_t { kNothing, kQueued, kFlow };

  Flow& flow() const;
  fiber::Deadline FlowDeadline() const;
  // Whether it is closed, too late, or there is news already. With the flow.
  void Look();
  void End(absl::Status status);
  [[nodiscard]] bool TryLinkInQueue() ABSL_NO_THREAD_SAFETY_ANALYSIS;

  Descriptor* const descriptor_;
  const Direction direction_;
  Hold hold_ = Hold::kNothing;  // kQueued, kFlow: and a reference
  bool must_look_ = false;      // the flow was another's since it was last looked at
  bool is_over_ = false;
  fiber::Deadline armed_;  // of the flow, as the select has seen it
  absl::Status status_;
};

}  // namespace netpoll::internal

#endif  // WEFT_NETPOLL_INTERNAL_FLOW_CLAUSE_H_
