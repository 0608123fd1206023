// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_NETPOLL_SECCOMP_H_
#define WEFT_TESTS_NETPOLL_SECCOMP_H_

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace netpoll_test {

// From now on system call `number` fails with `error` on all threads of this process, if its argument `index` is `argument`
// (-1: whatever it is). There is no way back: for child processes. False: the kernel does not let us.
inline bool RefuseSyscallWhere(long number, int index, int64_t argument, int error) {
  const uint32_t refuse = SECCOMP_RET_ERRNO | static_cast<uint32_t>(error);
  const uint32_t wanted = static_cast<uint32_t>(argument);
  const size_t offset = offsetof(seccomp_data, args) + static_cast<size_t>(index) * 8;
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(number), 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, wanted, 0, static_cast<uint8_t>(argument < 0 ? 0 : 1)),
      BPF_STMT(BPF_RET | BPF_K, refuse),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{sizeof program / sizeof program[0], program};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0;
}

// Likewise, if its second argument is `argument`.
inline bool RefuseSyscall(long number, int64_t argument, int error) {
  return RefuseSyscallWhere(number, 1, argument, error);
}

}  // namespace netpoll_test

#endif  // WEFT_TESTS_NETPOLL_SECCOMP_H_
