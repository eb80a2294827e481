// SPDX-License-Identifier: Apache-2.0
// What the histograms of `refine` and `resident` share: the bin of a score, and the ranking of the
// entries that lie in the bin of the K-th score.
#pragma once

#include <cstdint>

namespace gvr::cuda {

// Bin of a score as an integer code, kBinOrigin being the best. `slope` and `offset` give the way
// from the best bin, 1 being all kSteps bins. Two fused operations, each rounded once; the first
// clamps to [0, 1] in the same breath and turns NaN into 0, which is the best. Monotone in the
// score where the slope is not positive and infinities do not meet a slope of 0.
inline constexpr int kBinOrigin = 0x40000000;  // bits of 2; four times this is 0 in an address

template <int kSteps>
__device__ __forceinline__ int bin_code(float x, float slope, float offset) {
  const float way = __saturatef(fmaf(x, slope, offset));
  return __float_as_int(fmaf(way, kSteps * 0x1p-22f, 2.0f));
}

// Entries of the crossing bin are compared with all others by as many lanes each.
inline constexpr uint32_t kRankLanes = 8;

// How many of `count` entries are better than `mine`: the same for the lanes that share it. All
// lanes of the warp take part.
__device__ __forceinline__ uint32_t count_better(const uint64_t* ranks, uint32_t count,
                                                 uint64_t mine) {
  uint32_t better = 0;
#pragma unroll 4
  for (uint32_t j = threadIdx.x % kRankLanes; j < count; j += kRankLanes) {
    better += ranks[j] > mine ? 1u : 0u;
  }
  __syncwarp();
#pragma unroll
  for (uint32_t d = 1; d < kRankLanes; d *= 2) better += __shfl_xor_sync(~0u, better, d);
  return better;
}

}  // namespace gvr::cuda
