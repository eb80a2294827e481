// SPDX-License-Identifier: Apache-2.0
// Rows that fit into the registers of their CTAs: one load, one histogram, one ranking. No guess, no
// staging, no hint: what the hint could save is not spent here.
//
// The histogram's bins are linear between a bound that a sample of the row puts below the K-th
// score and one above the sample's largest score. All CTAs of a row read the same sample, so they
// agree on the bins without a word. When the bound was too high or the bin of the K-th score holds
// more entries than can be ranked by comparison (ties, wild distributions), the row is answered by
// the stream kernel's phases instead, which read it again, from the cache.
#pragma once

#include "stream.cuh"

namespace gvr::cuda {

// Shared memory; the stream phases use the same bytes after a fallback.
template <int kThreads>
struct ResidentScratch {
  static constexpr int kWarps = kThreads / 32;
  uint64_t ranks[Config::kRankCapacity];  // leader: entries of the crossing bin
  uint32_t rank_raw[Config::kRankCapacity];
  alignas(16) uint32_t bins[kThreads];  // one bin per thread
  uint32_t warp_low[kWarps], warp_high[kWarps];
  uint32_t warp_here[kWarps], warp_earlier[kWarps];
  // Where the K-th score lies: entries in better bins and in its bin, of all CTAs and of the CTAs
  // before this one. `bin` is negative where the histogram holds fewer than K entries.
  int32_t bin;
  uint32_t above, inside, above_earlier, inside_earlier;
  uint32_t admitted;  // entries of the histogram, for telemetry
  uint32_t emitted;   // entries of better bins placed by this CTA
  uint32_t ranked;    // entries of the crossing bin placed by this CTA
};

template <int kThreads>
__host__ __device__ constexpr size_t resident_shared_bytes(bool cluster) {
  return sizeof(ResidentScratch<kThreads>) +
         (cluster ? sizeof(uint16_t) * kMaxCluster * kThreads : size_t{0});
}

template <int kThreads>
__device__ __forceinline__ ResidentScratch<kThreads>& resident_scratch() {
  return *reinterpret_cast<ResidentScratch<kThreads>*>(g_shared);
}

// Every CTA's histogram, written into each CTA of the cluster.
template <int kThreads>
using ResidentMerged = uint16_t[kMaxCluster][kThreads];

template <int kThreads>
__device__ __forceinline__ ResidentMerged<kThreads>& resident_merged() {
  return *reinterpret_cast<ResidentMerged<kThreads>*>(g_shared + sizeof(ResidentScratch<kThreads>));
}

// One thread's share of a slice. What does not exist holds -inf, which no bin admits.
template <ScoreType kType, int kThreads, int kVectors>
struct ResidentSlice {
  using E = Element<kType>;
  static constexpr int kScores = kVectors * E::kPerVector;
  uint4 v[kVectors];
  int first;  // row index of the first vector's first score
  uint32_t edge;
  int edge_index;

  __device__ __forceinline__ void load(const void* row, int begin, int end) {
    constexpr uint32_t kFill =
        sizeof(typename E::Storage) == 4 ? E::Traits::kMinusInf : E::Traits::kMinusInf * 0x10001u;
    const VectorRange<kType> range(row, begin, end);
    const uint4* data = range.data(row);
    first = range.body + static_cast<int>(threadIdx.x) * E::kPerVector;
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      const int at = static_cast<int>(threadIdx.x) + u * kThreads;
      v[u] = make_uint4(kFill, kFill, kFill, kFill);
      if (at < range.vectors) v[u] = __ldg(data + at);
    }
    edge = E::Traits::kMinusInf;
    edge_index = -1;
    if (static_cast<int>(threadIdx.x) < range.edge_count()) {
      edge_index = range.edge_index(threadIdx.x);
      edge = E::load(row, edge_index);
    }
  }
  __device__ __forceinline__ uint32_t raw(int b) const {
    return E::pick(v[b / E::kPerVector], b % E::kPerVector);
  }
  __device__ __forceinline__ int index(int b) const {
    return first + (b / E::kPerVector) * kThreads * E::kPerVector + b % E::kPerVector;
  }
};

// Position on the bins' scale, as the bits of 2^23 + position: one fused multiply-add rounds to the
// bin, and integer compares do the rest. Monotone in the score; NaN and +inf are in the best bin,
// -inf and whatever lies under the bound in none.
struct ResidentBins {
  static constexpr int kOrigin = 0x4B000000;  // bits of 2^23
  float scale, offset;

  __device__ __forceinline__ int bits(float x) const {
    return __float_as_int(fmaf(x, scale, offset));
  }
  static __device__ __forceinline__ bool admits(int bits) { return bits >= kOrigin; }
};

// One score in `group` has to exceed the bound for it to hold in that group: the largest group for
// which a share `wanted` of the row almost surely puts a winner into each of `threads / group`
// groups.
__device__ __forceinline__ int bound_group(float wanted, int threads) {
  constexpr float kLogFailure = -13.0f;  // log2 of the accepted probability of a second reading
  int group = 1;
  float none = 1.0f - wanted;  // probability that a group holds no winner
  for (int g = 2; g <= 32; g *= 2) {
    none *= none;
    // The bound fails when every group holds a winner.
    if (__log2f(1.0f - none) * static_cast<float>(threads / g) > kLogFailure) break;
    group = g;
  }
  return group;
}

// Bins between the least of the groups' largest sampled scores and a little more than the largest
// of all. Block-wide, one barrier.
template <int kThreads>
__device__ __forceinline__ ResidentBins resident_bins(ResidentScratch<kThreads>& scratch,
                                                      uint32_t sampled, int group) {
  constexpr int kWarps = kThreads / 32;
  uint32_t best = sampled;
  for (int d = 1; d < group; d *= 2) best = max(best, __shfl_xor_sync(~0u, best, d));
  // Scores without a finite distance say nothing about the bins.
  const uint32_t low = __reduce_min_sync(~0u, best > kKeyMinusInf ? best : kKeyNan);
  const uint32_t high = __reduce_max_sync(~0u, sampled < kKeyPlusInf ? sampled : 0u);
  if (lane_id() == 0) {
    scratch.warp_low[warp_id()] = low;
    scratch.warp_high[warp_id()] = high;
  }
  __syncthreads();
  const int warp = lane_id() % kWarps;
  const float from = key_to_float(__reduce_min_sync(~0u, scratch.warp_low[warp]));
  const float most = key_to_float(__reduce_max_sync(~0u, scratch.warp_high[warp]));
  const float to = most + 0.5f * (most - from);
  ResidentBins bins;
  bins.scale = __fdividef(static_cast<float>(kThreads), to - from);
  bins.offset = fmaf(-from, bins.scale, __int_as_float(ResidentBins::kOrigin));
  // A range that floats cannot divide admits nothing, and the row falls back.
  const bool divides = to > from && bins.scale < 1.0e30f && fabsf(from) < 1.0e30f;
  if (!divides) bins.scale = bins.offset = 0.0f;
  return bins;
}

// This CTA's bins -> scratch.bin and its companions. Block-wide; the bins must be complete.
template <class S, int kThreads>
__device__ __forceinline__ void merge_bins(ResidentScratch<kThreads>& scratch, uint32_t wanted) {
  constexpr int kWarps = kThreads / 32;
  const int bin = kThreads - 1 - static_cast<int>(threadIdx.x);  // best bin first
  uint32_t here = 0, earlier = 0;
  if constexpr (S::kIsCluster) {
    S::wait();  // everybody has started
    ResidentMerged<kThreads>& merged = resident_merged<kThreads>();
    constexpr int kPacked = kThreads / 8;  // vectors of eight 16-bit counts
    const int part = threadIdx.x % kPacked;
    const uint4 a = reinterpret_cast<const uint4*>(scratch.bins)[2 * part];
    const uint4 b = reinterpret_cast<const uint4*>(scratch.bins)[2 * part + 1];
    const uint4 packed =
        make_uint4(a.x | (a.y << 16), a.z | (a.w << 16), b.x | (b.y << 16), b.z | (b.w << 16));
    for (int to = threadIdx.x / kPacked; to < S::size(); to += kThreads / kPacked) {
      reinterpret_cast<uint4*>(S::remote(&merged[S::rank()][0], to))[part] = packed;
    }
    S::sync();
#pragma unroll 4
    for (int c = 0; c < S::size(); ++c) {
      const uint32_t count = merged[c][bin];
      here += count;
      earlier += c < S::rank() ? count : 0u;
    }
  } else {
    here = scratch.bins[bin];
  }
  const uint32_t here_sum = warp_inclusive_sum(here);
  const uint32_t earlier_sum = S::kIsCluster ? warp_inclusive_sum(earlier) : 0u;
  if (lane_id() == 31) {
    scratch.warp_here[warp_id()] = here_sum;
    scratch.warp_earlier[warp_id()] = earlier_sum;
  }
  __syncthreads();
  const bool before = lane_id() < warp_id() && lane_id() < kWarps;
  const int warp = lane_id() % kWarps;
  const uint32_t above =
      __reduce_add_sync(~0u, before ? scratch.warp_here[warp] : 0u) + here_sum - here;
  if (above < wanted && wanted <= above + here) {
    scratch.bin = bin;
    scratch.above = above;
    scratch.inside = here;
    scratch.inside_earlier = earlier;
  }
  if (S::kIsCluster) {
    const uint32_t above_earlier =
        __reduce_add_sync(~0u, before ? scratch.warp_earlier[warp] : 0u) + earlier_sum - earlier;
    if (above < wanted && wanted <= above + here) scratch.above_earlier = above_earlier;
  }
  if (threadIdx.x == kThreads - 1) scratch.admitted = above + here;
  __syncthreads();
}

// The rare end: the stream kernel's phases, on as many threads as they are written for. Every CTA
// of the row takes this turn together.
template <ScoreType kType, class S, int kThreads>
__device__ __noinline__ void fall_back(const TopKParams& p, const Plan& plan) {
  S::sync();  // nobody looks at the bins any more
  if (threadIdx.x >= Config::kThreads) return;
  stream_row<kType, S>(p, plan, Path::kResident, 2);
}

// Grid: rows * ctas_per_row blocks; the blocks of a row form a cluster when there are several.
template <ScoreType kType, bool kCluster, int kThreads, int kVectors>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    resident_kernel(const __grid_constant__ TopKParams p, const __grid_constant__ Plan plan) {
  using E = Element<kType>;
  using S = Scope<kCluster>;
  using Bins = ResidentBins;
  auto& scratch = resident_scratch<kThreads>();
  scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.bin = -1;
    scratch.above_earlier = 0;
    scratch.emitted = 0;
    scratch.ranked = 0;
  }
  wait_for_predecessor();
  const RowTask task = make_task<kType, S>(p);
  if (task.window.size() <= p.k) {
    emit_short_row<kType>(p, task.row_index, task.row, task.window, S::rank(), S::size());
    return;
  }
  S::announce();  // completed before the first store into another CTA
  ResidentSlice<kType, kThreads, kVectors> slice;
  slice.load(task.row, task.begin, task.end);
  const auto k = static_cast<uint32_t>(p.k);
  const auto n = static_cast<uint32_t>(task.window.size());

  uint32_t sampled;
  if constexpr (kCluster) {
    // Lane by lane through the row, so that every warp's sample spans it.
    const uint32_t stratum = lane_id() * (kThreads / 32) + warp_id();
    const uint32_t width = max(n / kThreads, 1u);
    const uint32_t at = stratum * width + __umulhi(stratum * 0x9E3779B1u, width);
    sampled = E::load(task.row, task.window.begin + static_cast<int>(min(at, n - 1)));
  } else {
    sampled = slice.raw(0);
#pragma unroll
    for (int u = 1; u < kVectors; ++u) {
      if (warp_id() % kVectors == u) sampled = slice.raw(u * E::kPerVector);
    }
  }
  const int group = bound_group(__fdividef(static_cast<float>(k), static_cast<float>(n)), kThreads);
  const Bins bins = resident_bins<kThreads>(scratch, E::key(sampled), group);

#pragma unroll
  for (int b = 0; b < slice.kScores; ++b) {
    const int bits = bins.bits(E::to_float(slice.raw(b)));
    if (Bins::admits(bits)) atomicAdd(&scratch.bins[min(bits - Bins::kOrigin, kThreads - 1)], 1u);
  }
  if (warp_id() == 0) {
    const int bits = bins.bits(E::to_float(slice.edge));
    if (Bins::admits(bits)) atomicAdd(&scratch.bins[min(bits - Bins::kOrigin, kThreads - 1)], 1u);
  }
  __syncthreads();
  merge_bins<S, kThreads>(scratch, k);
  const int bin = scratch.bin;
  const uint32_t inside = scratch.inside;
  if (bin < 0 || inside > static_cast<uint32_t>(plan.rank_capacity) || plan.force_undershoot) {
    fall_back<kType, S, kThreads>(p, plan);
    return;
  }

  // Winners are counted per thread and placed from a running sum: no ballots.
  const RowOutput<kType> output(p, task.row_index);
  const uint32_t above = scratch.above;
  // The best bin is open above.
  const int from = Bins::kOrigin + bin;
  const int to = bin == kThreads - 1 ? INT32_MAX : from;
  uint32_t winners = 0, crossing = 0;
#pragma unroll
  for (int b = 0; b < slice.kScores; ++b) {
    const int bits = bins.bits(E::to_float(slice.raw(b)));
    if (bits > to) {
      winners |= 1u << b;
    } else if (bits >= from) {
      crossing |= 1u << b;
    }
  }
  const int edge_bits = bins.bits(E::to_float(slice.edge));
  const uint32_t mine = __popc(winners) + (edge_bits > to ? 1u : 0u);
  const uint32_t through = warp_inclusive_sum(mine);
  uint32_t position = 0;
  if (lane_id() == 31 && through != 0) position = atomicAdd(&scratch.emitted, through);
  position = __shfl_sync(~0u, position, 31) + scratch.above_earlier + through - mine;
  if (mine != 0) {
#pragma unroll
    for (int b = 0; b < slice.kScores; ++b) {
      if (winners & (1u << b)) output.put(position++, slice.raw(b), slice.index(b));
    }
    if (edge_bits > to) output.put(position, slice.edge, slice.edge_index);
  }
  const bool edge_crosses = edge_bits >= from && edge_bits <= to;
  if (crossing != 0 || edge_crosses) {
    uint64_t* ranks = S::remote(scratch.ranks, 0) + scratch.inside_earlier;
    uint32_t* rank_raw = S::remote(scratch.rank_raw, 0) + scratch.inside_earlier;
#pragma unroll
    for (int b = 0; b < slice.kScores; ++b) {
      if (crossing & (1u << b)) {
        const uint32_t at = atomicAdd(&scratch.ranked, 1u);
        ranks[at] = rank_key(E::key(slice.raw(b)), slice.index(b));
        rank_raw[at] = slice.raw(b);
      }
    }
    if (edge_crosses) {
      const uint32_t at = atomicAdd(&scratch.ranked, 1u);
      ranks[at] = rank_key(E::key(slice.edge), slice.edge_index);
      rank_raw[at] = slice.edge;
    }
  }
  if constexpr (kCluster) {
    S::arrive();
    if (S::rank() != 0) return;
    S::wait();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < inside) {
    const uint64_t rank = scratch.ranks[threadIdx.x];
    uint32_t better = above;
#pragma unroll 4
    for (uint32_t j = 0; j < inside; ++j) better += scratch.ranks[j] > rank ? 1u : 0u;
    if (better < k) output.put(better, scratch.rank_raw[threadIdx.x], rank_key_index(rank));
    if (better == k - 1) {
      write_state_header(p, task.row_index, output.entry, p.k, rank_key_score(rank), -1);
    }
  }
  if (p.stats != nullptr && threadIdx.x == 0) {
    put_stats(p, task.row_index, Path::kResident, 1, scratch.admitted, 0, 0, 1);
  }
}

}  // namespace gvr::cuda
