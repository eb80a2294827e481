// SPDX-License-Identifier: Apache-2.0
// Rows that fit into the shared memory of their CTAs: one copy, one histogram, one ranking. No
// guess, no staging, no hint: what the hint could save is not spent here.
//
// The histogram's bins are linear between a bound that a sample of the row puts below the K-th
// score and one above the sample's largest score. All CTAs of a row read the same sample, so they
// agree on the bins without a word. When the bound was too high or the bin of the K-th score holds
// more entries than can be ranked by comparison (ties, wild distributions), the row is answered by
// the stream kernel's phases instead, which read it again, from the cache.
#pragma once

#include "stream.cuh"

namespace gvr::cuda {

inline constexpr int kResidentThreadsPerSm = 1024;  // what the registers are limited for
static_assert(kResidentScores == 32, "one bit each in Chosen");

// Shared memory; the stream phases use the same bytes after a fallback.
template <int kThreads>
struct ResidentScratch {
  static constexpr int kWarps = kThreads / 32;
  uint64_t ranks[Config::kRankCapacity];  // leader: entries of the crossing bin
  uint32_t rank_raw[Config::kRankCapacity];
  alignas(16) uint32_t ignored[4];  // the last one counts what no bin admits
  uint32_t bins[kThreads];          // one bin per thread
  uint32_t warp_low[kWarps], warp_high[kWarps];
  uint32_t warp_here[kWarps], warp_earlier[kWarps];
  // Where the K-th score lies: entries in better bins and in its bin, of all CTAs and of the CTAs
  // before this one. `bin` is negative where the histogram holds fewer than K entries.
  int32_t bin;
  uint32_t above, inside, above_earlier, inside_earlier;
  uint32_t capacity;  // entries of the crossing bin that may be ranked
  uint32_t admitted;  // entries of the histogram, for telemetry
  uint32_t emitted;   // entries of better bins placed by this CTA
  uint32_t ranked;    // entries of the crossing bin placed by this CTA
};

template <int kThreads>
__device__ __forceinline__ ResidentScratch<kThreads>& resident_scratch() {
  return *reinterpret_cast<ResidentScratch<kThreads>*>(g_shared);
}

// Every CTA's histogram, written into each CTA of the cluster.
template <int kThreads>
using ResidentMerged = uint16_t[kMaxCluster][kThreads];

// Behind the scratch lie the merged bins of a cluster, then the slice.
template <int kThreads>
__host__ __device__ constexpr size_t resident_slice_offset(bool cluster) {
  return sizeof(ResidentScratch<kThreads>) + (cluster ? sizeof(ResidentMerged<kThreads>) : 0);
}

template <int kThreads>
__device__ __forceinline__ ResidentMerged<kThreads>& resident_merged() {
  return *reinterpret_cast<ResidentMerged<kThreads>*>(g_shared + sizeof(ResidentScratch<kThreads>));
}

// One thread's share of a slice: whole vectors in its own part of shared memory, which need no
// barrier, and at most one score outside them.
template <ScoreType kType, int kThreads, bool kCluster>
struct ResidentSlice {
  using E = Element<kType>;
  static constexpr int kStride = kThreads * E::kPerVector;  // scores between a thread's vectors
  int first;       // row index of the first vector's first score
  int vectors;     // of this thread
  int edge_index;  // -1: none
  uint32_t edge;

  static __device__ __forceinline__ uint4& vector(int u) {
    return reinterpret_cast<uint4*>(
        g_shared + resident_slice_offset<kThreads>(kCluster))[u * kThreads + threadIdx.x];
  }
  // Sends for the scores; arrive() waits for them.
  __device__ __forceinline__ void send(const void* row, int begin, int end) {
    const VectorRange<kType> range(row, begin, end);
    const uint4* data = range.data(row);
    const int mine = static_cast<int>(threadIdx.x);
    first = range.body + mine * E::kPerVector;
    vectors = 0;
    for (int at = mine; at < range.vectors; at += kThreads) {
      __pipeline_memcpy_async(&vector(vectors++), data + at, sizeof(uint4));
    }
    __pipeline_commit();
    edge = E::Traits::kMinusInf;
    edge_index = -1;
    if (mine < range.edge_count()) {
      edge_index = range.edge_index(mine);
      edge = E::load(row, edge_index);
    }
  }
  __device__ __forceinline__ void arrive() const { __pipeline_wait_prior(0); }

  // Row index and score of position b.
  __device__ __forceinline__ int index(int b) const {
    return first + b / E::kPerVector * kStride + b % E::kPerVector;
  }
  __device__ __forceinline__ uint32_t raw(int b) const {
    using Storage = typename E::Storage;
    return reinterpret_cast<const Storage*>(&vector(b / E::kPerVector))[b % E::kPerVector];
  }
};

// Place of a score on the bins' scale, as the bits of 2^23 + 1 + bin: one fused multiply-add rounds
// to the bin, and integer compares do the rest. Monotone in the score; NaN and +inf lie beyond the
// best bin, which is open above; -inf and whatever is under the bound lie before the first.
struct ResidentBins {
  static constexpr int kOrigin = 0x4B000000;  // bits of 2^23
  float scale, offset;
  bool usable;  // floats can divide the range

  __device__ __forceinline__ int place(float x) const {
    return __float_as_int(fmaf(x, scale, offset));
  }
  static constexpr __device__ __forceinline__ int place_of_bin(int bin) {
    return kOrigin + 1 + bin;
  }
};

// The bound of a warp: the least of the largest scores in its groups of `group` samples; the bound
// of the row: the least of what the higher warp of each pair says, which single warps whose samples
// come from an unusual part of the row do not move. Larger groups give a higher bound, and fewer
// entries in the histogram: the largest group is taken for which a warp's bound seldom exceeds the
// score that a share `wanted` of the row reaches.
__device__ __forceinline__ int bound_group(float wanted) {
  constexpr float kSeldom = 0.25f;  // then each of 8 pairs exceeds it once in 700 rows
  int group = 1;
  float none = 1.0f - wanted;  // probability that no sample of a group reaches that score
  for (int g = 2; g <= 32; g *= 2) {
    none *= none;
    float exceeds = 1.0f - none;
    for (int groups = 32 / g; groups > 1; groups /= 2) exceeds *= exceeds;
    if (exceeds > kSeldom) break;
    group = g;
  }
  return group;
}

// Bins from the bound to a little above the largest sampled score. Block-wide, one barrier.
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
  const uint32_t pair = max(scratch.warp_low[warp], scratch.warp_low[warp ^ 1]);
  const float from = key_to_float(__reduce_min_sync(~0u, pair));
  const float most = key_to_float(__reduce_max_sync(~0u, scratch.warp_high[warp]));
  const float to = most + 0.5f * (most - from);
  ResidentBins bins;
  bins.scale = __fdividef(static_cast<float>(kThreads), to - from);
  bins.offset = fmaf(-from, bins.scale, __int_as_float(ResidentBins::place_of_bin(0)));
  bins.usable = to > from && bins.scale < 1.0e30f && fabsf(from) < 1.0e30f;
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
#pragma unroll
    for (int c = 0; c < kMaxCluster; ++c) {
      const uint32_t count = c < S::size() ? merged[c][bin] : 0u;
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

// A thread's scores that share a fate: a bit for every position, and the score outside them.
struct Chosen {
  uint32_t mask;
  bool edge;
  __device__ __forceinline__ uint32_t count() const { return __popc(mask) + (edge ? 1u : 0u); }
};

// take(raw, index) for every chosen score.
template <class Slice, class Take>
__device__ __forceinline__ void for_each_chosen(const Slice& slice, Chosen chosen, Take take) {
  for (uint32_t left = chosen.mask; left != 0; left &= left - 1) {
    const int b = __ffs(static_cast<int>(left)) - 1;
    take(slice.raw(b), slice.index(b));
  }
  if (chosen.edge) take(slice.edge, slice.edge_index);
}

// Indices alone, the usual wish: a store and an addition for every score, without a branch.
template <class Slice>
__device__ __forceinline__ void place_indices(int32_t* out, const Slice& slice, Chosen winners) {
  uint32_t at = 0;
  int first = slice.first;
#pragma unroll 1
  for (uint32_t left = winners.mask; left != 0; left >>= Slice::E::kPerVector) {
#pragma unroll
    for (int j = 0; j < Slice::E::kPerVector; ++j) {
      if (left >> j & 1u) out[at++] = first + j;
    }
    first += Slice::kStride;
  }
  if (winners.edge) out[at] = slice.edge_index;
}

// What the caller wants besides. By value: a reference would keep all of it in memory.
template <class Output, class Slice>
__device__ __noinline__ void place_more(const Output output, const Slice slice,
                                        const Chosen winners, uint32_t position) {
  for_each_chosen(slice, winners, [&](uint32_t raw, int index) {
    if (output.values != nullptr) output.put_value(position, raw);
    if (output.entry != nullptr) output.put_hint(position, index);
    ++position;
  });
}

// The leader's end: every warp places entries of the crossing bin, its lanes compare.
template <ScoreType kType, int kThreads>
__device__ __forceinline__ void rank_crossing(const TopKParams& p,
                                              const ResidentScratch<kThreads>& scratch,
                                              const RowOutput<kType>& output, int64_t row_index) {
  const uint32_t inside = scratch.inside;
  const auto k = static_cast<uint32_t>(p.k);
  for (uint32_t i = warp_id(); i < inside; i += kThreads / 32) {
    const uint64_t rank = scratch.ranks[i];
    uint32_t position = scratch.above;
    for (uint32_t j = lane_id(); j - lane_id() < inside; j += 32) {
      position += __popc(__ballot_sync(~0u, j < inside && scratch.ranks[j] > rank));
    }
    if (lane_id() != 0 || position >= k) continue;
    output.put(position, scratch.rank_raw[i], rank_key_index(rank));
    if (position == k - 1 && output.entry != nullptr) {
      write_state_header(p, row_index, output.entry, p.k, rank_key_score(rank), -1);
    }
  }
}

// Grid: rows * ctas_per_row blocks; the blocks of a row form a cluster when there are several.
template <ScoreType kType, bool kCluster, int kThreads>
__global__ void __launch_bounds__(kThreads, kResidentThreadsPerSm / kThreads)
    resident_kernel(const __grid_constant__ TopKParams p, const __grid_constant__ Plan plan) {
  using E = Element<kType>;
  using S = Scope<kCluster>;
  using Bins = ResidentBins;
  auto& scratch = resident_scratch<kThreads>();
  scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.bin = -1;
    scratch.capacity = plan.force_undershoot ? 0 : static_cast<uint32_t>(plan.rank_capacity);
    scratch.above_earlier = 0;
    scratch.emitted = 0;
    scratch.ranked = 0;
  }
  wait_for_predecessor();
  const RowTask task = make_task<kType, S>(p);
  const auto k = static_cast<uint32_t>(p.k);
  const auto n = static_cast<uint32_t>(task.window.size());
  if (n <= k) {
    int32_t* entry = p.state == nullptr ? nullptr : begin_entry(p, task.row_index, kThreads);
    emit_short_row<kType>(p, task.row_index, task.row, task.window, S::rank(), S::size(), entry);
    return;
  }
  S::announce();  // completed before the first store into another CTA
  ResidentSlice<kType, kThreads, kCluster> slice;
  slice.send(task.row, task.begin, task.end);
  uint32_t sampled = E::Traits::kMinusInf;
  if constexpr (kCluster) {
    // Lane by lane through the row, so that every warp's sample spans it.
    const uint32_t stratum = lane_id() * (kThreads / 32) + warp_id();
    const uint32_t width = max(n / kThreads, 1u);
    const uint32_t at = stratum * width + __umulhi(stratum * 0x9E3779B1u, width);
    sampled = E::load(task.row, task.window.begin + static_cast<int>(min(at, n - 1)));
  }
  int32_t* entry = p.state == nullptr ? nullptr : begin_entry(p, task.row_index, kThreads);
  const int group = bound_group(__fdividef(static_cast<float>(k), static_cast<float>(n)));
  slice.arrive();
  if constexpr (!kCluster) {
    if (slice.vectors > 0) sampled = slice.raw(warp_id() % slice.vectors * E::kPerVector);
  }
  const Bins bins = resident_bins<kThreads>(scratch, E::key(sampled), group);

  const auto count = [&](uint32_t raw) {
    const int place = bins.place(E::to_float(raw));
    const int bin = min(max(place, Bins::kOrigin), Bins::place_of_bin(kThreads - 1)) -
                    Bins::place_of_bin(0);  // -1: ignored
    atomicAdd(&scratch.bins[bin], 1u);
  };
#pragma unroll 2
  for (int u = 0; u < slice.vectors; ++u) {
    const uint4 v = slice.vector(u);
#pragma unroll
    for (int j = 0; j < E::kPerVector; ++j) count(E::pick(v, j));
  }
  if (slice.edge_index >= 0) count(slice.edge);
  // Infinities times zero would be numbers of their own. All CTAs of the row agree on that.
  if (!bins.usable && threadIdx.x == 0) scratch.capacity = 0;
  __syncthreads();
  merge_bins<S, kThreads>(scratch, k);
  const int bin = scratch.bin;
  if (bin < 0 || scratch.inside > scratch.capacity) {
    fall_back<kType, S, kThreads>(p, plan);
    return;
  }

  const int from = Bins::place_of_bin(bin);
  const int to = bin == kThreads - 1 ? INT32_MAX : from;  // the best bin is open above
  Chosen winners{0, false}, crossing{0, false};
#pragma unroll 2
  for (int u = 0; u < slice.vectors; ++u) {
    const uint4 v = slice.vector(u);
    uint32_t reach = 0, exceed = 0;
#pragma unroll
    for (int j = 0; j < E::kPerVector; ++j) {
      const int place = bins.place(E::to_float(E::pick(v, j)));
      if (place >= from) reach |= 1u << j;
      if (place > to) exceed |= 1u << j;
    }
    crossing.mask |= (reach ^ exceed) << (u * E::kPerVector);
    winners.mask |= exceed << (u * E::kPerVector);
  }
  if (slice.edge_index >= 0) {
    const int place = bins.place(E::to_float(slice.edge));
    winners.edge = place > to;
    crossing.edge = place >= from && place <= to;
  }
  if (crossing.count() != 0) {
    uint64_t* ranks = S::remote(scratch.ranks, 0) + scratch.inside_earlier;
    uint32_t* rank_raw = S::remote(scratch.rank_raw, 0) + scratch.inside_earlier;
    for_each_chosen(slice, crossing, [&](uint32_t raw, int index) {
      const uint32_t at = atomicAdd(&scratch.ranked, 1u);
      ranks[at] = rank_key(E::key(raw), index);
      rank_raw[at] = raw;
    });
  }
  __syncwarp();
  S::arrive();  // the leader waits for no more than that
  // Winners are counted per thread and placed from a running sum: no ballots.
  const RowOutput<kType> output(p, task.row_index, entry);
  const uint32_t mine = winners.count();
  const uint32_t through = warp_inclusive_sum(mine);
  uint32_t position = 0;
  if (lane_id() == 31 && through != 0) position = atomicAdd(&scratch.emitted, through);
  position = __shfl_sync(~0u, position, 31) + scratch.above_earlier + through - mine;
  place_indices(output.indices + position, slice, winners);
  if (output.values != nullptr || output.entry != nullptr) {
    place_more(output, slice, winners, position);
  }
  const bool placed = p.kv.out != nullptr;
  if constexpr (kCluster) {
    if (S::rank() != 0 && !placed) return;
    S::wait();
    if (placed) S::arrive();  // this CTA's winners are written
    if (S::rank() != 0) return;
  } else {
    __syncthreads();
  }
  rank_crossing<kType, kThreads>(p, scratch, output, task.row_index);
  if (placed) {
    S::wait();
    finish_row(p, task.row_index, kThreads);
  }
  if (p.stats != nullptr && threadIdx.x == 0) {
    put_stats(p, task.row_index, Path::kResident, 1, scratch.admitted, 0, 0, 1);
  }
}

}  // namespace gvr::cuda
