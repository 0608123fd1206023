// SPDX-License-Identifier: Apache-2.0
// A trace id goes with the work: bound once where a request comes in, it is there in all fibers that are
// started on its behalf, and no function passes it on.
#include <iostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "fiber/inherited.h"
#include "fiber/scope.h"
#include "sched/run.h"

namespace {

const fiber::Inherited<std::string> trace_id("no request");

std::string Logged(std::string_view what) {
  return absl::StrCat("[", trace_id.get(), "] ", std::string(what), "\n");
}

std::string AskBackend(std::string_view name) {
  fiber::Scope scope;  // fibers of fibers have it too
  auto cache = scope.Spawn([name] { return Logged(absl::StrCat("cache of ", std::string(name))); });
  std::string lines = cache.Join();
  scope.Wait().IgnoreError();  // its children return no status
  return lines + Logged(name);
}

std::string Handle(std::string request) {
  fiber::Bind bind(trace_id, std::move(request));
  fiber::Scope scope;
  std::vector<fiber::Child<std::string>> answers;
  for (const char* backend : {"users", "orders"}) {
    answers.push_back(scope.Spawn([backend] { return AskBackend(backend); }));
  }
  std::string lines;
  for (auto& answer : answers) lines += answer.Join();
  scope.Wait().IgnoreError();
  return lines;
}

}  // namespace

int main() {
  return sched::Run([] {
    fiber::Scope scope;
    auto first = scope.Spawn([] { return Handle("request 1"); });
    auto second = scope.Spawn([] { return Handle("request 2"); });  // at the same time
    std::cout << first.Join() << second.Join() << Logged("done");
    return scope.Wait().ok() ? 0 : 1;
  });
}
