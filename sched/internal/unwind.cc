// SPDX-License-Identifier: Apache-2.0
//
// libunwind, as for another process: it asks for every register and every word, so that the frames may be on a copy, and what
// is not there is an error to it. (The C++ runtime's unwinder walks the caller's stack only.)
#include "sched/internal/unwind.h"

#include <dlfcn.h>

#if defined(__x86_64__) && defined(DLFO_STRUCT_HAS_EH_DBASE)  // glibc 2.35: _dl_find_object(), which takes no lock
#include <libunwind.h>

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>

#include "fiber/internal/fork.h"
#include "fiber/internal/spin_lock.h"
#include "fiber/internal/system_calls.h"

// Exported for profilers, but in none of its headers.
extern "C" int UNW_OBJ(dwarf_search_unwind_table)(unw_addr_space_t, unw_word_t pc, unw_dyn_info_t*, unw_proc_info_t*,
                                                  int needs_unwind_info, void*);

namespace sched::internal {
namespace {

// Walk is the thread that libunwind sees, and the way out of its frames.
class Walk {
 public:
  Walk(const StackImage& stack, const Registers& registers) : stack_(stack), registers_(registers) {
    unw_accessors_t accessors{};
    accessors.find_proc_info = &FindFunction;
    accessors.put_unwind_info = [](unw_addr_space_t, unw_proc_info_t*, void*) {};
    accessors.get_dyn_info_list_addr = [](unw_addr_space_t, unw_word_t*, void*) { return -UNW_ENOINFO; };
    accessors.access_mem = &AccessWord;
    accessors.access_reg = &AccessRegister;
    space_ = unw_create_addr_space(&accessors, 0);
    if (space_ != nullptr) unw_set_caching_policy(space_, UNW_CACHE_NONE);  // libraries come and go
  }
  ~Walk() {
    if (space_ != nullptr) unw_destroy_addr_space(space_);
  }
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  std::vector<void*> Frames(size_t most);

 private:
  static constexpr size_t kPageBytes = 4096;  // at most the system's
  using Page = std::array<unsigned char, kPageBytes>;

  enum class Fit : uint8_t {
    kNone,   // it is in the same function, behind a call of another: left over from that call
    kOther,  // behind a call of another function, which may have jumped to this one
    kMay,    // behind a call by pointer, or through a linkage table
    kIs,     // behind a call of this function
  };

  static int FindFunction(unw_addr_space_t space, unw_word_t pc, unw_proc_info_t* function, int needs_unwind_info, void* walk);
  static int AccessWord(unw_addr_space_t, unw_word_t address, unw_word_t* word, int is_write, void* walk);
  static int AccessRegister(unw_addr_space_t, unw_regnum_t number, unw_word_t* value, int is_write, void* walk);

  bool ReadProgram(uintptr_t from, void* to, size_t size);
  uintptr_t FunctionOf(uintptr_t pc);
  Fit FitOf(uintptr_t return_address, uintptr_t function);
  bool IsFrame(uintptr_t frame);
  bool FindFrame(uintptr_t sp, uintptr_t pc);

  const StackImage& stack_;
  Registers registers_;
  unw_addr_space_t space_ = nullptr;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;  // null: it cannot be read
};

// Code and tables, by copies of whole pages, since libunwind reads tables by the byte. Of an address that is neither a page is
// not asked for: that could wait for whoever provides it (userfaultfd, FUSE). What is not there any more the kernel refuses.
bool Walk::ReadProgram(uintptr_t from, void* to, size_t size) {
  for (auto* out = static_cast<unsigned char*>(to); size > 0;) {
    const uintptr_t offset = from % kPageBytes;
    const auto [page, is_new] = pages_.try_emplace(from - offset);
    if (is_new) {
      dl_find_object object;
      const bool is_program = _dl_find_object(reinterpret_cast<void*>(from), &object) == 0;
      if (is_program) page->second = std::make_unique<Page>();
      if (is_program && fiber::internal::System().process_vm_readv(
                            page->second->data(), reinterpret_cast<const void*>(from - offset), kPageBytes) != kPageBytes) {
        page->second = nullptr;
      }
    }
    if (page->second == nullptr) return false;
    const size_t part = std::min(size, kPageBytes - offset);
    std::memcpy(out, page->second->data() + offset, part);
    from += part;
    out += part;
    size -= part;
  }
  return true;
}

int Walk::FindFunction(unw_addr_space_t space, unw_word_t pc, unw_proc_info_t* function, int needs_unwind_info, void* walk) {
  // The head of .eh_frame_hdr as all linkers write it: then comes a table of pairs, sorted.
  struct {
    uint32_t encodings;
    int32_t frames;
    uint32_t count;
  } head;
  constexpr uint32_t kSortedPairs = 0x3b031b01;
  dl_find_object object;
  if (_dl_find_object(reinterpret_cast<void*>(pc), &object) != 0 || object.dlfo_eh_frame == nullptr) return -UNW_ENOINFO;
  const auto at = reinterpret_cast<uintptr_t>(object.dlfo_eh_frame);
  if (!static_cast<Walk*>(walk)->ReadProgram(at, &head, sizeof head) || head.encodings != kSortedPairs) return -UNW_ENOINFO;
  unw_dyn_info_t table{};
  table.start_ip = reinterpret_cast<uintptr_t>(object.dlfo_map_start);
  table.end_ip = reinterpret_cast<uintptr_t>(object.dlfo_map_end);
  table.format = UNW_INFO_FORMAT_REMOTE_TABLE;
  table.u.rti.segbase = at;
  table.u.rti.table_data = at + sizeof head;
  table.u.rti.table_len = head.count;  // in words, of which a pair is one
  return UNW_OBJ(dwarf_search_unwind_table)(space, pc, &table, function, needs_unwind_info, walk);
}

int Walk::AccessWord(unw_addr_space_t, unw_word_t address, unw_word_t* word, int is_write, void* walk) {
  auto* const self = static_cast<Walk*>(walk);
  uintptr_t value = 0;
  if (is_write != 0 || (!self->stack_.Read(address, &value) && !self->ReadProgram(address, &value, sizeof value))) {
    return -UNW_EINVAL;
  }
  *word = value;
  return 0;
}

int Walk::AccessRegister(unw_addr_space_t, unw_regnum_t number, unw_word_t* value, int is_write, void* walk) {
  const Registers& known = static_cast<Walk*>(walk)->registers_;
  if (is_write != 0) return -UNW_EREADONLYREG;
  switch (number) {
    case UNW_REG_IP: *value = known.pc; return 0;
    case UNW_REG_SP: *value = known.sp; return 0;
    case UNW_X86_64_RBP: *value = known.fp; return known.has_fp ? 0 : -UNW_EBADREG;
    default: return -UNW_EBADREG;
  }
}

// Where the function begins that has `pc`; 0: it is not code, or not known.
uintptr_t Walk::FunctionOf(uintptr_t pc) {
  unw_proc_info_t function{};
  return FindFunction(space_, pc, &function, 0, this) == 0 ? function.start_ip : 0;
}

// How well a return address fits a frame of `function`.
Walk::Fit Walk::FitOf(uintptr_t return_address, uintptr_t function) {
  constexpr unsigned char kCall = 0xe8;
  unsigned char code[5];
  const uintptr_t caller = FunctionOf(return_address - 1);
  if (caller == 0 || !ReadProgram(return_address - sizeof code, code, sizeof code)) return Fit::kNone;
  int32_t distance;
  std::memcpy(&distance, code + 1, sizeof distance);
  const uintptr_t called = return_address + static_cast<uintptr_t>(intptr_t{distance});
  if (code[0] == kCall && called == function) return Fit::kIs;
  if (caller == function) return Fit::kNone;
  return code[0] == kCall && FunctionOf(called) == called ? Fit::kOther : Fit::kMay;
}

// Whether a frame pointer can have been `frame`: it leads to a return address, and to another one, or says that it is the last.
bool Walk::IsFrame(uintptr_t frame) {
  constexpr int kHops = 3;
  for (int i = 0; i < kHops; ++i) {
    uintptr_t next, returns;
    if (!stack_.Read(frame, &next) || !stack_.Read(frame + sizeof next, &returns)) return i > 0;
    if (FunctionOf(returns - 1) == 0) return false;
    if (next == 0) return true;
    if (next <= frame) return false;
    frame = next;
  }
  return true;
}

// Looks above `sp` for what the frame pointer of the function with `pc` must have been: the innermost of those that fit best.
bool Walk::FindFrame(uintptr_t sp, uintptr_t pc) {
  const uintptr_t function = FunctionOf(pc);
  Fit best = Fit::kNone;
  uintptr_t saved, return_address;
  for (uintptr_t at = sp; best != Fit::kIs && stack_.Read(at, &saved); at += sizeof saved) {
    const bool may_be_saved = saved == 0 || (saved > at && saved - stack_.low < stack_.bytes.size());
    if (!may_be_saved || !stack_.Read(at + sizeof saved, &return_address)) continue;
    // What the caller keeps in the register need not be a frame pointer.
    const Fit fit = FitOf(return_address, function);
    if (fit <= best || (fit != Fit::kIs && !IsFrame(at))) continue;
    best = fit;
    registers_.fp = at;
  }
  registers_.has_fp = best != Fit::kNone;
  return registers_.has_fp;
}

std::vector<void*> Walk::Frames(size_t most) {
  std::vector<void*> frames;
  unw_cursor_t cursor;
  if (space_ == nullptr || unw_init_remote(&cursor, space_, this) != 0) return frames;
  for (int step = 1; step > 0 && frames.size() < most;) {
    unw_word_t pc = 0;
    unw_word_t sp = 0;
    if (unw_get_reg(&cursor, UNW_REG_IP, &pc) != 0 || unw_get_reg(&cursor, UNW_REG_SP, &sp) != 0 || pc == 0) break;
    // A return address may be the first one of the next function: the call is just before it.
    const uintptr_t in_function = frames.empty() ? pc : pc - 1;
    if (!frames.empty() && FunctionOf(in_function) == 0) break;
    frames.push_back(reinterpret_cast<void*>(pc));
    const unw_cursor_t before = cursor;
    step = unw_step(&cursor);
    if (step == -UNW_EBADREG && !registers_.has_fp && FindFrame(sp, in_function)) {
      cursor = before;
      step = unw_step(&cursor);
    }
  }
  return frames;
}

// libunwind has locks of its own, which a child of fork() would find as they are.
fiber::internal::SpinLock& LibraryLock() {
  static fiber::internal::SpinLock& lock = *[] {
    static fiber::internal::SpinLock made;
    fiber::internal::HoldAcrossForks(made);
    return &made;
  }();
  return lock;
}

}  // namespace

std::vector<void*> Unwind(const StackImage& stack, Registers registers, size_t most) {
  fiber::internal::SpinLockHolder hold(LibraryLock());
  return Walk(stack, registers).Frames(most);
}

}  // namespace sched::internal

#else

namespace sched::internal {

// From frame pointer to frame pointer: a thread's whose frame pointer is not known stays where it is.
std::vector<void*> Unwind(const StackImage& stack, Registers registers, size_t most) {
  std::vector<void*> frames;
  while (registers.pc != 0 && frames.size() < most) {
    frames.push_back(reinterpret_cast<void*>(registers.pc));
    uintptr_t next;
    if (!registers.has_fp || !stack.Read(registers.fp + sizeof(void*), &registers.pc) ||
        !stack.Read(registers.fp, &next) || (next != 0 && next <= registers.fp)) {
      break;
    }
    registers.fp = next;
  }
  return frames;
}

}  // namespace sched::internal

#endif
