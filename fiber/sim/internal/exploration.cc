// SPDX-License-Identifier: Apache-2.0
#include "fiber/sim/internal/exploration.h"

#include <algorithm>
#include <charconv>

#include "absl/strings/str_cat.h"

namespace fiber::sim::internal {
namespace {

constexpr std::string_view kDigits = "0123456789abcdefghijklmnopqrstuvwxyz";

}  // namespace

std::optional<Exploration> Exploration::Parse(std::string_view text) {
  if (text.empty()) return std::nullopt;
  Exploration exploration;
  while (!text.empty()) {
    uint32_t chosen = 0;
    if (text.front() == '(') {
      const char* const end = text.data() + text.size();
      const auto [stop, error] = std::from_chars(text.data() + 1, end, chosen);
      if (error != std::errc() || stop == end || *stop != ')') return std::nullopt;
      text.remove_prefix(static_cast<size_t>(stop + 1 - text.data()));
    } else {
      const size_t digit = kDigits.find(text.front());
      if (digit == std::string_view::npos) return std::nullopt;
      chosen = static_cast<uint32_t>(digit);
      text.remove_prefix(1);
    }
    exploration.steps_.push_back({chosen, 0});
  }
  return exploration;
}

uint32_t Exploration::Choose(uint32_t count) {
  if (count == 1) return 0;
  if (done_ == steps_.size()) steps_.push_back({0, count});
  Step& step = steps_[done_++];
  if (step.count != count && (step.count != 0 || step.chosen >= count) && divergence_.empty()) {
    divergence_ = absl::StrCat("choice ", done_, " is one of ", count, " and was ",
                               step.count == 0 ? absl::StrCat("number ", step.chosen)
                                               : absl::StrCat("one of ", step.count));
  }
  step.count = count;
  step.chosen = std::min(step.chosen, count - 1);
  return step.chosen;
}

bool Exploration::Next() {
  steps_.resize(done_);
  while (!steps_.empty() && steps_.back().chosen + 1 == steps_.back().count) steps_.pop_back();
  if (steps_.empty()) return false;
  ++steps_.back().chosen;
  done_ = 0;
  return true;
}

std::string Exploration::schedule() const {
  std::string text;
  Print([&text](std::string_view piece) { text.append(piece); });
  return text;
}

void Exploration::Print(absl::FunctionRef<void(std::string_view)> emit) const {
  size_t count = done_;
  while (count > 0 && steps_[count - 1].chosen == 0) --count;
  if (count == 0) emit("0");
  for (size_t i = 0; i < count; ++i) {
    const uint32_t chosen = steps_[i].chosen;
    if (chosen < kDigits.size()) {
      emit(kDigits.substr(chosen, 1));
      continue;
    }
    char digits[16];
    const auto end = std::to_chars(digits, digits + sizeof digits, chosen).ptr;
    emit("(");
    emit({digits, static_cast<size_t>(end - digits)});
    emit(")");
  }
}

std::string Exploration::Divergence() const {
  if (!divergence_.empty() || done_ == steps_.size()) return divergence_;
  // Zeros were left out where it was written down, and may have been put there by hand.
  const bool has_more = std::any_of(steps_.begin() + static_cast<ptrdiff_t>(done_), steps_.end(),
                                    [](const Step& step) { return step.chosen != 0; });
  return has_more ? absl::StrCat("it ended after ", done_, " of ", steps_.size(), " choices")
                  : std::string();
}

}  // namespace fiber::sim::internal
