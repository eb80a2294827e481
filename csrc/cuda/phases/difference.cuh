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
  int32_t a[kTile], b[kTile];
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

// list[i] = positions(from + i) for i < count. All loads of a thread are in flight together, which
// a loop that does more with them would not allow: memory answers after a microsecond.
__device__ __forceinline__ void load_list(int32_t* list, const Positions& positions, int from,
                                          int count, int threads) {
  constexpr int kBatch = 8;
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kBatch * threads) {
    int32_t loaded[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = first + j * threads;
      loaded[j] = i < count ? positions(from + i) : -1;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = first + j * threads;
      if (i < count) list[i] = loaded[j];
    }
  }
}

// out: those of scratch.a[0, count) that the table lacks, in order, behind the first `kept` of out;
// returns their end. Block-wide.
__device__ __forceinline__ int keep_missing(DifferenceScratch& scratch, int count, int32_t* out,
                                            int kept, int threads) {
  const int lane = lane_id(), warps = threads / 32;
#pragma unroll 1
  for (int first = 0; first < count; first += threads) {
    const int i = first + static_cast<int>(threadIdx.x);
    int32_t position = i < count ? scratch.a[i] : -1;
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
  return kept;
}

// out: the positions of a that b lacks, in a's order, then -1 up to k; returns how many. Constant
// shared memory, whatever the sizes: both pass through it tile by tile. One copy of the code,
// little unrolled: it runs once per call and has to be fetched. Block-wide.
inline __device__ __noinline__ int write_missing(Positions a, Positions b, int32_t* out, int k,
                                                 int threads) {
  constexpr int kTile = DifferenceScratch::kTile;
  auto& scratch = *reinterpret_cast<DifferenceScratch*>(g_shared);
  for (int of_b = 0; of_b == 0 || of_b < b.size; of_b += kTile) {
    __syncthreads();
    const int count = min(b.size - of_b, kTile);
    load_list(scratch.b, b, of_b, count, threads);
    load_list(scratch.a, a, 0, min(a.size, kTile), threads);
#pragma unroll 1
    for (int i = threadIdx.x; i < DifferenceScratch::kTable; i += threads) scratch.table[i] = -1;
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += threads) {
      if (scratch.b[i] >= 0) scratch.insert(scratch.b[i]);
    }
    __syncthreads();
    // What is left moves to the front: never behind the part that was just read.
    int kept = keep_missing(scratch, min(a.size, kTile), out, 0, threads);
#pragma unroll 1
    for (int of_a = kTile; of_a < a.size; of_a += kTile) {
      load_list(scratch.a, a, of_a, min(a.size - of_a, kTile), threads);
      __syncthreads();
      kept = keep_missing(scratch, min(a.size - of_a, kTile), out, kept, threads);
    }
    a = {out, kept};
  }
#pragma unroll 1
  for (int i = a.size + threadIdx.x; i < k; i += threads) out[i] = -1;
  return a.size;
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
  constexpr int kBatch = 8;  // loads in flight
  uint32_t key = ~0u;
#pragma unroll 1
  for (int first = threadIdx.x; first < selected.size; first += kBatch * threads) {
    int32_t position[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = first + j * threads;
      position[j] = selected(i < selected.size ? i : first);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) key = min(key, E::key(E::load(scores, position[j])));
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
