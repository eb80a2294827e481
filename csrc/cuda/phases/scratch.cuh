// SPDX-License-Identifier: Apache-2.0
// Shared memory of one CTA of the gvr and stream kernels, and small block-wide operations on it.
#pragma once

#include <cstdint>

#include "../../common/rows.h"
#include "../config.cuh"

namespace gvr::cuda {

// Where in the order the K-th score lies, as far as the refinement knows.
struct Crossing {
  uint64_t low, high;  // rank keys, valid when !linear
  uint32_t above;      // entries better than the crossing range
  uint32_t inside;     // entries in it
  uint32_t total;      // entries in all
  int32_t bin;         // valid when linear
  bool linear;
};

// What one CTA works on. Kept in shared memory rather than in every thread's registers.
struct RowTask {
  const void* row;
  int64_t row_index;
  RowWindow window;
  int begin, end;  // this CTA's slice of the window
  int32_t* entry;  // state entry that the answer goes to, null: none (begin_entry)
};

// What the guess phase says.
struct Guess {
  uint32_t below_key;         // exclusive threshold; 0 admits everything
  float bins_low, bins_high;  // range in which the refinement looks for the K-th score first
  float needed;               // sampled scores above a threshold that admits K almost surely
};

struct alignas(16) Scratch {
  uint64_t ranks[Config::kRankCapacity];  // entries of the crossing range
  uint64_t warp_low[Config::kWarps];      // least and largest active rank key by warp
  uint64_t warp_high[Config::kWarps];
  uint64_t cta_low[kMaxCluster];  // leader: the same by CTA
  uint64_t cta_high[kMaxCluster];
  alignas(16) uint32_t bins[Config::kBins];  // histogram, the best bin first
  uint32_t rank_raw[Config::kRankCapacity];
  float rungs[Config::kWarps][Config::kRungs];
  float greatest[Config::kWarps];        // largest sampled or hinted score by warp
  float rung[Config::kRungs];            // candidate thresholds of the guess
  uint32_t rung_counts[Config::kRungs];  // sampled scores above each
  uint32_t warp_sums[Config::kWarps];
  uint32_t warp_earlier[Config::kWarps];  // the same of the CTAs before this one
  RowTask task;
  Guess guess;
  Crossing crossing;
  uint64_t kth;          // rank key of the K-th staged entry
  uint32_t count;        // entries staged, or that would have been had there been room
  uint32_t emitted;      // output position of this CTA's next entry above the crossing range
  uint32_t ranked;       // place among the leader's ranks of its next entry in that range
  uint32_t survivors;    // entries staged by all CTAs, for telemetry
  uint32_t overflows;    // leader: continuations of all CTAs, for telemetry
  uint32_t verified[3];  // leader: counts of verifying passes, used in turn
};

// Every CTA's histogram, written into each CTA of the cluster.
using MergedBins = uint16_t[kMaxCluster][Config::kBins];

// Layout of the dynamic shared memory: Scratch, staging (raw bits, indices), the first tile that is
// loaded ahead, and in a cluster the merged bins. Everything is addressed from the one symbol, so
// that addresses are constants and never occupy registers.
extern __shared__ __align__(16) unsigned char g_shared[];

__device__ __forceinline__ Scratch& shared_scratch() {
  return *reinterpret_cast<Scratch*>(g_shared);
}

// Survivors: raw score bits and row indices. capacity: a multiple of 4.
struct Staging {
  uint32_t capacity;
  __device__ __forceinline__ uint32_t& raw(uint32_t i) const {
    return reinterpret_cast<uint32_t*>(g_shared + sizeof(Scratch))[i];
  }
  __device__ __forceinline__ int32_t& index(uint32_t i) const {
    return reinterpret_cast<int32_t*>(g_shared + sizeof(Scratch))[capacity + i];
  }
  // The same of four neighbouring entries, from 4 * v on.
  __device__ __forceinline__ uint4 raws(uint32_t v) const {
    return reinterpret_cast<const uint4*>(&raw(0))[v];
  }
  __device__ __forceinline__ uint4 indices(uint32_t v) const {
    return reinterpret_cast<const uint4*>(&index(0))[v];
  }
};

// Vector u of this thread's tile ahead.
__device__ __forceinline__ uint4& shared_ahead(uint32_t capacity, int u) {
  return reinterpret_cast<uint4*>(g_shared + sizeof(Scratch) +
                                  size_t{8} * capacity)[u * Config::kThreads + threadIdx.x];
}

__host__ __device__ constexpr size_t ahead_bytes(int threads) {
  return size_t{16} * Config::kUnroll * threads;
}

__device__ __forceinline__ MergedBins& shared_merged(uint32_t capacity) {
  return *reinterpret_cast<MergedBins*>(g_shared + sizeof(Scratch) + size_t{8} * capacity +
                                        ahead_bytes(Config::kThreads));
}

__host__ __device__ constexpr size_t shared_bytes(int staging, int threads, bool cluster) {
  return sizeof(Scratch) + size_t{8} * staging + ahead_bytes(threads) +
         (cluster ? sizeof(MergedBins) : 0);
}
static_assert(sizeof(Scratch) % 16 == 0, "what follows is read by 16-byte loads");

__device__ __forceinline__ int lane_id() { return threadIdx.x & 31; }
__device__ __forceinline__ int warp_id() { return threadIdx.x >> 5; }

__device__ __forceinline__ uint32_t warp_inclusive_sum(uint32_t value) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, value, d);
    if (lane_id() >= d) value += other;
  }
  return value;
}

// Sum over the threads before this one; `total` gets the block's sum. Two barriers.
__device__ __forceinline__ uint32_t block_exclusive_sum(uint32_t value, uint32_t* warp_sums,
                                                        uint32_t& total) {
  const uint32_t inclusive = warp_inclusive_sum(value);
  if (lane_id() == 31) warp_sums[warp_id()] = inclusive;
  __syncthreads();
  uint32_t before = 0;
  total = 0;
  for (int w = 0; w < Config::kWarps; ++w) {
    const uint32_t sum = warp_sums[w];
    before += w < warp_id() ? sum : 0u;
    total += sum;
  }
  __syncthreads();
  return before + inclusive - value;
}

}  // namespace gvr::cuda
