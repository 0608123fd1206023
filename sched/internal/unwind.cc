// SPDX-License-Identifier: Apache-2.0
//
// A small reader of unwind tables (.eh_frame, as the C++ ABI has them for exceptions): of three registers, on a copy of a stack.
// The C++ runtime's own reader walks the caller's stack only, and gdb's kind of library is a dependency of its own.
#include "sched/internal/unwind.h"

#include <cstring>

// The C++ runtime's look-up of a table entry (in libgcc and in LLVM's libunwind): lock-free since glibc 2.35.
struct WeftEhBases {
  void* text;
  void* data;
  void* function;  // where the function begins that the entry is for
};
extern "C" const void* _Unwind_Find_FDE(void* pc, WeftEhBases* bases);

namespace sched::internal {
namespace {

// The entry for the function that has `pc`; null: it is not code, or not known.
const unsigned char* FindEntry(uintptr_t pc, uintptr_t* function = nullptr) {
  WeftEhBases bases{};
  const void* entry = _Unwind_Find_FDE(reinterpret_cast<void*>(pc), &bases);
  if (function != nullptr) *function = reinterpret_cast<uintptr_t>(bases.function);
  return static_cast<const unsigned char*>(entry);
}

// Reads what the linker has put there: no bounds are needed beyond the entry's own.
class Reader {
 public:
  explicit Reader(const unsigned char* at) : at_(at) {}
  const unsigned char* at() const { return at_; }
  void Skip(size_t bytes) { at_ += bytes; }
  template <class T>
  T Fixed() {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  uint64_t Unsigned() {
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const unsigned char byte = *at_++;
      if (shift < 64) value |= uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) == 0) return value;
    }
  }
  int64_t Signed() {
    uint64_t value = 0;
    unsigned shift = 0;
    unsigned char byte;
    do {
      byte = *at_++;
      if (shift < 64) value |= uint64_t{byte & 0x7fu} << shift;
      shift += 7;
    } while ((byte & 0x80) != 0);
    if (shift < 64 && (byte & 0x40) != 0) value |= ~uint64_t{0} << shift;
    return static_cast<int64_t>(value);
  }

 private:
  const unsigned char* at_;
};

#if defined(__x86_64__)

constexpr uint64_t kFp = 6;  // DWARF's numbers on x86-64
constexpr uint64_t kSp = 7;
constexpr uint64_t kReturn = 16;

// Where a caller's register is.
struct Rule {
  enum class Kind : uint8_t { kSame, kSaved, kUndefined, kOther } kind = Kind::kSame;
  int64_t offset = 0;  // kSaved: from the frame's address
};

// How to leave a function, at one place in it.
struct Row {
  uint64_t base = kSp;  // the frame's address is this register and…
  int64_t offset = 0;
  bool is_plain = true;  // else: by an expression
  Rule fp;
  Rule returns;
  Rule* Of(uint64_t number) { return number == kFp ? &fp : number == kReturn ? &returns : nullptr; }
};

size_t PointerBytes(uint8_t encoding) {
  switch (encoding & 0x07) {
    case 2: return 2;
    case 3: return 4;
    default: return 8;
  }
}

// Runs a table's instructions up to those for `pc`. False: one is not known.
class Interpreter {
 public:
  Interpreter(uintptr_t function, uintptr_t pc, uint64_t code_factor, int64_t data_factor)
      : at_(function), pc_(pc), code_factor_(code_factor), data_factor_(data_factor) {}

  bool Run(const unsigned char* begin, const unsigned char* end, Row& row) {
    initial_ = row;
    Reader reader(begin);
    while (reader.at() < end && at_ <= pc_) {
      if (!Step(reader, row)) return false;
    }
    return true;
  }

 private:
  void Advance(uint64_t delta) { at_ += delta * code_factor_; }
  void Save(Row& row, uint64_t number, int64_t factored) {
    if (Rule* rule = row.Of(number)) *rule = {Rule::Kind::kSaved, factored * data_factor_};
  }
  void Set(Row& row, uint64_t number, Rule::Kind kind) {
    if (Rule* rule = row.Of(number)) *rule = {kind, 0};
  }
  void Restore(Row& row, uint64_t number) {
    if (Rule* rule = row.Of(number)) *rule = *initial_.Of(number);
  }

  bool Step(Reader& reader, Row& row) {
    const uint8_t code = reader.Fixed<uint8_t>();
    const uint8_t low = code & 0x3f;
    switch (code & 0xc0) {
      case 0x40: Advance(low); return true;
      case 0x80: Save(row, low, static_cast<int64_t>(reader.Unsigned())); return true;
      case 0xc0: Restore(row, low); return true;
    }
    switch (code) {
      case 0x00: return true;                                            // nop
      case 0x02: Advance(reader.Fixed<uint8_t>()); return true;     // advance_loc1
      case 0x03: Advance(reader.Fixed<uint16_t>()); return true;    // advance_loc2
      case 0x04: Advance(reader.Fixed<uint32_t>()); return true;    // advance_loc4
      case 0x05: {                                                       // offset_extended
        const uint64_t number = reader.Unsigned();
        Save(row, number, static_cast<int64_t>(reader.Unsigned()));
        return true;
      }
      case 0x06: Restore(row, reader.Unsigned()); return true;                        // restore_extended
      case 0x07: Set(row, reader.Unsigned(), Rule::Kind::kUndefined); return true;    // undefined
      case 0x08: Set(row, reader.Unsigned(), Rule::Kind::kSame); return true;         // same_value
      case 0x09: {                                                                    // register
        Set(row, reader.Unsigned(), Rule::Kind::kOther);
        reader.Unsigned();
        return true;
      }
      case 0x0a:  // remember_state
        if (depth_ == kMostRemembered) return false;
        remembered_[depth_++] = row;
        return true;
      case 0x0b:  // restore_state
        if (depth_ == 0) return false;
        row = remembered_[--depth_];
        return true;
      case 0x0c:  // def_cfa
        row.base = reader.Unsigned();
        row.offset = static_cast<int64_t>(reader.Unsigned());
        row.is_plain = true;
        return true;
      case 0x0d: row.base = reader.Unsigned(); return true;                          // def_cfa_register
      case 0x0e: row.offset = static_cast<int64_t>(reader.Unsigned()); return true;  // def_cfa_offset
      case 0x0f:                                                                     // def_cfa_expression
        row.is_plain = false;
        reader.Skip(reader.Unsigned());
        return true;
      case 0x10:    // expression
      case 0x16: {  // val_expression
        Set(row, reader.Unsigned(), Rule::Kind::kOther);
        reader.Skip(reader.Unsigned());
        return true;
      }
      case 0x11: {  // offset_extended_sf
        const uint64_t number = reader.Unsigned();
        Save(row, number, reader.Signed());
        return true;
      }
      case 0x12:  // def_cfa_sf
        row.base = reader.Unsigned();
        row.offset = reader.Signed() * data_factor_;
        row.is_plain = true;
        return true;
      case 0x13: row.offset = reader.Signed() * data_factor_; return true;  // def_cfa_offset_sf
      case 0x14:                                                           // val_offset
      case 0x15:                                                           // val_offset_sf
        Set(row, reader.Unsigned(), Rule::Kind::kOther);
        reader.Unsigned();
        return true;
      case 0x2e: reader.Unsigned(); return true;  // GNU_args_size
      default: return false;
    }
  }

  static constexpr int kMostRemembered = 8;

  uintptr_t at_;
  const uintptr_t pc_;
  const uint64_t code_factor_;
  const int64_t data_factor_;
  Row initial_;
  Row remembered_[kMostRemembered];
  int depth_ = 0;
};

// The row for `pc`. False: there is none that this reader understands.
bool FindRow(uintptr_t pc, Row* row) {
  uintptr_t function = 0;
  const unsigned char* const entry = FindEntry(pc, &function);
  if (entry == nullptr) return false;
  Reader reader(entry);
  const uint32_t size = reader.Fixed<uint32_t>();
  if (size == 0 || size == 0xffffffff) return false;
  const unsigned char* const end = reader.at() + size;
  const unsigned char* const common = reader.at() - *reinterpret_cast<const int32_t*>(reader.at());

  Reader head(common);
  const uint32_t head_size = head.Fixed<uint32_t>();
  if (head_size == 0 || head_size == 0xffffffff) return false;
  const unsigned char* const head_end = head.at() + head_size;
  head.Skip(4);  // an id
  const uint8_t version = head.Fixed<uint8_t>();
  const char* const augmentation = reinterpret_cast<const char*>(head.at());
  head.Skip(std::strlen(augmentation) + 1);
  const uint64_t code_factor = head.Unsigned();
  const int64_t data_factor = head.Signed();
  const uint64_t return_number = version == 1 ? head.Fixed<uint8_t>() : head.Unsigned();
  if (return_number != kReturn) return false;
  uint8_t encoding = 0;
  if (augmentation[0] == 'z') {
    const uint64_t length = head.Unsigned();
    const unsigned char* const after = head.at() + length;
    for (const char* letter = augmentation + 1; *letter != '\0'; ++letter) {
      switch (*letter) {
        case 'R': encoding = head.Fixed<uint8_t>(); break;
        case 'L': head.Skip(1); break;
        case 'P': head.Skip(PointerBytes(head.Fixed<uint8_t>())); break;
        case 'S': return false;  // a signal's frame: its registers are elsewhere
        default: return false;
      }
    }
    head = Reader(after);
  } else if (augmentation[0] != '\0') {
    return false;
  }

  reader.Skip(4 + 2 * PointerBytes(encoding));
  if (augmentation[0] == 'z') {
    const uint64_t length = reader.Unsigned();
    reader.Skip(length);
  }
  *row = Row{};
  Interpreter initial(function, pc, code_factor, data_factor);
  if (!initial.Run(head.at(), head_end, *row)) return false;
  Interpreter own(function, pc, code_factor, data_factor);
  return own.Run(reader.at(), end, *row);
}

// How well a return address fits a frame of `function`.
enum class Fit : uint8_t {
  kNone,   // it is in the same function, behind a call of another: left over from that call
  kOther,  // behind a call of another function, which may have jumped to this one
  kMay,    // behind a call by pointer, or through a linkage table
  kIs,     // behind a call of this function
};

Fit FitOf(uintptr_t return_address, uintptr_t function) {
  uintptr_t caller = 0;
  FindEntry(return_address - 1, &caller);
  Fit fit = Fit::kMay;
  const auto* const call = reinterpret_cast<const unsigned char*>(return_address - 5);
  if (FindEntry(return_address - 5) != nullptr && call[0] == 0xe8) {
    int32_t distance;
    std::memcpy(&distance, call + 1, sizeof distance);
    const uintptr_t target = return_address + static_cast<uintptr_t>(static_cast<intptr_t>(distance));
    uintptr_t called = 0;
    if (target == function) {
      fit = Fit::kIs;
    } else if (FindEntry(target, &called) != nullptr && called == target) {
      fit = Fit::kOther;
    }
  }
  return fit != Fit::kIs && caller == function ? Fit::kNone : fit;
}

// Whether a frame pointer can have been `frame`: it leads to a return address, and to another one, or says that it is the last.
bool IsFrame(const StackImage& stack, uintptr_t frame, uintptr_t* return_address) {
  constexpr int kHops = 3;
  for (int i = 0; i < kHops; ++i) {
    uintptr_t next;
    uintptr_t returns;
    if (!stack.Read(frame, &next) || !stack.Read(frame + sizeof(void*), &returns)) return i > 0;
    if (returns == 0 || FindEntry(returns - 1) == nullptr) return false;
    if (i == 0) *return_address = returns;
    if (next == 0) return true;
    if (next <= frame) return false;
    frame = next;
  }
  return true;
}

// The frame pointer of the function that has `pc` and whose frame ends above `sp`: the innermost of those that fit best. False:
// none is to be seen.
bool FindFrame(const StackImage& stack, uintptr_t sp, uintptr_t pc, uintptr_t* frame) {
  uintptr_t function = 0;
  FindEntry(pc, &function);
  Fit best = Fit::kNone;
  uintptr_t word;
  for (uintptr_t at = (sp + 7) & ~uintptr_t{7}; best != Fit::kIs && stack.Read(at, &word); at += sizeof word) {
    if (word != 0 && (word <= at || word - stack.low >= stack.bytes.size())) continue;
    uintptr_t return_address;
    if (!IsFrame(stack, at, &return_address)) continue;
    const Fit fit = FitOf(return_address, function);
    if (fit <= best) continue;
    best = fit;
    *frame = at;
  }
  return best != Fit::kNone;
}

// Goes to the caller, whose pc is 0 if there is none. False: it is not to be found.
bool StepOut(const StackImage& stack, uintptr_t pc, Registers& registers) {
  Row row;
  uintptr_t frame_address = 0;
  const bool has_row = FindRow(pc, &row) && row.is_plain && (row.base == kSp || row.base == kFp);
  if (has_row && row.returns.kind == Rule::Kind::kUndefined) {
    registers.pc = 0;
    return true;
  }
  if (has_row && row.returns.kind == Rule::Kind::kSaved) {
    if (row.base == kFp && !registers.has_fp) {
      registers.has_fp = FindFrame(stack, registers.sp, pc, &registers.fp);
      if (!registers.has_fp) return false;
    }
    frame_address = (row.base == kSp ? registers.sp : registers.fp) + static_cast<uintptr_t>(row.offset);
    if (!stack.Read(frame_address + static_cast<uintptr_t>(row.returns.offset), &registers.pc)) return false;
    if (row.fp.kind == Rule::Kind::kSaved) {
      registers.has_fp = stack.Read(frame_address + static_cast<uintptr_t>(row.fp.offset), &registers.fp);
    } else if (row.fp.kind != Rule::Kind::kSame) {
      registers.has_fp = false;
    }
  } else {
    // Code without tables: it may keep frame pointers.
    uintptr_t return_address;
    if (!registers.has_fp || registers.fp < registers.sp || !IsFrame(stack, registers.fp, &return_address)) {
      registers.has_fp = FindFrame(stack, registers.sp, pc, &registers.fp);
      if (!registers.has_fp) return false;
    }
    frame_address = registers.fp + 2 * sizeof(void*);
    if (!stack.Read(registers.fp + sizeof(void*), &registers.pc) || !stack.Read(registers.fp, &registers.fp)) return false;
  }
  if (frame_address <= registers.sp) return false;  // a caller's frame is further out
  registers.sp = frame_address;
  return true;
}

#else

// From frame pointer to frame pointer: a thread's whose frame pointer is not known stays where it is.
bool StepOut(const StackImage& stack, uintptr_t, Registers& registers) {
  uintptr_t next;
  if (!registers.has_fp || !stack.Read(registers.fp + sizeof(void*), &registers.pc) ||
      !stack.Read(registers.fp, &next) || (next != 0 && next <= registers.fp)) {
    return false;
  }
  registers.fp = next;
  return true;
}

#endif

}  // namespace

std::vector<void*> Unwind(const StackImage& stack, Registers registers, size_t most) {
  std::vector<void*> frames;
  while (registers.pc != 0 && frames.size() < most) {
    // A return address may be the first one of the next function: the call is just before it.
    const uintptr_t pc = frames.empty() ? registers.pc : registers.pc - 1;
    if (!frames.empty() && FindEntry(pc) == nullptr) break;  // no code
    frames.push_back(reinterpret_cast<void*>(registers.pc));
    if (!StepOut(stack, pc, registers)) break;
  }
  return frames;
}

}  // namespace sched::internal
