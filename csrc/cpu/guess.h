// SPDX-License-Identifier: Apache-2.0
// Guess: a floor that a little more than k scores of the row are expected to exceed. It costs a few
// microseconds and may be wrong; only the time of a row depends on it.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/params.h"
#include "../common/rows.h"
#include "vector_ops.h"

namespace gvr::cpu {

struct RowView {
  const void* scores;  // of index 0, whatever the window
  ScoreType dtype;
  RowWindow window;
};

// A stratified sample of the row fixes the range that the floor must lie in; the current scores at
// the hinted positions, which need no luck to find winners, choose the place inside it.
class Guess {
 public:
  void draw(const VectorOps& ops, const RowView& row, int32_t k);
  void take_hint(const RowView& row, HintRow hint, int64_t offset);

  uint32_t floor() const { return floor_; }
  // Whether the sample holds too few winners to stand alone.
  bool wants_hint() const;

  // A floor whose count should be `wanted`, given that `floor` was found to admit `count`. The
  // sample serves as the row's distribution, scaled to agree with the count.
  uint32_t corrected(uint32_t floor, int64_t count, int64_t wanted) const;

 private:
  uint32_t floor_at(double rank) const;

  const VectorOps* ops_ = nullptr;
  uint32_t floor_ = kFloorAll;
  double expected_rank_ = 0;  // of the row's k-th score in the sample
  int32_t k_ = 1;
  KeyRange range_;
  int32_t size_ = 0;
  std::vector<int32_t> positions_;
  std::vector<uint32_t> keys_;
  std::vector<uint32_t> hinted_;
};

}  // namespace gvr::cpu
