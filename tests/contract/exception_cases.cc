// SPDX-License-Identifier: Apache-2.0
//
// Exceptions in every phase of their lives while their fiber moves to another thread. The C++ runtime keeps count of them
// per thread: without the switch that takes the count along, a handler finds another fiber's exception, or destroys it.
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "fiber/go.h"
#include "tests/contract/cases.h"
#include "tests/contract/moving.h"

namespace contract {
namespace {

std::atomic<int> next_value = 0;
int NewValue() { return next_value.fetch_add(1, std::memory_order_relaxed); }

// Copies are counted: each must be destroyed once.
class Counted {
 public:
  explicit Counted(int value) : value_(value) { live.fetch_add(1, std::memory_order_relaxed); }
  Counted(const Counted& other) : Counted(other.value_) {}
  Counted& operator=(const Counted&) = delete;
  ~Counted() {
    live.fetch_sub(1, std::memory_order_relaxed);
    value_ = -1;
  }
  int value() const { return value_; }
  static std::atomic<int> live;

 private:
  int value_;
};
std::atomic<int> Counted::live = 0;

bool IsClean() { return std::uncaught_exceptions() == 0 && std::current_exception() == nullptr; }

// Moves when it is destroyed.
struct Mover {
  int uncaught;  // as many exceptions are in flight then
  ~Mover() {
    HOLDS(std::uncaught_exceptions() == uncaught);
    Move();
    HOLDS(std::uncaught_exceptions() == uncaught);
  }
};

__attribute__((noinline)) void MoveAndThrow(int value) {
  Move();
  throw Counted(value);
}

void ThrownAfterAMoveIsCaughtByAnEarlierFrame() {
  const int value = NewValue();
  try {
    MoveAndThrow(value);
    HOLDS(!"reached");
  } catch (const Counted& caught) {
    HOLDS(caught.value() == value);
  }
  HOLDS(IsClean());
}

void HandlersMove() {
  const int value = NewValue();
  try {
    throw Counted(value);
  } catch (const Counted& caught) {
    const std::exception_ptr before = std::current_exception();
    for (int i = 0; i < 2; ++i) {
      Move();
      HOLDS(caught.value() == value);
      HOLDS(std::current_exception() == before);
      HOLDS(std::uncaught_exceptions() == 0);
    }
  }
  HOLDS(IsClean());
  Move();
  HOLDS(IsClean());
}

void WhatIsHandledIsRethrownAfterAMove() {
  const int value = NewValue();
  const void* thrown = nullptr;
  try {
    try {
      throw Counted(value);
    } catch (const Counted& caught) {
      thrown = &caught;
      Move();
      throw;
    }
  } catch (const Counted& caught) {
    HOLDS(&caught == thrown);
    HOLDS(caught.value() == value);
    Move();
    HOLDS(caught.value() == value);
  }
  HOLDS(IsClean());
}

void HandlersNest(int depth) {
  const int value = NewValue();
  try {
    throw Counted(value);
  } catch (const Counted& caught) {
    Move();
    if (depth > 0) HandlersNest(depth - 1);
    HOLDS(caught.value() == value);
    try {
      Move();
      throw;  // the innermost that is handled: this one
    } catch (const Counted& again) {
      Move();
      HOLDS(&again == &caught);
    }
  }
}
void HandlersNestAndMove() {
  HandlersNest(2);
  HOLDS(IsClean());
}

// Another exception comes and goes while the first is in flight.
struct ThrowsInside {
  int depth;
  ~ThrowsInside() {
    const int uncaught = std::uncaught_exceptions();
    const int value = NewValue();
    Move();
    try {
      Mover mover{uncaught + 1};
      std::unique_ptr<ThrowsInside> inner;
      if (depth > 0) inner.reset(new ThrowsInside{depth - 1});
      throw Counted(value);
    } catch (const Counted& caught) {
      HOLDS(std::uncaught_exceptions() == uncaught);
      Move();
      HOLDS(caught.value() == value);
      HOLDS(std::uncaught_exceptions() == uncaught);
    }
  }
};

void DestructorsMoveWhileAnExceptionPasses() {
  const int value = NewValue();
  try {
    Mover first{1};
    Mover second{1};
    throw Counted(value);
  } catch (const Counted& caught) {
    HOLDS(caught.value() == value);
    HOLDS(std::uncaught_exceptions() == 0);
  }
  HOLDS(IsClean());
  try {
    ThrowsInside inside{1};
    throw Counted(value);
  } catch (const Counted& caught) {
    HOLDS(caught.value() == value);
  }
  HOLDS(IsClean());
}

// The same object is handled by two fibers at once, and lives as long as either wants it.
void PointersMoveBetweenFibers() {
  const int value = NewValue();
  std::exception_ptr pointer;
  try {
    throw Counted(value);
  } catch (const Counted& caught) {
    pointer = std::current_exception();
    auto other = fiber::Spawn([pointer, &caught]() mutable {
      HOLDS(IsClean());
      Move();
      try {
        std::rethrow_exception(std::move(pointer));
      } catch (const Counted& shared) {
        Move();
        HOLDS(&shared == &caught);
      }
      HOLDS(IsClean());
      return std::make_exception_ptr(Counted(caught.value() + 1));
    });
    Move();
    HOLDS(std::current_exception() == pointer);
    const std::exception_ptr made = other.Join();
    HOLDS(std::current_exception() == pointer);
    HOLDS(caught.value() == value);
    try {
      std::rethrow_exception(made);
    } catch (const Counted& theirs) {
      Move();
      HOLDS(theirs.value() == value + 1);
    }
    HOLDS(std::current_exception() == pointer);
  }
  HOLDS(IsClean());
  Move();
  try {
    std::rethrow_exception(pointer);
  } catch (const Counted& caught) {
    pointer = nullptr;
    Move();
    HOLDS(caught.value() == value);
  }
}

void ExceptionsArriveAtAJoinerThatHandlesItsOwn() {
  const int value = NewValue();
  try {
    throw Counted(value);
  } catch (const Counted& caught) {
    auto child = fiber::Spawn([value] {
      Mover mover{1};
      Move();
      throw Counted(value + 1);
    });
    Move();
    try {
      child.Join();
      HOLDS(!"reached");
    } catch (const Counted& theirs) {
      Move();
      HOLDS(theirs.value() == value + 1);
    }
    HOLDS(caught.value() == value);
  }
  HOLDS(IsClean());
}

void NestedExceptionsKeepTheirCauses() {
  const std::string cause = std::to_string(NewValue()) + " is a string of its own on the heap";
  try {
    try {
      throw std::runtime_error(cause);
    } catch (const std::runtime_error&) {
      Move();
      std::throw_with_nested(std::logic_error("outer " + cause));
    }
  } catch (const std::logic_error& outer) {
    Move();
    HOLDS(outer.what() == "outer " + cause);
    try {
      std::rethrow_if_nested(outer);
      HOLDS(!"reached");
    } catch (const std::runtime_error& inner) {
      Move();
      HOLDS(inner.what() == cause);
    }
  }
  HOLDS(IsClean());
}

struct Member {
  explicit Member(int value) {
    Move();
    throw Counted(value);
  }
};
class FunctionTryBlock {
 public:
  FunctionTryBlock(int value, const void** thrown) try : built_{1}, member_(value) {
  } catch (const Counted& caught) {
    *thrown = &caught;
    Move();
    HOLDS(caught.value() == value);
  }  // rethrows

 private:
  Mover built_;  // destroyed before the handler is entered
  Member member_;
};

void HandlersOfConstructorsMove() {
  const int value = NewValue();
  const void* thrown = nullptr;
  try {
    // Its memory is given back on whatever thread that is.
    auto object = std::make_unique<FunctionTryBlock>(value, &thrown);
    HOLDS(!"reached");
  } catch (const Counted& caught) {
    HOLDS(&caught == thrown);
    HOLDS(std::uncaught_exceptions() == 0);
  }
  HOLDS(IsClean());
}

// What starts, on whatever thread, while others are in handlers or in flight.
struct SpawnsInFlight {
  ~SpawnsInFlight() {
    auto child = fiber::Spawn([] { HOLDS(IsClean()); });
    fiber::Yield();
    child.Join();
    HOLDS(std::uncaught_exceptions() == 1);
  }
};
void NewFibersStartWithoutExceptions() {
  try {
    SpawnsInFlight in_flight;
    throw NewValue();
  } catch (int) {
    auto child = fiber::Spawn([] {
      HOLDS(IsClean());
      Move();
      HOLDS(IsClean());
    });
    child.Join();
    HOLDS(std::current_exception() != nullptr);
  }
}

// An exception that moves its fiber when it is destroyed: the last thing that leaving a handler does.
struct MovesAtItsEnd {
  std::shared_ptr<Mover> mover = std::make_shared<Mover>(0);
};
void ExceptionsMoveWhenTheyAreDestroyed() {
  try {
    throw MovesAtItsEnd();
  } catch (const MovesAtItsEnd&) {
    Move();
  }
  HOLDS(IsClean());
  const int value = NewValue();
  try {
    throw Counted(value);
  } catch (const Counted& caught) {
    try {
      throw MovesAtItsEnd();
    } catch (const MovesAtItsEnd&) {
    }
    HOLDS(caught.value() == value);
  }
  HOLDS(IsClean());
}

void EachWasDestroyedOnce() { HOLDS(Counted::live.load(std::memory_order_relaxed) == 0); }

#define WEFT_CASE(name) \
  { #name, name, EachWasDestroyedOnce }
constexpr Case kExceptionCases[] = {
    WEFT_CASE(ThrownAfterAMoveIsCaughtByAnEarlierFrame),
    WEFT_CASE(HandlersMove),
    WEFT_CASE(WhatIsHandledIsRethrownAfterAMove),
    WEFT_CASE(HandlersNestAndMove),
    WEFT_CASE(DestructorsMoveWhileAnExceptionPasses),
    WEFT_CASE(PointersMoveBetweenFibers),
    WEFT_CASE(ExceptionsArriveAtAJoinerThatHandlesItsOwn),
    WEFT_CASE(NestedExceptionsKeepTheirCauses),
    WEFT_CASE(HandlersOfConstructorsMove),
    WEFT_CASE(NewFibersStartWithoutExceptions),
    WEFT_CASE(ExceptionsMoveWhenTheyAreDestroyed),
};
#undef WEFT_CASE

}  // namespace

std::span<const Case> ExceptionCases() { return kExceptionCases; }

}  // namespace contract
