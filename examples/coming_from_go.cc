// SPDX-License-Identifier: Apache-2.0
// The Weft sides of docs/coming_from_go.md, which a test looks for in here, letter by letter. Run, it says
// what each of them did.
#include <iostream>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fiber/cancel.h"
#include "fiber/channel.h"
#include "fiber/event.h"
#include "fiber/go.h"
#include "fiber/inherited.h"
#include "fiber/mutex.h"
#include "fiber/scope.h"
#include "fiber/select.h"
#include "fiber/semaphore.h"
#include "fiber/this_fiber.h"
#include "fiber/wait_group.h"
#include "sched/run.h"

namespace {

int Compute(int n) { return 6 * n; }

std::string Fetch(int n) { return std::string(static_cast<size_t>(n), 'x'); }

void Goroutine() {
  fiber::Event done;
  fiber::Go([&] { done.Set(); });
  done.Wait().IgnoreError();

  auto answer = fiber::Spawn([] { return Compute(7); });
  std::cout << "spawned: " << answer.Join() << "\n";
}

void Channels() {
  fiber::Channel<int> numbers(3);
  auto sender = fiber::Spawn([&]() -> absl::Status {
    for (int i = 0; i < 10; ++i) {
      if (absl::Status sent = numbers.Send(i); !sent.ok()) return sent;  // closed, or cancelled
    }
    numbers.Close();
    return absl::OkStatus();
  });
  int sum = 0;
  for (int n : numbers) sum += n;
  std::cout << "received: " << sum << ", " << sender.Join() << "\n";

  absl::StatusOr<int> n = numbers.Receive();
  if (absl::IsOutOfRange(n.status())) std::cout << "closed and drained\n";
}

absl::Status Selects() {
  fiber::Channel<int> jobs(1);
  fiber::Channel<int> results(1);
  fiber::Event quit;
  if (absl::Status sent = jobs.Send(7); !sent.ok()) return sent;

  absl::StatusOr<size_t> which = fiber::Select(
      fiber::OnReceive(jobs, [](absl::StatusOr<int> job) { std::cout << "job " << *job << "\n"; }),
      fiber::OnEvent(quit, [] { std::cout << "told to quit\n"; }));
  if (!which.ok()) return which.status();  // cancelled, or out of time

  which = fiber::Select(
      fiber::OnReceive(jobs, [](int job) { std::cout << "job " << job << "\n"; }),
      fiber::Otherwise([] { std::cout << "nothing to do\n"; }));

  which = fiber::Select(
      fiber::OnReceive(jobs, [](int job) { std::cout << "job " << job << "\n"; }),
      fiber::OnDeadline(absl::Milliseconds(10), [] { std::cout << "waited enough\n"; }));

  absl::StatusOr<int> job = jobs.Receive(absl::Milliseconds(10));
  if (absl::IsDeadlineExceeded(job.status())) std::cout << "waited enough again\n";

  bool has_result = true;
  which = fiber::Select(
      fiber::When(has_result, fiber::OnSend(results, 42, [&] { has_result = false; })),
      fiber::OnReceive(jobs, [](int next) { std::cout << "job " << next << "\n"; }));
  if (!has_result) std::cout << "sent\n";
  return which.status();
}

void WaitGroups() {
  std::vector<int> parts(3);
  fiber::WaitGroup running;
  for (int i = 0; i < 3; ++i) {
    running.Add();
    fiber::Go([&running, &part = parts[static_cast<size_t>(i)], i] {
      part = Compute(i);
      running.Done();
    });
  }
  running.Wait().IgnoreError();
  std::cout << "parts: " << parts[0] << " " << parts[1] << " " << parts[2] << "\n";
}

void Mutexes() {
  fiber::Mutex mu;
  std::map<std::string, int> hits;
  fiber::Semaphore slots(2);
  fiber::Scope scope;
  for (int i = 0; i < 10; ++i) {
    scope.Go([&]() -> absl::Status {
      if (absl::Status got = slots.Acquire(); !got.ok()) return got;
      absl::Cleanup release = [&] { slots.Release(); };
      std::lock_guard lock(mu);
      ++hits["/"];
      return absl::OkStatus();
    });
  }
  scope.Wait().IgnoreError();
  std::cout << "hits: " << hits["/"] << "\n";
}

absl::Status Group() {
  std::vector<std::string> pages(20);
  fiber::Scope group({.max_running = 8});
  for (size_t i = 0; i < pages.size(); ++i) {
    group.Go([&pages, i]() -> absl::Status {
      if (i == 3) return absl::NotFoundError("page 3");
      pages[i] = Fetch(static_cast<int>(i));
      return fiber::Sleep(absl::Seconds(3600));  // cancelled when one fails
    });
  }
  return group.Wait();  // the first error
}

void Contexts() {
  fiber::Channel<int> silent;

  // No argument: the deadline is around all that happens in here.
  const fiber::ScopeOptions options = {.deadline = absl::Milliseconds(10)};
  absl::Status status = fiber::WithScope(options, [&](fiber::Scope& scope) {
    scope.Go([&] { return silent.Receive().status(); });
  });
  std::cout << "scope: " << absl::StatusCodeToString(status.code()) << "\n";

  fiber::CancelSource source;
  fiber::Scope scope({.cancel = source.token()});
  auto child = scope.Spawn([&] { return silent.Receive().status(); });
  source.Cancel(absl::CancelledError("enough"));
  std::cout << "child: " << child.Join() << "\n";
}

const fiber::Inherited<std::string> user("nobody");

void Values() {
  fiber::Bind bind(user, "gopher");
  std::string seen = fiber::Spawn([] { return user.get(); }).Join();
  std::cout << "user: " << seen << "\n";
}

void Defer() {
  absl::Cleanup bye = [] { std::cout << "deferred\n"; };

  try {
    fiber::Spawn([] { throw std::runtime_error("a panic"); }).Join();
  } catch (const std::exception& error) {
    std::cout << "recovered: " << error.what() << "\n";
  }
}

absl::Status Time() {
  if (absl::Status slept = fiber::Sleep(absl::Milliseconds(1)); !slept.ok()) return slept;
  const fiber::Deadline both = absl::Seconds(10);
  fiber::Event ready;
  ready.Set();
  if (absl::Status status = ready.Wait(both); !status.ok()) return status;
  return fiber::CheckCancelled();  // ctx.Err()
}

}  // namespace

int main() {
  return sched::Run([] {
    Goroutine();
    Channels();
    const absl::Status selected = Selects();
    std::cout << "select: " << selected << "\n";
    WaitGroups();
    Mutexes();
    std::cout << "group: " << Group() << "\n";
    Contexts();
    Values();
    Defer();
    std::cout << "time: " << Time() << "\n";
    return 0;
  });
}
