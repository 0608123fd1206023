// SPDX-License-Identifier: Apache-2.0
//
// What can be cancelled, by fibers: nodes, their members, clauses, callbacks and nodes below; shields; a scope.
#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <source_location>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "tests/model/case_list.h"
#include "tests/model/explorer.h"

#define private public  // a scope's child is a fiber of the case
#include "fiber/scope.h"
#undef private
//
#include "fiber/cancel.cc"
#include "fiber/deadline.cc"
#include "fiber/event.cc"
#include "fiber/internal/ambient.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "fiber/mutex.cc"
#include "fiber/scope.cc"
#include "fiber/select.cc"
#include "fiber/this_fiber.cc"
#include "fiber/wait_group.cc"
#include "tests/model/fibers.cc"
#include "tests/model/fibers.h"

namespace model {
namespace {

using fiber::Event;
using fiber::internal::CancelNode;
using std::make_shared;

const absl::Status& Cause() {
  static const absl::Status* const cause = new absl::Status(absl::CancelledError("by the case"));
  return *cause;
}

std::shared_ptr<CancelNode> MakeNode() {
  return {CancelNode::New(nullptr, 0), [](CancelNode* node) { node->Unref(); }};
}

// A fiber's stay under a node.
class Under {
 public:
  Under(WaitBlock& block, CancelNode& node) : block_(block), node_(node) {
    node_.Join(member_, block_);
    fiber::internal::SwapNode(block_, &node_);
  }
  ~Under() {
    fiber::internal::SwapNode(block_, nullptr);
    node_.Leave(member_);
  }

 private:
  WaitBlock& block_;
  CancelNode& node_;
  CancelNode::Member member_;
};

void WaitToBeCancelled() {
  Event never;
  Check(absl::IsCancelled(never.Wait()), "not cancelled");
}

// Members.
// -------------------------------------------------------------------------------------------------

Case MemberBeginsToWait() {
  auto world = make_shared<World>(1);
  auto node = MakeNode();
  return {.threads = {world->Run(0,
                                 [world, node] {
                                   Under under(world->block(0), *node);
                                   WaitToBeCancelled();
                                 }),
                      [node] { Check(node->Cancel(Cause()), "cancelled by another"); }}};
}

Case MembersAreCancelled() {
  auto world = make_shared<World>(2);
  auto node = MakeNode();
  auto wait = [world, node](int i) {
    Under under(world->block(i), *node);
    WaitToBeCancelled();
  };
  return {.threads = {world->Run(0, [wait] { wait(0); }), world->Run(1, [wait] { wait(1); }),
                      [node] { node->Cancel(Cause()); }}};
}

Case MemberIsCancelledByTwo() {
  auto world = make_shared<World>(1);
  auto node = MakeNode();
  auto firsts = make_shared<int>(0);
  auto cancel = [node, firsts] {
    if (node->Cancel(Cause())) ++*firsts;
  };
  return {.threads = {world->Run(0,
                                 [world, node] {
                                   Under under(world->block(0), *node);
                                   WaitToBeCancelled();
                                 }),
                      cancel, cancel},
          .finish = [firsts] { Check(*firsts == 1, "not one of them was the first"); }};
}

// What was meant for a wait under the node does not end a later one.
Case MemberLeaves() {
  auto world = make_shared<World>(1);
  auto node = MakeNode();
  auto first = make_shared<Event>();
  auto second = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [world, node, first, second] {
                                   {
                                     Under under(world->block(0), *node);
                                     const absl::Status status = first->Wait();
                                     Check(status.ok() || absl::IsCancelled(status), "an odd end");
                                   }
                                   Check(second->Wait().ok(), "cancelled outside of the node");
                                 }),
                      [node] { node->Cancel(Cause()); },
                      [first, second] {
                        first->Set();
                        second->Set();
                      }}};
}

// Nodes below.
// -------------------------------------------------------------------------------------------------

Case NodeIsMadeAsItsParentIsCancelled() {
  auto world = make_shared<World>(1);
  auto parent = MakeNode();
  return {.threads = {world->Run(0,
                                 [world, parent] {
                                   CancelNode* const node = CancelNode::New(parent.get(), 0);
                                   {
                                     Under under(world->block(0), *node);
                                     WaitToBeCancelled();
                                   }
                                   node->Detach();
                                   node->Unref();
                                 }),
                      [parent] { parent->Cancel(Cause()); }}};
}

// Two generations go while they are cancelled from above.
Case NodesAreDetachedAsTheirParentIsCancelled() {
  auto parent = MakeNode();
  CancelNode* const node = CancelNode::New(parent.get(), 0);
  CancelNode* const below = CancelNode::New(node, 0);
  return {.threads = {[below] {
                        below->Detach();
                        below->Unref();
                      },
                      [node] {
                        node->Detach();
                        node->Unref();
                      },
                      [parent] { parent->Cancel(Cause()); }}};
}

// Callbacks.
// -------------------------------------------------------------------------------------------------

// Once Stop() has returned, what the callback uses may go.
Case CallbackIsStopped() {
  auto world = make_shared<World>(1);
  auto source = make_shared<fiber::CancelSource>();
  return {.threads = {world->Run(0,
                                 [source] {
                                   int calls = 0;
                                   bool is_there = true;
                                   fiber::CancelCallback callback = source->token().OnCancel([&] {
                                     Touch(&is_there);
                                     Check(is_there, "called after the end of Stop()");
                                     Touch(&calls);
                                     ++calls;
                                   });
                                   const bool is_stopped = callback.Stop();
                                   Touch(&is_there);
                                   is_there = false;
                                   Touch(&calls);
                                   Check(calls == (is_stopped ? 0 : 1),
                                         "not called once, or though it was stopped");
                                 }),
                      [source] { source->Cancel(); }}};
}

Case CallbackHasReturnedWhenCancelDoes() {
  auto world = make_shared<World>(1);
  auto source = make_shared<fiber::CancelSource>();
  auto returned = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [source, returned] {
                                   int calls = 0;
                                   fiber::CancelCallback callback =
                                       source->token().OnCancel([&] { ++calls; });
                                   Check(returned->Wait().ok(), "a wait failed");
                                   Check(calls == 1, "not called once");
                                 }),
                      [source, returned] {
                        source->Cancel();
                        returned->Set();
                      }}};
}

// Clauses.
// -------------------------------------------------------------------------------------------------

Case TokenMeetsAnEvent() {
  auto world = make_shared<World>(1);
  auto source = make_shared<fiber::CancelSource>();
  auto event = make_shared<Event>();
  return {
      .threads = {world->Run(0,
                             [source, event] {
                               auto cancelled = fiber::OnCancel(source->token(), [] {});
                               auto set = fiber::OnEvent(*event, [] {});
                               const absl::StatusOr<size_t> which = fiber::Select(cancelled, set);
                               Check(which.ok(), "a select failed");
                               Check(*which == 0 ? source->token().is_cancelled() : event->is_set(),
                                     "not what it says");
                               Check(!cancelled.waiter.is_linked && !set.waiter.is_linked,
                                     "a select has left something linked");
                             }),
                  [source] { source->Cancel(); }, [event] { event->Set(); }}};
}

Case TokenIsNotMissed() {
  auto world = make_shared<World>(1);
  auto source = make_shared<fiber::CancelSource>();
  return {.threads = {world->Run(0,
                                 [source] {
                                   Event never;
                                   auto set = fiber::OnEvent(never, [] {});
                                   auto cancelled = fiber::OnCancel(source->token(), [] {});
                                   Check(*fiber::Select(set, cancelled) == 1, "not the token");
                                 }),
                      [source] { source->Cancel(); }}};
}

// Shields.
// -------------------------------------------------------------------------------------------------

Case ShieldKeepsANodeOut() {
  auto world = make_shared<World>(1);
  auto node = MakeNode();
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [world, node, event] {
                                   Under under(world->block(0), *node);
                                   {
                                     fiber::CancelShield shield;
                                     Check(event->Wait().ok(), "cancelled behind a shield");
                                   }
                                   WaitToBeCancelled();
                                 }),
                      [node] { node->Cancel(Cause()); }, [event] { event->Set(); }}};
}

Case ShieldKeepsWhatCancelsTheFiberOut() {
  auto world = make_shared<World>(1);
  auto event = make_shared<Event>();
  return {.threads = {world->Run(0,
                                 [event] {
                                   {
                                     fiber::CancelShield shield;
                                     Check(event->Wait().ok(), "cancelled behind a shield");
                                   }
                                   WaitToBeCancelled();
                                 }),
                      world->Cancel(0), [event] { event->Set(); }}};
}

// Who came under the node behind the shield is reached there.
Case NodeInsideOfAShield() {
  auto world = make_shared<World>(1);
  auto node = MakeNode();
  return {.threads = {world->Run(0,
                                 [world, node] {
                                   fiber::CancelShield shield;
                                   Under under(world->block(0), *node);
                                   WaitToBeCancelled();
                                 }),
                      [node] { node->Cancel(Cause()); }}};
}

// Scopes.
// -------------------------------------------------------------------------------------------------

// Whoever is cancelled takes the scope that he has open, or is about to open, along with its child. The scope goes as soon
// as its Wait() returns.
Case ScopeGoesDownWithItsOwner() {
  auto world = make_shared<World>(2);
  auto scope = make_shared<Mortal<fiber::Scope>*>(nullptr);
  auto room = make_shared<std::unique_ptr<Mortal<fiber::Scope>>>();
  return {.threads = {world->Run(0,
                                 [scope, room] {
                                   *room = std::make_unique<Mortal<fiber::Scope>>();
                                   (**room)->Enlist(std::source_location::current());
                                   Touch(scope.get());
                                   *scope = room->get();
                                   Check(absl::IsCancelled((**room)->Wait()), "not cancelled");
                                   Destroy(***room);
                                 }),
                      world->Run(1,
                                 [scope] {
                                   Await(scope.get(), [scope] { return *scope != nullptr; });
                                   CancelNode::Member member;
                                   (**scope)->OnChildStart(member);
                                   WaitToBeCancelled();
                                   (**scope)->OnChildEnd(member);
                                 }),
                      world->Cancel(0)}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"MemberBeginsToWait", MemberBeginsToWait},
      {"MembersAreCancelled", MembersAreCancelled, 2},
      {"MemberIsCancelledByTwo", MemberIsCancelledByTwo, 3},
      {"MemberLeaves", MemberLeaves, 3},
      {"NodeIsMadeAsItsParentIsCancelled", NodeIsMadeAsItsParentIsCancelled},
      {"NodesAreDetachedAsTheirParentIsCancelled", NodesAreDetachedAsTheirParentIsCancelled},
      {"CallbackIsStopped", CallbackIsStopped},
      {"CallbackHasReturnedWhenCancelDoes", CallbackHasReturnedWhenCancelDoes},
      {"TokenMeetsAnEvent", TokenMeetsAnEvent},
      {"TokenIsNotMissed", TokenIsNotMissed},
      {"ShieldKeepsANodeOut", ShieldKeepsANodeOut},
      {"ShieldKeepsWhatCancelsTheFiberOut", ShieldKeepsWhatCancelsTheFiberOut},
      {"NodeInsideOfAShield", NodeInsideOfAShield},
      {"ScopeGoesDownWithItsOwner", ScopeGoesDownWithItsOwner, 2},
  };
  return kCases;
}

}  // namespace model

// What scopes need besides the files that ship.
namespace fiber::internal {
void StartFiber(Record&) { Fatal("started"); }
void DropValues(WaitBlock&) {}
void SetName(WaitBlock&, std::string*) {}
}  // namespace fiber::internal
