// SPDX-License-Identifier: Apache-2.0
// Verify: count the scores above a threshold in a whole-row pass and correct it until it admits at
// least K and no more than staging holds. Each thread keeps the count of its own scores, so that
// the collection afterwards needs neither ballots nor atomics.
#pragma once

#include <cstdint>

#include "collect.cuh"
#include "scope.cuh"

namespace gvr::cuda {

template <ScoreType kType>
struct CountVisitor {
  using E = Element<kType>;
  float below;
  uint32_t count;

  __device__ __forceinline__ void tile(const Tile<kType>& t) {
    count += __popc(admitted_mask(t, below));
  }
  __device__ __forceinline__ void one(uint32_t raw, int) {
    count += !(E::to_float(raw) <= below) ? 1u : 0u;
  }
};

// Writes the thread's survivors one after the other from its own offset.
template <ScoreType kType>
struct PlaceVisitor {
  using E = Element<kType>;
  Staging staging;
  float below;
  uint32_t position;

  __device__ __forceinline__ void store(uint32_t raw, int index) {
    staging.raw(position) = raw;
    staging.index(position) = index;
    ++position;
  }
  __device__ __forceinline__ void tile(const Tile<kType>& t) {
    const uint32_t hits = admitted_mask(t, below);
#pragma unroll
    for (int b = 0; b < Tile<kType>::kScores; ++b) {
      if (hits & (1u << b)) {
        store(E::pick(t.v[b / E::kPerVector], b % E::kPerVector), t.index(b));
      }
    }
  }
  __device__ __forceinline__ void one(uint32_t raw, int index) {
    if (!(E::to_float(raw) <= below)) store(raw, index);
  }
};

struct Verdict {
  uint32_t below_key;     // exclusive threshold of the last count
  uint32_t enough_key;    // greatest threshold known to admit K or more; 0 admits everything
  uint32_t thread_count;  // this thread's scores above below_key
  int passes;
  bool accepted;  // K <= count <= capacity at below_key
};

// Count of the whole row over the scope, with one barrier: of three counters one is being read,
// one is next, and the one read a turn ago, which nobody looks at any more, is cleared.
template <class S>
__device__ __forceinline__ uint32_t scope_sum(Scratch& scratch, uint32_t value, int turn) {
  const uint32_t warp = __reduce_add_sync(~0u, value);
  uint32_t* counter = S::remote(&scratch.verified[turn % 3], 0);
  if (lane_id() == 0 && warp != 0) atomicAdd(counter, warp);
  S::sync();
  if (threadIdx.x == 0) scratch.verified[(turn + 2) % 3] = 0;
  return *counter;
}

// Secant on (threshold, log count), whose relation is close to linear in a tail; halving of the key
// range where the secant leaves the bracket. `top`: a score near the row's greatest.
template <ScoreType kType, class S>
__device__ __forceinline__ Verdict verify_threshold(Scratch& scratch, uint32_t first_key, float top,
                                                    uint32_t k, uint32_t most, int max_passes) {
  Verdict verdict{first_key, 0, 0, 0, false};
  uint32_t few_key = kKeyNan;  // least threshold known to admit fewer than K
  float known_at = top, known_log = 0.0f;
  const float goal = __logf(1.5f * static_cast<float>(k));
  while (verdict.passes < max_passes) {
    CountVisitor<kType> visitor{exclusive_float(verdict.below_key), 0};
    visit_range<kType>(scratch.task.row, scratch.task.begin, scratch.task.end, visitor);
    verdict.thread_count = visitor.count;
    const uint32_t count = scope_sum<S>(scratch, visitor.count, verdict.passes);
    ++verdict.passes;
    if (count >= k) {
      verdict.enough_key = max(verdict.enough_key, verdict.below_key);
      if (count <= most) {
        verdict.accepted = true;
        return verdict;
      }
    } else {
      few_key = min(few_key, verdict.below_key);
    }
    const float at = key_to_float(verdict.below_key);
    const float log_count = __logf(static_cast<float>(max(count, 1u)));
    const float slope = (known_log - log_count) / (known_at - at);
    const float next = at + (goal - log_count) / slope;
    known_at = at;
    known_log = log_count;
    uint32_t next_key = ordered_key(float_bits(next));
    const bool inside = next == next && next_key > verdict.enough_key && next_key < few_key;
    if (!inside) next_key = verdict.enough_key + (few_key - verdict.enough_key) / 2;
    if (next_key == verdict.below_key) break;
    verdict.below_key = next_key;
  }
  return verdict;
}

// Stage the thread's counted survivors. Block-wide; ends with a barrier.
template <ScoreType kType>
__device__ __forceinline__ void collect_counted(Scratch& scratch, Staging staging,
                                                const Verdict& verdict) {
  uint32_t total;
  const uint32_t offset = block_exclusive_sum(verdict.thread_count, scratch.warp_sums, total);
  PlaceVisitor<kType> visitor{staging, exclusive_float(verdict.below_key), offset};
  visit_range<kType>(scratch.task.row, scratch.task.begin, scratch.task.end, visitor);
  if (threadIdx.x == 0) scratch.count = total;
  __syncthreads();
}

}  // namespace gvr::cuda
