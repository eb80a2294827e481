// SPDX-License-Identifier: Apache-2.0
// Rows that fit into the shared memory of their CTAs: one copy, one histogram, one ranking. No
// guess, no staging, no hint: what the hint could save is not spent here.
//
// The histogram's bins are linear between a bound that a sample of the row puts below the K-th
// score and one above the sample's largest score. All CTAs of a row read the same sample, so they
// agree on the bins without a word. Where the bin of the K-th score holds more entries than can be
// ranked by comparison, because a few scores lie far above all others, it is divided into finer
// bins, once. Where that does not help (ties) or the bound was too high, the row is divided by its
// keys (phases/divide.cuh), which reads it again, from the cache.
#pragma once

#include "../phases/divide.cuh"

namespace gvr::cuda {

inline constexpr int kResidentThreadsPerSm = 1024;  // what the registers are limited for
static_assert(kResidentScores == 32, "one bit each in Chosen");

// Shared memory; a row that is divided uses the same bytes anew.
template <int kThreads>
struct ResidentScratch {
  static constexpr int kWarps = kThreads / 32;
  uint64_t ranks[Config::kRankCapacity];  // leader: entries of the crossing bin
  uint32_t rank_raw[Config::kRankCapacity];
  // One bin per thread, the best first, and one for what no bin admits.
  alignas(16) uint32_t bins[kThreads + 4];
  uint32_t warp_low[kWarps], warp_high[kWarps];
  uint32_t warp_here[kWarps], warp_earlier[kWarps];
  // Where the K-th score lies: entries in better bins and in its bin, of all CTAs and of the CTAs
  // before this one. `bin` is negative where the histogram holds fewer than K entries.
  int32_t bin;
  uint32_t above, inside, above_earlier, inside_earlier;
  uint32_t capacity;  // entries of the crossing bin that may be ranked
  uint32_t admitted;  // entries of the histogram, for telemetry
  int32_t rounds;     // histograms, for telemetry
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
  int early;       // of them, those that are sent for first; in a cluster
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
    int at = mine;
    if constexpr (kCluster) {
      const int rounds = (range.vectors + kThreads - 1) / kThreads;
      send_until((rounds + 1) / 2 * kThreads, range.vectors, data, at);
      early = vectors;
    }
    send_until(range.vectors, range.vectors, data, at);
    edge = E::Traits::kMinusInf;
    edge_index = -1;
    if (mine < range.edge_count()) {
      edge_index = range.edge_index(mine);
      edge = E::load(row, edge_index);
    }
  }
  __device__ __forceinline__ void arrive() const { __pipeline_wait_prior(0); }
  // The same for the first `early` vectors alone.
  __device__ __forceinline__ void arrive_early() const { __pipeline_wait_prior(1); }

  __device__ __forceinline__ void send_until(int end, int existing, const uint4* data, int& at) {
    end = min(end, existing);
#pragma unroll 1  // rows are short, and instructions must be fetched
    for (; at < end; at += kThreads) {
      __pipeline_memcpy_async(&vector(vectors++), data + at, sizeof(uint4));
    }
    __pipeline_commit();
  }

  // Row index and score of position b.
  __device__ __forceinline__ int index(int b) const {
    return first + b / E::kPerVector * kStride + b % E::kPerVector;
  }
  __device__ __forceinline__ uint32_t raw(int b) const {
    using Storage = typename E::Storage;
    return reinterpret_cast<const Storage*>(&vector(b / E::kPerVector))[b % E::kPerVector];
  }
};

// Place of a score on the bins' scale, as the bits of 2 + bin * 2^-22: 0 is the best bin, kThreads
// is refused. Two fused operations, the first of which clamps to [0, 1] in the same breath and
// turns NaN into 0, which is the best. Monotone in the score; the best bin is open above, and -inf
// and whatever is under the bound is refused.
struct ResidentBins {
  static constexpr int kOrigin = 0x40000000;  // bits of 2; four times this is 0 in an address
  float slope, offset;                        // of the way from the best bin, in units of all bins
  bool usable;                                // floats can divide the range

  // `least` lies in the last bin, `most` a number of bins before its end.
  template <int kThreads>
  static __device__ __forceinline__ ResidentBins between(float least, float most,
                                                         float bins_apart) {
    constexpr float kLast = 1.0f - 1.0f / kThreads;
    const float scale = __fdividef(bins_apart / kThreads, most - least);
    // A range so wide that the scale is 0 would turn infinities into NaN, the best of all.
    const bool usable = most > least && scale > 0.0f && scale < 1.0e30f && fabsf(least) < 1.0e30f;
    return {-scale, fmaf(least, scale, kLast), usable};
  }
  template <int kThreads>
  __device__ __forceinline__ int place(float x) const {
    const float way = __saturatef(fmaf(x, slope, offset));
    return __float_as_int(fmaf(way, kThreads * 0x1p-22f, 2.0f));
  }
  // Bins that divide one bin, and a little around it. What lies beyond the best bin is spread over
  // as wide a range again as all bins cover.
  template <int kThreads>
  __device__ __forceinline__ ResidentBins finer(int bin) const {
    constexpr float kBin = 1.0f / kThreads;
    const float middle = static_cast<float>(bin) * kBin;
    const float before = bin == 0 ? 1.0f : 0.52f * kBin;
    const float least = __fdividef(middle + 0.52f * kBin - offset, slope);
    const float most = __fdividef(middle - before - offset, slope);
    return between<kThreads>(least, most, kThreads - 2);
  }
};

// The bound of a warp: the least of the largest scores in its groups of `group` samples; the bound
// of the row: the least of what the higher warp of each pair says, which single warps whose samples
// come from an unusual part of the row do not move. Larger groups give a higher bound, and fewer
// entries in the histogram: the largest group is taken for which a warp's bound seldom exceeds the
// score that a share `wanted` of the row reaches. It does where each of its 32 / g groups has such
// a sample: with probability (1 - (1 - wanted)^g)^(32 / g), which is a quarter at the shares below.
// Then each of 8 pairs exceeds it once in 700 rows.
__device__ __forceinline__ int bound_group(float k, float n) {
  int group = 32;
  if (k > 0.00895f * n) group = 16;
  if (k > 0.0424f * n) group = 8;
  if (k > 0.142f * n) group = 4;
  if (k > 0.368f * n) group = 2;
  if (k > 0.711f * n) group = 1;
  return group;
}

// Bins from the bound to above the largest sampled score, the farther the fewer winners the sample
// holds: then the K-th score may well exceed all of it. Block-wide, one barrier.
template <int kThreads>
__device__ __forceinline__ ResidentBins resident_bins(ResidentScratch<kThreads>& scratch,
                                                      uint32_t sampled, float k, float n) {
  constexpr int kWarps = kThreads / 32;
  const int group = bound_group(k, n);
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
  const float margin = k * static_cast<float>(kThreads) < 8.0f * n ? 2.0f : 0.5f;
  return ResidentBins::between<kThreads>(from, most + margin * (most - from), kThreads);
}

// This CTA's bins -> scratch.bin and its companions. Block-wide; the bins must be complete.
template <class S, int kThreads>
__device__ __forceinline__ void merge_bins(ResidentScratch<kThreads>& scratch, uint32_t wanted) {
  constexpr int kWarps = kThreads / 32;
  const int bin = static_cast<int>(threadIdx.x);
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

// One score into the bins.
template <class E, int kThreads>
__device__ __forceinline__ void count_score(ResidentScratch<kThreads>& scratch,
                                            const ResidentBins& bins, uint32_t raw) {
  const int place = bins.template place<kThreads>(E::to_float(raw));
  atomicAdd(&scratch.bins[place - ResidentBins::kOrigin], 1u);
}

// This thread's vectors [from, to) into the bins.
template <class Slice, int kThreads>
__device__ __forceinline__ void count_vectors(ResidentScratch<kThreads>& scratch,
                                              const Slice& slice, const ResidentBins& bins,
                                              int from, int to) {
  using E = typename Slice::E;
#pragma unroll 2
  for (int u = from; u < to; ++u) {
    const uint4 v = slice.vector(u);
#pragma unroll
    for (int j = 0; j < E::kPerVector; ++j) count_score<E>(scratch, bins, E::pick(v, j));
  }
}

// All of this thread's scores into the bins.
template <class Slice, int kThreads>
__device__ __forceinline__ void count_slice(ResidentScratch<kThreads>& scratch, const Slice& slice,
                                            const ResidentBins& bins) {
  count_vectors(scratch, slice, bins, 0, slice.vectors);
  if (slice.edge_index >= 0) count_score<typename Slice::E>(scratch, bins, slice.edge);
}

// The key that all samples in the crossing bin have, 0 where they differ or are few: every CTA has
// the same samples. Block-wide.
template <int kThreads>
__device__ __noinline__ uint32_t tie_in_bin(uint32_t sampled, bool inside) {
  constexpr int kFew = 3;
  constexpr int kWarps = kThreads / 32;
  auto& scratch = resident_scratch<kThreads>();
  const uint32_t low = __reduce_min_sync(~0u, inside ? sampled : ~0u);
  const uint32_t high = __reduce_max_sync(~0u, inside ? sampled : 0u);
  if (lane_id() == 0) {
    scratch.warp_low[warp_id()] = low;
    scratch.warp_high[warp_id()] = high;
  }
  const int count = __syncthreads_count(inside);
  const uint32_t least = __reduce_min_sync(~0u, scratch.warp_low[lane_id() % kWarps]);
  const uint32_t most = __reduce_max_sync(~0u, scratch.warp_high[lane_id() % kWarps]);
  return count >= kFew && least == most ? least : 0u;
}

// The histogram again, with the crossing bin alone divided. Block-wide on all CTAs of the row.
template <class S, class Slice, int kThreads>
__device__ __noinline__ ResidentBins count_finer(const Slice slice, const ResidentBins bins,
                                                 uint32_t wanted) {
  auto& scratch = resident_scratch<kThreads>();
  const ResidentBins finer = bins.template finer<kThreads>(scratch.bin);
  S::sync();  // nobody reads the first histogram any more
  scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.bin = -1;
    scratch.above_earlier = 0;
    scratch.rounds = 2;
    if (!finer.usable) scratch.capacity = 0;
  }
  __syncthreads();
  S::announce();  // merge_bins waits for it
  count_slice(scratch, slice, finer);
  __syncthreads();
  merge_bins<S, kThreads>(scratch, wanted);
  return finer;
}

// A thread's scores that share a fate: from the highest bit on, one for every position; and the
// score outside them.
struct Chosen {
  uint32_t mask;
  bool edge;
  __device__ __forceinline__ uint32_t count() const { return __popc(mask) + (edge ? 1u : 0u); }
};

// take(raw, index) for every chosen score.
template <class Slice, class Take>
__device__ __forceinline__ void for_each_chosen(const Slice& slice, Chosen chosen, Take take) {
#pragma unroll 1
  for (uint32_t left = chosen.mask; left != 0;) {
    const int b = __clz(static_cast<int>(left));
    left &= 0x7FFFFFFFu >> b;  // what lies before is gone already
    take(slice.raw(b), slice.index(b));
  }
  if (chosen.edge) take(slice.edge, slice.edge_index);
}

// Values, or hints of which the state keeps a part. By value: references would keep all of it in
// memory.
template <ScoreType kType, class Slice>
__device__ __noinline__ void place_values(const RowOutput<kType> output, uint32_t position,
                                          const Slice slice, const Chosen winners) {
  using Storage = typename Element<kType>::Storage;
  if (output.entry == nullptr) {
    int32_t* indices = output.indices + position;
    Storage* values = output.values + position;
    for_each_chosen(slice, winners, [&](uint32_t raw, int index) {
      *indices++ = index;
      *values++ = static_cast<Storage>(raw);
    });
    return;
  }
  for_each_chosen(slice, winners,
                  [&](uint32_t raw, int index) { output.put(position++, raw, index); });
}

// The leader's end: every warp places entries of the crossing bin, its lanes compare.
template <ScoreType kType, int kThreads, bool kMore>
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
    output.indices[position] = rank_key_index(rank);
    if constexpr (!kMore) continue;
    if (output.values != nullptr) output.put_value(position, scratch.rank_raw[i]);
    if (output.entry == nullptr) continue;
    output.put_hint(position, rank_key_index(rank));
    if (position == k - 1) {
      write_state_header(p, row_index, output.entry, p.k, rank_key_score(rank), -1);
    }
  }
}

// The answer, when scratch says in which bin the K-th score lies: winners are placed by every CTA,
// the crossing bin's entries by the leader. Block-wide on all CTAs of the row.
template <ScoreType kType, class S, int kThreads, bool kMore, class Slice>
__device__ __forceinline__ void emit_selected(const TopKParams& p, int32_t* entry,
                                              const Slice& slice, const ResidentBins& bins) {
  using E = Element<kType>;
  auto& scratch = resident_scratch<kThreads>();
  const int64_t row_index = S::row();
  const int crossed = ResidentBins::kOrigin + scratch.bin;
  Chosen winners{0, false}, crossing{0, false};
  uint32_t reached = 0;
#pragma unroll 2
  for (int u = 0; u < slice.vectors; ++u) {
    const uint4 v = slice.vector(u);
#pragma unroll
    for (int j = 0; j < E::kPerVector; ++j) {
      const int beyond = bins.template place<kThreads>(E::to_float(E::pick(v, j))) - crossed;
      // A bit each, shifted in: the sign of a difference.
      winners.mask = __funnelshift_l(static_cast<uint32_t>(beyond), winners.mask, 1);
      reached = __funnelshift_l(static_cast<uint32_t>(beyond - 1), reached, 1);
    }
  }
  const int unused = 32 - slice.vectors * E::kPerVector;  // 32: the masks are 0
  crossing.mask = (reached ^ winners.mask) << (unused & 31);
  winners.mask <<= unused & 31;
  if (slice.edge_index >= 0) {
    const int place = bins.template place<kThreads>(E::to_float(slice.edge));
    winners.edge = place < crossed;
    crossing.edge = place == crossed;
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
  const RowOutput<kType> output(p, row_index, entry);
  const uint32_t mine = winners.count();
  const uint32_t through = warp_inclusive_sum(mine);
  uint32_t position = 0;
  if (lane_id() == 31 && through != 0) position = atomicAdd(&scratch.emitted, through);
  position = __shfl_sync(~0u, position, 31) + scratch.above_earlier + through - mine;
  int32_t* indices = output.indices + position;
  if (!kMore || (output.values == nullptr && output.entry == nullptr)) {
    for_each_chosen(slice, winners, [&](uint32_t, int index) { *indices++ = index; });
  } else if (output.values == nullptr && p.hint_step == 0) {  // the state keeps every winner
    int32_t* hints = output.entry + kStateHeader + position;
    for_each_chosen(slice, winners, [&](uint32_t, int index) {
      *indices++ = index;
      *hints++ = index;
    });
  } else {
    place_values<kType>(output, position, slice, winners);
  }
  const bool placed = kMore && p.kv.out != nullptr;
  if constexpr (S::kIsCluster) {
    if (S::rank() != 0 && !placed) return;
    S::wait();
    if (placed) S::arrive();  // this CTA's winners are written
    if (S::rank() != 0) return;
  } else {
    __syncthreads();
  }
  rank_crossing<kType, kThreads, kMore>(p, scratch, output, row_index);
  if (placed) {
    S::wait();
    finish_row(p, row_index, kThreads);
  }
  if (kMore && p.stats != nullptr && threadIdx.x == 0) {
    put_stats(p, row_index, Path::kResident, 1, scratch.admitted, 0, 0, scratch.rounds);
  }
}

// The rare end, where the crossing bin cannot be ranked: finer bins, or the row is divided.
// Block-wide on all CTAs of the row.
template <ScoreType kType, class S, int kThreads, bool kMore, class Slice>
__device__ __noinline__ void look_closer(const TopKParams& p, int32_t* entry, const Slice slice,
                                         const ResidentBins bins, uint32_t sampled) {
  using E = Element<kType>;
  auto& scratch = resident_scratch<kThreads>();
  const bool exists = S::kIsCluster || slice.vectors > 0;  // this thread has a sample
  uint32_t candidate = 0;
  if (!bins.usable) {
    candidate = tie_in_bin<kThreads>(E::key(sampled), exists);
  } else if (scratch.bin >= 0 && scratch.capacity != 0) {
    const int place = bins.template place<kThreads>(E::to_float(sampled));
    const bool inside = exists && place - ResidentBins::kOrigin == scratch.bin;
    candidate = tie_in_bin<kThreads>(E::key(sampled), inside);
    if (candidate == 0) {
      const ResidentBins finer = count_finer<S, Slice, kThreads>(slice, bins, p.k);
      if (scratch.bin >= 0 && scratch.inside <= scratch.capacity) {
        emit_selected<kType, S, kThreads, kMore>(p, entry, slice, finer);
        return;
      }
    }
  }
  divide_row<kType, S, kThreads>(p, entry, candidate, {Path::kResident, 1, 0, 0});
}

// Grid: rows * ctas_per_row blocks; the blocks of a row form a cluster when there are several.
// kMore: more than indices is wanted (values, state, telemetry, places in the KV cache). Calls that
// want no more are so short that fetching the instructions to ask for it would show.
template <ScoreType kType, bool kCluster, int kThreads, bool kMore>
__global__ void __launch_bounds__(kThreads, kResidentThreadsPerSm / kThreads)
    resident_kernel(const __grid_constant__ TopKParams p, const __grid_constant__ Plan plan) {
  using E = Element<kType>;
  using S = Scope<kCluster>;
  auto& scratch = resident_scratch<kThreads>();
  scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.bin = -1;
    scratch.capacity = plan.force_undershoot ? 0 : static_cast<uint32_t>(plan.rank_capacity);
    scratch.above_earlier = 0;
    scratch.rounds = 1;
    scratch.emitted = 0;
    scratch.ranked = 0;
  }
  wait_for_predecessor();
  const RowTask task = make_task<kType, S>(p);
  const auto k = static_cast<uint32_t>(p.k);
  const auto n = static_cast<uint32_t>(task.window.size());
  const bool wants_entry = kMore && p.state != nullptr;
  if (n <= k) {
    int32_t* entry = wants_entry ? begin_entry(p, task.row_index, kThreads) : nullptr;
    emit_short_row<kType>(p, task.row_index, task.row, task.window, S::rank(), S::size(), entry);
    return;
  }
  S::announce();  // completed before the first store into another CTA
  using Slice = ResidentSlice<kType, kThreads, kCluster>;
  Slice slice;
  uint32_t sampled = E::Traits::kMinusInf;
  if constexpr (kCluster) {
    // Lane by lane through the row, so that every warp's sample spans it.
    const uint32_t stratum = lane_id() * (kThreads / 32) + warp_id();
    const uint32_t width = max(n / kThreads, 1u);
    const uint32_t at = stratum * width + __umulhi(stratum * 0x9E3779B1u, width);
    sampled = E::load(task.row, task.window.begin + static_cast<int>(min(at, n - 1)));
  }
  slice.send(task.row, task.begin, task.end);
  int32_t* entry = wants_entry ? begin_entry(p, task.row_index, kThreads) : nullptr;
  if constexpr (!kCluster) {
    slice.arrive();
    // The warps' samples spread over the vectors.
    const int u = warp_id() * slice.vectors / (kThreads / 32);
    if (slice.vectors > 0) sampled = slice.raw(u * E::kPerVector);
  }
  const ResidentBins bins = resident_bins<kThreads>(scratch, E::key(sampled), static_cast<float>(k),
                                                    static_cast<float>(n));
  if constexpr (kCluster) {
    slice.arrive_early();
    count_vectors(scratch, slice, bins, 0, slice.early);
    slice.arrive();
    count_vectors(scratch, slice, bins, slice.early, slice.vectors);
    if (slice.edge_index >= 0) count_score<E>(scratch, bins, slice.edge);
  } else {
    count_slice(scratch, slice, bins);
  }
  // Infinities times zero would be numbers of their own. All CTAs of the row agree on that.
  if (!bins.usable && threadIdx.x == 0) scratch.capacity = 0;
  __syncthreads();
  merge_bins<S, kThreads>(scratch, k);
  if (scratch.bin < 0 || scratch.inside > scratch.capacity) [[unlikely]] {
    look_closer<kType, S, kThreads, kMore>(p, entry, slice, bins, sampled);
    return;
  }
  emit_selected<kType, S, kThreads, kMore>(p, entry, slice, bins);
}

}  // namespace gvr::cuda
