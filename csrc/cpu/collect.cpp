// SPDX-License-Identifier: Apache-2.0
#include "collect.h"

#include <algorithm>

namespace gvr::cpu {

void Stage::reset(const VectorOps& ops, const Limits& limits, int32_t k, uint32_t floor) {
  ops_ = &ops;
  limits_ = limits;
  k_ = k;
  floor_ = floor;
  count_ = 0;
  range_ = {};
  admitted_ = 0;
  overflows_ = 0;
  refine_rounds_ = 0;
  const size_t entries = static_cast<size_t>(limits.staging) + kVectorSlack;
  if (keys_.size() < entries) {
    keys_.resize(entries);
    indices_.resize(entries);
  }
}

void Stage::append(const void* row, int32_t begin, int32_t end) {
  // A compaction costs a pass over the staged scores: it waits until most of the room is used, as
  // long as the steps do not become too short for the vectors.
  const int32_t least_room = std::min(limits_.chunk, (limits_.staging - k_ + 3) / 4);
  while (begin < end && floor_ != kKeyNan) {
    if (limits_.staging - count_ < least_room) {
      compact();
      continue;
    }
    const int32_t step = std::min({limits_.chunk, limits_.staging - count_, end - begin});
    const int32_t found = ops_->collect(row, begin, begin + step, floor_, indices_.data() + count_);
    range_.include(ops_->gather_keys(row, indices_.data() + count_, found, keys_.data() + count_));
    count_ += found;
    admitted_ += found;
    begin += step;
  }
}

void Stage::compact() {
  const Survivors staged = survivors();
  const Cut cut = find_cut(*ops_, {&staged, 1}, k_, range_, refine_rounds_);
  count_ = ops_->keep(keys_.data(), indices_.data(), count_, cut);
  range_.low = cut.key;
  // Later scores that equal the cut have higher indices and lose against what is staged.
  floor_ = cut.key;
  ++overflows_;
}

}  // namespace gvr::cpu
