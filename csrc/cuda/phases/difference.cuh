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
  int32_t table[kTable];  // open addressing, -1 is free
  uint32_t warp_counts[32];
  uint32_t kth_key;  // of finish_difference, as is `last`
  bool last;

  static __device__ __forceinline__ uint32_t first_place(int32_t position) {
    return (static_cast<uint32_t>(position) * 2654435769u) >> (32 - kTableBits);  // golden ratio
  }
  __device__ __forceinline__ void insert(int32_t position) {
#pragma unroll 1
    for (uint32_t at = first_place(position);; at = (at + 1) % kTable) {
      const int32_t found = atomicCAS(&table[at], -1, position);
      if (found == -1 || found == position) return;
    }
  }
  __device__ __forceinline__ bool contains(int32_t position) const {
#pragma unroll 1
    for (uint32_t at = first_place(position);; at = (at + 1) % kTable) {
      const int32_t found = table[at];
      if (found == position) return true;
      if (found == -1) return false;
    }
  }
};
static_assert(DifferenceScratch::kTable == 1 << DifferenceScratch::kTableBits);

// Positions by number, -1 where there is none: of an answer, or stored by an earlier step.
struct Positions {
  const int32_t* indices;
  int32_t size;
  int32_t first = -1;  // of consecutive positions, where no memory is read; -1: indices are
  int64_t offset = 0;
  __device__ __forceinline__ int32_t operator()(int i) const {
    return stored_position(first < 0 ? indices[i] : first + i, offset);
  }
};

// out: the positions of a that b lacks, in a's order, then -1 up to k; returns how many. Constant
// shared memory, whatever the sizes: b passes through the table tile by tile. The code runs once
// per call, so that its size, which has to be fetched, is most of its time: one copy, no unrolling.
// Block-wide.
inline __device__ __noinline__ int write_missing(Positions a, Positions b, int32_t* out, int k,
                                                 int threads) {
  constexpr int kTile = DifferenceScratch::kTile;
  auto& scratch = *reinterpret_cast<DifferenceScratch*>(g_shared);
  const int lane = lane_id(), warps = threads / 32;
  int kept = a.size;
  for (int tile = 0; tile == 0 || tile < b.size; tile += kTile) {
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < DifferenceScratch::kTable; i += threads) scratch.table[i] = -1;
    __syncthreads();
#pragma unroll 1
    for (int i = tile + threadIdx.x; i < min(tile + kTile, b.size); i += threads) {
      const int32_t position = b(i);
      if (position >= 0) scratch.insert(position);
    }
    __syncthreads();
    // What is left moves to the front: never behind the part that was just read.
    const int before_tile = kept;
    kept = 0;
#pragma unroll 1
    for (int first = 0; first < before_tile; first += threads) {
      const int i = first + static_cast<int>(threadIdx.x);
      int32_t position = i < before_tile ? a(i) : -1;
      if (position >= 0 && scratch.contains(position)) position = -1;
      __syncwarp();
      const uint32_t found = __ballot_sync(~0u, position >= 0);
      if (lane == 0) scratch.warp_counts[warp_id()] = __popc(found);
      __syncthreads();
      const uint32_t of_lane = lane < warps ? scratch.warp_counts[lane] : 0u;
      const uint32_t of_warps = __reduce_add_sync(~0u, lane < warp_id() ? of_lane : 0u);
      if (position >= 0) out[kept + of_warps + __popc(found & ((1u << lane) - 1u))] = position;
      kept += static_cast<int>(__reduce_add_sync(~0u, of_lane));
      __syncthreads();
    }
    a = {out, kept};
  }
#pragma unroll 1
  for (int i = kept + threadIdx.x; i < k; i += threads) out[i] = -1;
  return kept;
}

// A row without a valid score reads nothing of what is stored. Takes all shared memory. Block-wide.
inline __device__ void write_difference(const TopKParams& p, int64_t row, const Positions& selected,
                                        HintRow previous, int threads) {
  const int stored = selected.size > 0 ? min(previous.size, p.k) : 0;
  const Positions before{previous.indices, stored, -1, p.hint_offset};
  const int64_t at = row * p.k;
  const int entered = write_missing(selected, before, p.difference.entered + at, p.k, threads);
  const int left = write_missing(before, selected, p.difference.left + at, p.k, threads);
  if (threadIdx.x == 0) {
    p.difference.counts[2 * row] = entered;
    p.difference.counts[2 * row + 1] = left;
  }
}

// A row that needed no selection holds consecutive positions: what its other CTAs write of them
// need not have arrived.
inline __device__ __noinline__ Positions selected_positions(const TopKParams& p, int64_t row) {
  const RowWindow window = row_window(p, row);
  const bool whole = window.size() <= p.k;
  return {p.indices + row * p.indices_stride, whole ? window.size() : p.k,
          whole ? window.begin : -1};
}

// The key of the least score selected. Block-wide.
template <ScoreType kType>
__device__ __forceinline__ uint32_t least_key(const TopKParams& p, int64_t row,
                                              const Positions& selected, DifferenceScratch& scratch,
                                              int threads) {
  using E = Element<kType>;
  const auto* scores = static_cast<const typename E::Storage*>(p.scores) + row * p.score_stride;
  if (threadIdx.x == 0) scratch.kth_key = ~0u;
  uint32_t key = ~0u;
#pragma unroll 1
  for (int i = threadIdx.x; i < selected.size; i += threads) {
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
