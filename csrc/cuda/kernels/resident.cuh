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
//
// Kernels of 5 us are bound by the instructions that all warps issue, more than by bytes:
// benchmarks/NOTES.md, "Instructions".
#pragma once

#include "../phases/divide.cuh"
#include "../phases/resident.cuh"

namespace gvr::cuda {

inline constexpr int kResidentThreadsPerSm = 1024;  // what the registers are limited for
static_assert(kResidentScores == 32, "one bit each in a mask");

// Bins from a bound under the K-th score to above the largest sampled score, the farther the fewer
// winners the sample holds: then the K-th score may well exceed all of it. Block-wide, one barrier.
//
// The bound of a warp: the least of the largest scores in its groups of samples; the bound of the
// row: the least of what the higher warp of each pair says, which single warps whose samples come
// from an unusual part of the row do not move. Larger groups give a higher bound, and fewer entries
// in the histogram: the largest group is taken for which a warp's bound seldom exceeds the score
// that a share k / n of the row reaches. It does where each of its 32 / g groups has such a sample:
// with probability (1 - (1 - k / n)^g)^(32 / g), which is a quarter at the ratios below. Then each
// of 8 pairs exceeds it once in 700 rows.
template <class C>
__device__ __forceinline__ ResidentBins<C::kBins> resident_bins(ResidentScratch<C>& scratch,
                                                                float sampled, float k, float n,
                                                                float share) {
  constexpr float kRatios[] = {1.406f, 2.717f, 7.04f, 23.6f, 111.7f};  // for groups of 2, 4, ... 32
  const float ratio = n * reciprocal(k);
  const int mine = float_order(__float_as_int(sampled));
  int best = mine;
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    if (!(ratio > kRatios[i])) break;
    best = max(best, __shfl_xor_sync(~0u, best, 1 << i));
  }
  // Scores without a finite distance say nothing about the bins.
  const int low = __reduce_min_sync(~0u, best > kOrderMinusInf ? best : INT_MAX);
  const int high = __reduce_max_sync(~0u, mine < kOrderPlusInf ? mine : INT_MIN);
  if (lane_id() == 0) {
    scratch.warp_low[warp_id()] = low;
    scratch.warp_high[warp_id()] = high;
  }
  __syncthreads();
  const int warp = lane_id() % C::kWarps;
  // Four pairs of warps would exceed it too often, eight single ones once in 60,000 rows.
  const int other = C::kWarps > 8 ? scratch.warp_low[warp ^ 1] : INT_MIN;
  const int pair = max(scratch.warp_low[warp], other);
  const float from = __int_as_float(float_order(__reduce_min_sync(~0u, pair)));
  const float most = __int_as_float(float_order(__reduce_max_sync(~0u, scratch.warp_high[warp])));
  // Of C::kThreads samples as many are winners as the ratio is smaller: with 16 of them the K-th
  // score lies under the largest but once in 10^7 rows, and then the best bin is divided again.
  const float margin = ratio > C::kThreads / 8.0f    ? 2.0f
                       : ratio > C::kThreads / 16.0f ? 0.5f
                                                     : 0.0f;
  return ResidentBins<C::kBins>::between(from, most + margin * (most - from), share * C::kBins);
}

// Counts of this thread's bin: of all CTAs, and of those before this one.
struct BinCount {
  uint32_t here, earlier;
};

// Each CTA of a cluster writes its bins into all others.
template <class C>
__device__ __forceinline__ BinCount count_of_cluster(ResidentScratch<C>& scratch) {
  using S = typename C::S;
  S::wait();  // everybody has started
  ResidentMerged<C>& merged = resident_merged<C>();
  constexpr int kPacked = C::kBins / 8;  // vectors of eight 16-bit counts
  const int part = threadIdx.x % kPacked;
  const uint4 a = reinterpret_cast<const uint4*>(scratch.bins)[2 * part];
  const uint4 b = reinterpret_cast<const uint4*>(scratch.bins)[2 * part + 1];
  const uint4 packed =
      make_uint4(a.x | (a.y << 16), a.z | (a.w << 16), b.x | (b.y << 16), b.z | (b.w << 16));
  for (int to = threadIdx.x / kPacked; to < S::size(); to += C::kThreads / kPacked) {
    reinterpret_cast<uint4*>(S::remote(&merged[S::rank()][0], to))[part] = packed;
  }
  S::sync();
  BinCount count{0, 0};
  if (threadIdx.x >= C::kBins) return count;
#pragma unroll 4
  for (int c = 0; c < S::size(); ++c) {
    const uint32_t of_cta = merged[c][threadIdx.x];
    count.here += of_cta;
    count.earlier += c < S::rank() ? of_cta : 0u;
  }
  return count;
}

// The bins of all CTAs -> scratch.bin and its companions. Block-wide; this CTA's bins must be
// complete.
template <class C>
__device__ __forceinline__ void merge_bins(ResidentScratch<C>& scratch, uint32_t wanted) {
  constexpr int kBinWarps = C::kBins / 32;
  const bool mine = warp_id() < kBinWarps;  // warps behind the bins wait
  BinCount count{0, 0}, sum{0, 0};
  if constexpr (C::kCluster) {
    count = count_of_cluster(scratch);
  } else {
    count.here = scratch.bins[threadIdx.x];
  }
  if (mine) {
    sum.here = warp_inclusive_sum(count.here);
    if (C::kCluster) sum.earlier = warp_inclusive_sum(count.earlier);
    if (lane_id() == 31) {
      scratch.warp_here[warp_id()] = sum.here;
      if (C::kCluster) scratch.warp_earlier[warp_id()] = sum.earlier;
    }
  }
  __syncthreads();
  if (mine) {
    const bool before = lane_id() < warp_id();  // warp_id() <= kBinWarps
    const uint32_t above =
        __reduce_add_sync(~0u, before ? scratch.warp_here[lane_id()] : 0u) + sum.here - count.here;
    const bool crosses = above < wanted && wanted <= above + count.here;
    if (crosses) {
      scratch.bin = static_cast<int>(threadIdx.x);
      scratch.above = above;
      scratch.inside = count.here;
    }
    if constexpr (C::kCluster) {
      const uint32_t above_earlier =
          __reduce_add_sync(~0u, before ? scratch.warp_earlier[lane_id()] : 0u) + sum.earlier -
          count.earlier;
      if (crosses) {
        scratch.above_earlier = above_earlier;
        scratch.inside_earlier = count.earlier;
      }
    }
    if (threadIdx.x == C::kBins - 1) scratch.admitted = above + count.here;
  }
  __syncthreads();
}

// This thread's vectors [from, to) into the bins.
template <class C>
__device__ __forceinline__ void count_vectors(ResidentScratch<C>& scratch,
                                              const ResidentSlice<C>& slice,
                                              const ResidentBins<C::kBins>& bins, int from,
                                              int to) {
  using E = typename C::E;
#pragma unroll 2
  for (int u = from; u < to; ++u) {
    const uint4 v = slice.vector(u);
#pragma unroll
    for (int j = 0; j < E::kPerVector; ++j) {
      atomicAdd(&scratch.bins[bins.bin(E::to_float(E::pick(v, j)))], 1u);
    }
  }
}

// The key that all samples in the crossing bin have, 0 where they differ or are few: every CTA has
// the same samples. Block-wide.
template <class C>
__device__ __noinline__ uint32_t tie_in_bin(uint32_t sampled, bool inside) {
  constexpr int kFew = 3;
  auto& scratch = resident_scratch<C>();
  const int key = static_cast<int>(sampled);
  const int low = __reduce_min_sync(~0u, inside ? key : INT_MAX);
  const int high = __reduce_max_sync(~0u, inside ? key : INT_MIN);
  if (lane_id() == 0) {
    scratch.warp_low[warp_id()] = low;
    scratch.warp_high[warp_id()] = high;
  }
  const int count = __syncthreads_count(inside);
  const int least = __reduce_min_sync(~0u, scratch.warp_low[lane_id() % C::kWarps]);
  const int most = __reduce_max_sync(~0u, scratch.warp_high[lane_id() % C::kWarps]);
  return count >= kFew && least == most ? static_cast<uint32_t>(least) : 0u;
}

// The histogram again, with the crossing bin alone divided. Block-wide on all CTAs of the row.
template <class C>
__device__ __noinline__ ResidentBins<C::kBins> count_finer(const ResidentSlice<C> slice,
                                                           const ResidentBins<C::kBins> bins,
                                                           uint32_t wanted) {
  using S = typename C::S;
  auto& scratch = resident_scratch<C>();
  const ResidentBins<C::kBins> finer = bins.finer(scratch.bin);
  S::sync();  // nobody reads the first histogram any more
  if (threadIdx.x < C::kBins) scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.bin = -1;
    scratch.rounds = 2;
    if (!finer.usable) scratch.capacity = 0;
  }
  __syncthreads();
  S::announce();  // merge_bins waits for it
  count_vectors(scratch, slice, finer, 0, slice.vectors);
  __syncthreads();
  merge_bins(scratch, wanted);
  return finer;
}

// A thread's scores in better bins than the crossing one, and those inside it: from the highest bit
// on, one for each of its scores.
struct Chosen {
  uint32_t winners, crossing;
};

template <class C>
__device__ __forceinline__ Chosen choose(const ResidentSlice<C>& slice,
                                         const ResidentBins<C::kBins>& bins, int crossing_bin) {
  using E = typename C::E;
  const int crossed = kBinOrigin + crossing_bin;
  uint32_t winners = 0, reached = 0;
#pragma unroll 2
  for (int u = 0; u < slice.vectors; ++u) {
    const uint4 v = slice.vector(u);
#pragma unroll
    for (int j = 0; j < E::kPerVector; ++j) {
      const int beyond = bins.code(E::to_float(E::pick(v, j))) - crossed;
      // A bit each, shifted in: the sign of a difference.
      winners = __funnelshift_l(static_cast<uint32_t>(beyond), winners, 1);
      reached = __funnelshift_l(static_cast<uint32_t>(beyond - 1), reached, 1);
    }
  }
  const int unused = (32 - slice.vectors * E::kPerVector) & 31;  // 32: the masks are 0
  return {winners << unused, (reached ^ winners) << unused};
}

// take(bit) for every bit of a mask, the highest first.
template <class Take>
__device__ __forceinline__ void for_each_bit(uint32_t mask, Take take) {
#pragma unroll 1
  while (mask != 0) {
    const int bit = 31 - __clz(static_cast<int>(mask));
    mask ^= 1u << bit;
    take(bit);
  }
}

// Entries of the crossing bin, sent to the leader.
template <class C>
__device__ __forceinline__ void send_crossing(ResidentScratch<C>& scratch,
                                              const ResidentSlice<C>& slice, uint32_t crossing) {
  using S = typename C::S;
  if (crossing == 0) return;
  uint64_t* ranks = S::remote(scratch.ranks, 0) + scratch.inside_earlier;
  uint32_t* rank_raw = S::remote(scratch.rank_raw, 0) + scratch.inside_earlier;
  for_each_bit(crossing, [&](int bit) {
    const int place = slice.place(bit);
    const uint32_t at = atomicAdd(&scratch.ranked, 1u), raw = slice.raw_at(place);
    ranks[at] = rank_key(C::E::key(raw), slice.index(place));
    if constexpr (C::kMore) rank_raw[at] = raw;
  });
}

// Winners take places from a running sum, without ballots, in a list of their warp, and are written
// side by side: stores of single winners would touch a sector of memory each.
template <class C>
__device__ __forceinline__ void write_winners(ResidentScratch<C>& scratch,
                                              const ResidentSlice<C>& slice, uint32_t winners,
                                              const RowOutput<C::kType>& output, const void* row,
                                              bool own_lists) {
  const auto mine = static_cast<uint32_t>(__popc(winners));
  const uint32_t through = warp_inclusive_sum(mine);
  uint32_t position = 0;
  if (lane_id() == 31 && through != 0) position = atomicAdd(&scratch.emitted, through);
  position = __shfl_sync(~0u, position, 31) + scratch.above_earlier;
  const uint32_t count = __shfl_sync(~0u, through, 31);
  uint16_t* const list = slice.list(own_lists);
  uint16_t* next = list + through - mine;
  for_each_bit(winners, [&](int bit) { *next++ = static_cast<uint16_t>(slice.place(bit)); });
  __syncwarp();
  int32_t* to = output.indices + position + lane_id();
#pragma unroll 1
  for (uint32_t i = lane_id(); i < count; i += 32, to += 32) {
    const int place = list[i];
    const int index = slice.index(place);
    *to = index;
    if constexpr (!C::kMore) continue;
    if (output.values != nullptr) {
      output.put_value(position + i, own_lists ? slice.raw_at(place) : C::E::load(row, index));
    }
    if (output.entry != nullptr) output.put_hint(position + i, index);
  }
}

// The leader's end: entries of the crossing bin, ranked by comparison.
template <class C>
__device__ __forceinline__ void rank_crossing(const TopKParams& p,
                                              const ResidentScratch<C>& scratch,
                                              const RowOutput<C::kType>& output,
                                              int64_t row_index) {
  const uint32_t inside = scratch.inside;
  const auto k = static_cast<uint32_t>(p.k);
  const uint32_t first = threadIdx.x / kRankLanes;
#pragma unroll 1
  for (uint32_t i = first; i - lane_id() / kRankLanes < inside; i += C::kThreads / kRankLanes) {
    const uint64_t rank = scratch.ranks[min(i, inside - 1)];
    const uint32_t position = scratch.above + count_better(scratch.ranks, inside, rank);
    if (threadIdx.x % kRankLanes != 0 || i >= inside || position >= k) continue;
    output.indices[position] = rank_key_index(rank);
    if constexpr (!C::kMore) continue;
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
template <class C>
__device__ __forceinline__ void emit_selected(const TopKParams& p, const Plan& plan, int32_t* entry,
                                              const ResidentSlice<C>& slice,
                                              const ResidentBins<C::kBins>& bins) {
  using S = typename C::S;
  auto& scratch = resident_scratch<C>();
  const int64_t row_index = S::row();
  const Chosen chosen = choose(slice, bins, scratch.bin);
  send_crossing(scratch, slice, chosen.crossing);
  __syncwarp();  // the warp's scores have been read: its list may take their place
  S::arrive();   // the leader waits for no more than that
  const RowOutput<C::kType> output(p, row_index, entry);
  const void* row =
      static_cast<const typename C::E::Storage*>(p.scores) + row_index * p.score_stride;
  write_winners(scratch, slice, chosen.winners, output, row, C::kMore && plan.own_lists);
  const bool finishes = C::kMore && wants_finish(p);
  if constexpr (S::kIsCluster) {
    if (S::rank() != 0 && !finishes) return;
    S::wait();
    if (finishes) S::arrive();  // this CTA's winners are written
    if (S::rank() != 0) return;
  } else {
    __syncthreads();
  }
  rank_crossing(p, scratch, output, row_index);
  if (finishes) {
    S::wait();
    finish_row<C::kType>(p, row_index, C::kThreads);
  }
  if (C::kMore && p.stats != nullptr && threadIdx.x == 0) {
    put_stats(p, row_index, Path::kResident, 1, scratch.admitted, 0, 0, scratch.rounds);
  }
}

// The rare end, where the crossing bin cannot be ranked: finer bins, or the row is divided.
// Block-wide on all CTAs of the row.
template <class C>
__device__ __noinline__ void look_closer(const TopKParams& p, const Plan& plan, int32_t* entry,
                                         const ResidentSlice<C> slice,
                                         const ResidentBins<C::kBins> bins, uint32_t sampled) {
  using E = typename C::E;
  auto& scratch = resident_scratch<C>();
  const bool exists = C::kCluster || slice.vectors > 0;  // this thread has a sample
  uint32_t candidate = 0;
  if (!bins.usable) {
    candidate = tie_in_bin<C>(E::key(sampled), exists);
  } else if (scratch.bin >= 0 && scratch.capacity != 0) {
    const bool inside = exists && bins.bin(E::to_float(sampled)) == scratch.bin;
    candidate = tie_in_bin<C>(E::key(sampled), inside);
    if (candidate == 0) {
      const ResidentBins<C::kBins> finer = count_finer<C>(slice, bins, p.k);
      if (scratch.bin >= 0 && scratch.inside <= scratch.capacity) {
        emit_selected<C>(p, plan, entry, slice, finer);
        return;
      }
    }
  }
  divide_row<C::kType, typename C::S, C::kThreads>(p, entry, candidate, {Path::kResident, 1, 0, 0});
}

// A place among n for each thread: lane by lane, so that every warp's sample spans the row.
template <class C>
__device__ __forceinline__ uint32_t sample_place(uint32_t n) {
  const uint32_t stratum = lane_id() * C::kWarps + warp_id();
  const uint32_t width = max(n / C::kThreads, 1u);
  const uint32_t at = stratum * width + __umulhi(stratum * 0x9E3779B1u, width);
  return min(at, n - 1);
}

template <class C>
__device__ __forceinline__ uint32_t sample_row(const RowTask& task, uint32_t n) {
  return C::E::load(task.row, task.window.begin + static_cast<int>(sample_place<C>(n)));
}

// The same from a slice that has arrived. Few scores per thread: each gives one of its own, for
// which no barrier is needed; the warps' samples spread over the vectors.
template <class C>
__device__ __forceinline__ uint32_t sample_slice(const ResidentSlice<C>& slice, uint32_t n) {
  if (n > 16 * C::kThreads) {
    __syncthreads();
    return slice.raw_at(static_cast<int>(sample_place<C>(n)));
  }
  if (slice.vectors == 0) return C::E::Traits::kMinusInf;
  return slice.first_of(warp_id() * slice.vectors / C::kWarps);
}

template <class C>
__device__ __forceinline__ void clear(ResidentScratch<C>& scratch, const Plan& plan) {
  if (threadIdx.x < C::kBins) scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x != 0) return;
  scratch.bin = -1;
  scratch.capacity = plan.force_undershoot ? 0 : static_cast<uint32_t>(plan.rank_capacity);
  scratch.above_earlier = scratch.inside_earlier = 0;
  scratch.rounds = 1;
  scratch.emitted = 0;
  scratch.ranked = 0;
}

// Grid: rows * ctas_per_row blocks; the blocks of a row form a cluster when there are several.
template <ScoreType kType, bool kCluster, int kThreads, bool kMore>
__global__ void __launch_bounds__(kThreads, kResidentThreadsPerSm / kThreads)
    resident_kernel(const __grid_constant__ TopKParams p, const __grid_constant__ Plan plan) {
  using C = ResidentConfig<kType, kCluster, kThreads, kMore>;
  using E = typename C::E;
  using S = typename C::S;
  auto& scratch = resident_scratch<C>();
  clear(scratch, plan);
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
  uint32_t sampled = E::Traits::kMinusInf;
  if constexpr (kCluster) sampled = sample_row<C>(task, n);
  ResidentSlice<C> slice;
  slice.send(task.row, task.begin, task.end);
  int32_t* entry = wants_entry ? begin_entry(p, task.row_index, kThreads) : nullptr;
  if constexpr (!kCluster) {
    slice.arrive();
    sampled = sample_slice(slice, n);
  }
  const auto bins = resident_bins<C>(scratch, E::to_float(sampled), static_cast<float>(k),
                                     static_cast<float>(n), plan.bin_share);
  if constexpr (kCluster) {
    slice.arrive_early();
    count_vectors(scratch, slice, bins, 0, slice.early);
    slice.arrive();
  }
  count_vectors(scratch, slice, bins, kCluster ? slice.early : 0, slice.vectors);
  // Infinities times zero would be numbers of their own. All CTAs of the row agree on that.
  if (!bins.usable && threadIdx.x == 0) scratch.capacity = 0;
  __syncthreads();
  merge_bins(scratch, k);
  if (scratch.bin < 0 || scratch.inside > scratch.capacity) [[unlikely]] {
    look_closer<C>(p, plan, entry, slice, bins, sampled);
    return;
  }
  emit_selected<C>(p, plan, entry, slice, bins);
}

}  // namespace gvr::cuda
