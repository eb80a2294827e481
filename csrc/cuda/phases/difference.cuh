// SPDX-License-Identifier: Apache-2.0
// What entered a row's answer since the one stored in the state, and what left it, for engines that
// move keys and values between memories.
//
// A row's last CTA does this in the selection's own launch, and stores the new answer: begin_entry
// left the state alone, because every row of the group compares with the old one. The rows of a
// group count each other in the state, in a word that draft 1's entry has no other use for, and the
// last to arrive stores all answers.
#pragma once

#include <cstdint>

#include "../../common/rows.h"
#include "scratch.cuh"
#include "slice.cuh"

namespace gvr::cuda {

struct DifferenceScratch {
  static constexpr int kTile = 2048;  // positions in the table at a time
  static constexpr int kTable = 2 * kTile;
  static constexpr int kTableBits = 12;
  static constexpr int kEach = 4;  // positions that a thread looks at together
  int32_t table[kTable];           // open addressing, -1 is free
  uint32_t warp_counts[kEach][32];
  uint32_t kth_key;  // of finish_difference, as is `last`
  bool last;

  static __device__ __forceinline__ uint32_t first_place(int32_t position) {
    return (static_cast<uint32_t>(position) * 2654435769u) >> (32 - kTableBits);  // golden ratio
  }
  __device__ __forceinline__ void insert(int32_t position) {
    for (uint32_t at = first_place(position);; at = (at + 1) % kTable) {
      const int32_t found = atomicCAS(&table[at], -1, position);
      if (found == -1 || found == position) return;
    }
  }
  __device__ __forceinline__ bool contains(int32_t position) const {
    for (uint32_t at = first_place(position);; at = (at + 1) % kTable) {
      if (table[at] == position) return true;
      if (table[at] == -1) return false;
    }
  }
};
static_assert(DifferenceScratch::kTable == 1 << DifferenceScratch::kTableBits);

// Positions of the answer, by number. A row that needed no selection holds consecutive ones: what
// its other CTAs write need not have arrived.
struct Selected {
  const int32_t* indices;
  int32_t winners;
  int32_t first = -1;  // of consecutive positions, -1: read indices
  __device__ __forceinline__ int32_t operator()(int i) const {
    return first < 0 ? indices[i] : first + i;
  }
};

// Positions that an earlier step stored (-1: dropped).
struct Stored {
  const int32_t* indices;
  int64_t offset;
  __device__ __forceinline__ int32_t operator()(int i) const {
    return stored_position(indices[i], offset);
  }
};

// out: the positions >= 0 among position_of(i), i < size, in their order; returns how many. May
// read what it overwrites: nothing moves behind the part that was just read. Block-wide.
template <class PositionOf>
__device__ __forceinline__ int keep_positions(DifferenceScratch& scratch, int32_t* out, int size,
                                              int threads, const PositionOf& position_of) {
  constexpr int kEach = DifferenceScratch::kEach;
  const int lane = lane_id(), warps = threads / 32;
  int kept = 0;
#pragma unroll 1
  for (int first = 0; first < size; first += kEach * threads) {
    int32_t position[kEach];
    uint32_t found[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int i = first + j * threads + static_cast<int>(threadIdx.x);
      position[j] = i < size ? position_of(i) : -1;
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      found[j] = __ballot_sync(~0u, position[j] >= 0);
      if (lane == 0) scratch.warp_counts[j][warp_id()] = __popc(found[j]);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const uint32_t of_lane = lane < warps ? scratch.warp_counts[j][lane] : 0u;
      const uint32_t before = __reduce_add_sync(~0u, lane < warp_id() ? of_lane : 0u);
      const uint32_t among = __popc(found[j] & ((1u << lane) - 1u));
      if (position[j] >= 0) out[kept + before + among] = position[j];
      kept += static_cast<int>(__reduce_add_sync(~0u, of_lane));
    }
    __syncthreads();
  }
  return kept;
}

// The table: the positions of b in [first, end). Block-wide.
template <class B>
__device__ __forceinline__ void fill_table(DifferenceScratch& scratch, const B& b, int first,
                                           int end, int threads) {
  __syncthreads();
  for (int i = threadIdx.x; i < DifferenceScratch::kTable; i += threads) scratch.table[i] = -1;
  __syncthreads();
#pragma unroll 4
  for (int i = first + threadIdx.x; i < end; i += threads) {
    const int32_t position = b(i);
    if (position >= 0) scratch.insert(position);
  }
  __syncthreads();
}

// out: the positions of a that b lacks, in a's order, then -1 up to k; returns how many. Constant
// shared memory, whatever the sizes: b passes through the table tile by tile. Block-wide.
template <class A, class B>
__device__ __forceinline__ int write_missing(DifferenceScratch& scratch, const A& a, int a_size,
                                             const B& b, int b_size, int32_t* out, int k,
                                             int threads) {
  constexpr int kTile = DifferenceScratch::kTile;
  const auto unless_in_table = [&](int32_t position) {
    return position >= 0 && !scratch.contains(position) ? position : -1;
  };
  fill_table(scratch, b, 0, min(kTile, b_size), threads);
  int left =
      keep_positions(scratch, out, a_size, threads, [&](int i) { return unless_in_table(a(i)); });
#pragma unroll 1
  for (int first = kTile; first < b_size; first += kTile) {
    fill_table(scratch, b, first, min(first + kTile, b_size), threads);
    left =
        keep_positions(scratch, out, left, threads, [&](int i) { return unless_in_table(out[i]); });
  }
  for (int i = left + threadIdx.x; i < k; i += threads) out[i] = -1;
  return left;
}

// A row without a valid score reads nothing of what is stored. Block-wide.
inline __device__ void write_difference(const TopKParams& p, int64_t row, const Selected& selected,
                                        HintRow previous, DifferenceScratch& scratch, int threads) {
  const int stored = selected.winners > 0 ? min(previous.size, p.k) : 0;
  const Stored before{previous.indices, p.hint_offset};
  const int entered = write_missing(scratch, selected, selected.winners, before, stored,
                                    p.difference.entered + row * p.k, p.k, threads);
  const int left = write_missing(scratch, before, stored, selected, selected.winners,
                                 p.difference.left + row * p.k, p.k, threads);
  if (threadIdx.x == 0) {
    p.difference.counts[2 * row] = entered;
    p.difference.counts[2 * row + 1] = left;
  }
}

__device__ __forceinline__ Selected selected_positions(const TopKParams& p, int64_t row) {
  const RowWindow window = row_window(p, row);
  const bool whole = window.size() <= p.k;
  return {p.indices + row * p.indices_stride, whole ? window.size() : p.k,
          whole ? window.begin : -1};
}

// The key of the least score selected. Block-wide.
template <ScoreType kType>
__device__ __forceinline__ uint32_t least_key(const TopKParams& p, int64_t row,
                                              const Selected& selected, DifferenceScratch& scratch,
                                              int threads) {
  using E = Element<kType>;
  const auto* scores = static_cast<const typename E::Storage*>(p.scores) + row * p.score_stride;
  if (threadIdx.x == 0) scratch.kth_key = ~0u;
  uint32_t key = ~0u;
  for (int i = threadIdx.x; i < selected.winners; i += threads) {
    key = min(key, E::key(E::load(scores, selected(i))));
  }
  __syncwarp();
  key = __reduce_min_sync(~0u, key);
  __syncthreads();
  if (lane_id() == 0) atomicMin(&scratch.kth_key, key);
  __syncthreads();
  return scratch.kth_key;
}

// Whether every row of the group has compared: true for the last one alone. What the others wrote
// before is then visible. Block-wide.
inline __device__ bool last_of_group(const TopKParams& p, int64_t slot,
                                     DifferenceScratch& scratch) {
  if (p.next_n == 1) {
    __syncthreads();
    return true;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto last = static_cast<uint32_t>(p.next_n - 1);
    int32_t* word = state_entry(p, slot, 1) + kStateArrived;
    scratch.last = atomicInc(reinterpret_cast<uint32_t*>(word), last) == last;
    __threadfence();
  }
  __syncthreads();
  return scratch.last;
}

}  // namespace gvr::cuda
