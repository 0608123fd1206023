// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_FIBER_INHERITED_H_
#define WEFT_FIBER_INHERITED_H_

#include <utility>

#include "fiber/internal/ambient.h"

namespace fiber {

template <class T>
class Inherited;

// Bind gives an Inherited a value for as long as it exists: for this fiber, and for the fibers that are started meanwhile,
// which keep it to their end.
//
// On the stack of one fiber (or thread), the innermost destroyed first.
template <class T>
class [[nodiscard]] Bind {
 public:
  // Throws std::bad_alloc. Never blocks.
  Bind(const Inherited<T>& variable, T value) : block_(internal::CallersBlock()) {
    auto* binding = new typename Inherited<T>::Binding(std::move(value));
    binding->key = &variable;
    binding->destroy = [](internal::Ambient* self) {
      delete static_cast<typename Inherited<T>::Binding*>(self);
    };
    internal::Push(block_, *binding);
  }
  // The value from outside holds again. Never blocks, but for what T's destructor does.
  ~Bind() { internal::Pop(block_); }
  Bind(const Bind&) = delete;
  Bind& operator=(const Bind&) = delete;

 private:
  internal::WaitBlock& block_;
};
template <class T, class V>
Bind(const Inherited<T>&, V) -> Bind<T>;

// Inherited is a value that follows the work: whoever is called, and every fiber started from there, sees what was bound
// last on the way to it. For trace ids, loggers, the user on whose behalf something happens.
//
//   const fiber::Inherited<std::string> trace_id("none");      // at namespace scope
//
//   void Handle(const Request& request) {
//     fiber::Bind bind(trace_id, request.id);
//     fiber::Scope scope;
//     scope.Go([] { Log(trace_id.get()); return absl::OkStatus(); });      // the request's
//     …
//
// Costs: nothing where nothing is bound; a walk along what is bound around the caller, from the innermost outwards.
//
// Thread safety: any fiber, any thread. Values are shared by all fibers that see them, so they are const.
// Lifetime: outlives what is bound to it.
template <class T>
class Inherited {
 public:
  // `unbound` is its value where nothing is bound. Never blocks.
  explicit Inherited(T unbound = T()) : unbound_(std::move(unbound)) {}
  Inherited(const Inherited&) = delete;
  Inherited& operator=(const Inherited&) = delete;

  // Valid as long as the binding: in a fiber that was started in it, to the end of that. Never blocks.
  const T& get() const {
    const internal::Ambient* ambient = internal::CallersBlock().ambient;
    for (; ambient != nullptr; ambient = ambient->outer) {
      if (ambient->key == this) return static_cast<const Binding*>(ambient)->value;
    }
    return unbound_;
  }

 private:
  friend class Bind<T>;

  struct Binding : internal::Ambient {
    explicit Binding(T bound) : value(std::move(bound)) {}
    const T value;
  };

  const T unbound_;
};

}  // namespace fiber

#endif  // WEFT_FIBER_INHERITED_H_
