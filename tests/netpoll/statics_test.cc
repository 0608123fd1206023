// SPDX-License-Identifier: Apache-2.0
//
// A static of a function that one thread is making while another forks is half made in the child, which would wait for ever
// when it comes to it. So all of the library's are made before main().
#include <link.h>
#include <signal.h>
#include <unistd.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/functional/function_ref.h"
#include "netpoll/process.h"
#include "netpoll/resolve.h"
#include "netpoll/signals.h"
#include "netpoll/tcp.h"
#include "sched/run.h"

namespace {

struct Lateness {
  explicit Lateness(int value) : value(value) {}
  int value;
};

// Made when first called: never. What is said of it shows that this test can fail.
__attribute__((noinline)) int MadeLate(int value) {
  static const Lateness late(value);
  return late.value;
}

// So that all of it is linked.
__attribute__((noinline)) void Everything() {
  sched::Run([] {
    (void)netpoll::Resolve("localhost", "80");
    (void)netpoll::TcpListener::Listen("127.0.0.1:0");
    const netpoll::Signals stop({SIGTERM});
    (void)netpoll::RunProcess({.arguments = {"true"}});
  });
}

uintptr_t WhereThisProgramIs() {
  uintptr_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &base);
  return base;
}

// The names and first bytes of the guards of this program's statics: not 0 once one is made (Itanium C++ ABI, 3.3.3). Those
// of thread_local variables are no part of its memory.
bool ForEachGuard(absl::FunctionRef<void(const char* name, bool is_made)> visit) {
  FILE* const nm = popen(("nm -C /proc/" + std::to_string(getpid()) + "/exe").c_str(), "re");
  if (nm == nullptr) return false;
  char line[2048];
  while (fgets(line, sizeof line, nm) != nullptr) {
    unsigned long long address = 0;
    char kind = 0;
    int at = 0;
    line[strcspn(line, "\n")] = '\0';
    if (sscanf(line, "%llx %c guard variable for %n", &address, &kind, &at) != 2 || at == 0) continue;
    if (strchr("bBdDuVv", kind) == nullptr || address < 0x1000) continue;
    visit(line + at, *reinterpret_cast<const volatile char*>(WhereThisProgramIs() + address) != 0);
  }
  return pclose(nm) == 0;
}

}  // namespace

int main(int argc, char**) {
  if (argc == INT_MAX) {  // never, but the linker must not find that out
    Everything();
    return MadeLate(argc);
  }
  int ours = 0;
  int failures = 0;
  bool is_late_seen = false;
  const bool is_read = ForEachGuard([&](const char* name, bool is_made) {
    if (strstr(name, "MadeLate") != nullptr) is_late_seen = !is_made;
    if (strncmp(name, "fiber::", 7) != 0 && strncmp(name, "sched::", 7) != 0 && strncmp(name, "netpoll::", 9) != 0) return;
    ++ours;
    if (is_made) return;
    ++failures;
    fprintf(stderr, "made after main() has begun: %s\n", name);
  });
  if (!is_read) fprintf(stderr, "nm cannot read this program: apt-get install binutils\n");
  if (!is_late_seen) fprintf(stderr, "the one that is never made is not found\n");
  printf("%d statics of the library's, %d not made\n", ours, failures);
  return is_read && is_late_seen && ours > 0 && failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
