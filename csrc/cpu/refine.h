// SPDX-License-Identifier: Apache-2.0
// Refine: the exact K-th among staged survivors.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vector_ops.h"

namespace gvr::cpu {

// Survivors of one slice of a row, in index order. Slices of a row follow each other.
struct Survivors {
  uint32_t* keys;
  int32_t* indices;
  int32_t count;
};

// The `rank`-th best key of the survivors; `range` encloses all keys, 1 <= rank <= their number.
struct KthKey {
  uint32_t key;
  int64_t ties;   // survivors equal to it that belong to the best `rank`
  int64_t equal;  // survivors equal to it
};
KthKey find_kth(const VectorOps& ops, std::span<const Survivors> slices, int64_t rank,
                KeyRange range, int32_t& rounds);

// The same as the cut that exactly `rank` survivors reach.
Cut find_cut(const VectorOps& ops, std::span<const Survivors> slices, int64_t rank, KeyRange range,
             int32_t& rounds);

// Reorders indices, given in ascending order with their keys, by key descending; equal keys keep
// their order. `scratch` grows to 2 * count entries.
void sort_by_rank(const uint32_t* keys, int32_t* indices, int32_t count,
                  std::vector<uint64_t>& scratch);

}  // namespace gvr::cpu
