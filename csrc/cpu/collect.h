// SPDX-License-Identifier: Apache-2.0
// Collect: one pass over a slice of a row under a floor that only rises.
#pragma once

#include <cstdint>
#include <vector>

#include "refine.h"
#include "vector_ops.h"

namespace gvr::cpu {

// What the phases may use; the same for all rows of a call.
struct Limits {
  int32_t staging;  // survivors that one slice can hold, > k
  int32_t chunk;    // scores between two looks at the staging area
  int32_t max_verify;
};

// Survivors of one slice. Its memory is O(staging) and is reused from row to row.
class Stage {
 public:
  void reset(const VectorOps& ops, const Limits& limits, int32_t k, uint32_t floor);

  // Admits the scores of [begin, end), in index order, that are above the floor. When the staging
  // area is full, the best k stay and the floor becomes the least of them: nothing that ranks
  // among the slice's best k is ever lost.
  void append(const void* row, int32_t begin, int32_t end);

  Survivors survivors() { return {keys_.data(), indices_.data(), count_}; }
  int32_t count() const { return count_; }
  KeyRange range() const { return range_; }
  int64_t admitted() const { return admitted_; }
  int32_t overflows() const { return overflows_; }
  int32_t refine_rounds() const { return refine_rounds_; }
  size_t bytes() const { return keys_.capacity() * (sizeof(uint32_t) + sizeof(int32_t)); }

 private:
  void compact();

  const VectorOps* ops_ = nullptr;
  Limits limits_{};
  int32_t k_ = 0;
  uint32_t floor_ = kFloorAll;
  int32_t count_ = 0;
  KeyRange range_;
  int64_t admitted_ = 0;
  int32_t overflows_ = 0;
  int32_t refine_rounds_ = 0;
  std::vector<uint32_t> keys_;
  std::vector<int32_t> indices_;
};

}  // namespace gvr::cpu
