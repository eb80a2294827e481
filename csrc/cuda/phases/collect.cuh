// SPDX-License-Identifier: Apache-2.0
// Collect: stage every score above a threshold that only rises, reading each score once.
//
// The threshold is exclusive and kept as an ordered key: a score is staged when its key is greater.
// Invariant: at any time, every score of the part already read that belongs to the K best of that
// part is staged. Two facts keep it:
//  * the K-th best staged entry is a lower bound of the row's K-th best, so entries below it may
//  go;
//  * a CTA reads its slice in index order, so once K entries are >= v, a later score equal to v
//    loses every tie: after a compaction the threshold is exclusive of v itself. A plateau of any
//    width therefore fills the staging area at most once.
#pragma once

#include <cstdint>

#include "refine.cuh"
#include "scratch.cuh"
#include "slice.cuh"

namespace gvr::cuda {

// Exclusive threshold as the hot loop sees it: score admitted unless x <= below. NaN admits all
// scores, +inf admits NaN alone.
__device__ __forceinline__ float exclusive_float(uint32_t key) {
  if (key < kKeyMinusInf) return __uint_as_float(0x7FC00000u);
  if (key >= kKeyPlusInf) return __uint_as_float(0x7F800000u);
  // No score has the key just below zero's (it would be -0.0, which is zero): step over it.
  return key_to_float(key == kKeyZero - 1u ? key - 1u : key);
}

// Bit b: position b of the tile exists and is admitted.
template <ScoreType kType>
__device__ __forceinline__ uint32_t admitted_mask(const Tile<kType>& tile, float below) {
  using E = Element<kType>;
  static_assert(Tile<kType>::kScores <= 32, "one mask bit per score");
  uint32_t hits = 0;
#pragma unroll
  for (int b = 0; b < Tile<kType>::kScores; ++b) {
    const float x = E::to_float(E::pick(tile.v[b / E::kPerVector], b % E::kPerVector));
    hits |= !(x <= below) ? (1u << b) : 0u;
  }
  return tile.scores >= 32 ? hits : hits & ((1u << tile.scores) - 1u);
}

// Appends admitted scores: one atomic per warp and tile, offsets by a shuffle scan. The caller's
// warps are converged (visit_range's bounds are the same for all lanes of a warp).
template <ScoreType kType>
struct CollectVisitor {
  using E = Element<kType>;
  Staging staging;
  float below;

  __device__ __forceinline__ void store(uint32_t position, uint32_t raw, int index) {
    if (position < staging.capacity) {
      staging.raw(position) = raw;
      staging.index(position) = index;
    }
  }
  __device__ __forceinline__ void tile(const Tile<kType>& t) {
    const uint32_t hits = admitted_mask(t, below);
    if (!__any_sync(~0u, hits != 0)) return;
    const auto mine = static_cast<uint32_t>(__popc(hits));
    const uint32_t inclusive = warp_inclusive_sum(mine);
    uint32_t position = 0;
    if (lane_id() == 31) position = atomicAdd(&shared_scratch().count, inclusive);
    position = __shfl_sync(~0u, position, 31) + inclusive - mine;
#pragma unroll
    for (int b = 0; b < Tile<kType>::kScores; ++b) {
      if (hits & (1u << b)) {
        store(position, E::pick(t.v[b / E::kPerVector], b % E::kPerVector), t.index(b));
        ++position;
      }
    }
  }
  __device__ __forceinline__ void one(uint32_t raw, int index) {
    if (!(E::to_float(raw) <= below)) store(atomicAdd(&shared_scratch().count, 1u), raw, index);
  }
};

// Keep the entries of [0, count) with rank >= least, in any order; returns how many. Block-wide.
template <ScoreType kType>
__device__ __noinline__ uint32_t keep_staged(Staging staging, uint32_t count, uint64_t least) {
  Scratch& scratch = shared_scratch();
  uint32_t kept = 0;
  for (uint32_t base = 0; base < count; base += Config::kThreads) {
    const uint32_t i = base + threadIdx.x;
    const bool keep = i < count && staged_rank<kType>(staging, i) >= least;
    const uint32_t raw = keep ? staging.raw(i) : 0u;
    const int32_t index = keep ? staging.index(i) : 0;
    uint32_t total;
    // Its barriers lie between this round's reads and writes: kept <= base, no entry is lost.
    const uint32_t before = block_exclusive_sum(keep ? 1u : 0u, scratch.warp_sums, total);
    if (keep) {
      staging.raw(kept + before) = raw;
      staging.index(kept + before) = index;
    }
    kept += total;
    __syncthreads();
  }
  return kept;
}

// Compact [0, count) to its K best and return the new exclusive threshold. Block-wide.
template <ScoreType kType>
__device__ __noinline__ uint32_t raise_threshold(Staging staging, uint32_t count, uint32_t k,
                                                 uint32_t capacity) {
  Scratch& scratch = shared_scratch();
  const uint64_t kth = select_staged<kType>(staging, count, k, capacity);
  keep_staged<kType>(staging, count, kth);
  if (threadIdx.x == 0) scratch.count = k;
  __syncthreads();
  return rank_key_score(kth);
}

// A threshold that admits everything admits more than a CTA's staging area holds. The same for all
// CTAs of a row.
__device__ __forceinline__ bool admits_too_much(const RowTask& task, int ctas, uint32_t below_key,
                                                uint32_t capacity) {
  return below_key == 0u && static_cast<uint32_t>(task.window.size() / ctas) > capacity;
}

// A chunk admitted more than staging holds. What is staged of it is still a sample of the row, and
// its K-th best a lower bound: forget the chunk (entries from `saved` on) and return a threshold
// that admits less of it, inclusive of the bound's own score, whose ties are decided by index
// later. 0, and nothing forgotten, where that would not help: scores are so common that no bound
// separates them, or the bound is not higher than the threshold was. Block-wide.
template <ScoreType kType>
__device__ __noinline__ uint32_t forget_chunk(Staging staging, uint32_t saved, uint32_t below_key,
                                              uint32_t k, uint32_t capacity) {
  Scratch& scratch = shared_scratch();
  // A warp of distinct scores has no four alike.
  const uint32_t spread = max(staging.capacity / Config::kThreads, 1u);
  const uint32_t mine = threadIdx.x * spread % staging.capacity;
  const uint32_t alike = __popc(__match_any_sync(~0u, staging.raw(mine)));
  if (__syncthreads_count(alike >= 4u) > Config::kThreads / 2) return 0u;
  const uint64_t kth = select_staged<kType>(staging, staging.capacity, k, capacity);
  const uint64_t least = rank_key(rank_key_score(kth), INT32_MAX);
  uint32_t reach = 0;
  for (uint32_t i = threadIdx.x; i < staging.capacity; i += Config::kThreads) {
    reach += staged_rank<kType>(staging, i) >= least ? 1u : 0u;
  }
  uint32_t total;
  block_exclusive_sum(reach, scratch.warp_sums, total);
  if (total > k + k / 4 || rank_key_score(kth) - 1u <= below_key) return 0u;
  const uint32_t kept = keep_staged<kType>(staging, saved, least);
  if (threadIdx.x == 0) scratch.count = kept;
  __syncthreads();
  return rank_key_score(kth) - 1u;
}

// Stage this CTA's slice. Block-wide; ends with a barrier. Where scratch.count exceeds the capacity
// afterwards, survivors were lost and the row must be divided. Returns how often the staging area
// was full. `ahead`: load_ahead has sent for the first tile.
template <ScoreType kType>
__device__ __forceinline__ uint32_t collect_slice(Scratch& scratch, Staging staging,
                                                  const void* row, int begin, int end, int chunk,
                                                  uint32_t below_key, uint32_t k, uint32_t capacity,
                                                  bool ahead = false) {
  uint32_t overflows = 0;
  uint32_t saved = 0;  // entries staged before this chunk
  bool again = false;  // this chunk is read for the second time
  for (int at = begin; at < end;) {
    const int stop = at + min(chunk, end - at);
    CollectVisitor<kType> visitor{staging, exclusive_float(below_key)};
    visit_range<kType>(row, at, stop, visitor, staging.capacity, ahead);
    ahead = false;
    __syncthreads();
    const uint32_t count = scratch.count;
    if (count > staging.capacity) {
      ++overflows;
      if (again) break;
      const uint32_t higher = forget_chunk<kType>(staging, saved, below_key, k, capacity);
      if (higher == 0u) break;
      below_key = higher;
      saved = scratch.count;
      again = true;
    } else {
      if (stop == end) break;
      if (count > staging.capacity - staging.capacity / 4 && count > k) {
        ++overflows;
        below_key = raise_threshold<kType>(staging, count, k, capacity);
      }
      if (below_key == kKeyNan) break;  // K NaNs found: nothing that follows can win
      saved = scratch.count;
      again = false;
      at = stop;
    }
    __syncthreads();
  }
  __syncthreads();
  return overflows;
}

}  // namespace gvr::cuda
