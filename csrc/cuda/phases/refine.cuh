// SPDX-License-Identifier: Apache-2.0
// Refine: the exact selection among staged survivors.
//
// A histogram over the staged entries of all CTAs of a row finds the bin that the K-th best entry
// falls into. Entries above it are part of the answer; the few inside are ranked one against the
// other. Bins are linear in the score first, because survivors are a tail whose density varies
// smoothly; where that leaves too many inside (ties, infinities, wild distributions) further rounds
// divide the range of rank keys, which are unique, so every round makes progress.
//
// In a cluster each CTA writes its histogram into all others: one barrier, then every CTA knows the
// whole row's bins and how many of each belong to the CTAs before it. A CTA's winners go to
// consecutive output positions behind those of the CTAs before it, a warp's to neighbouring ones:
// stores of neighbours share a memory sector.
#pragma once

#include <cstdint>

#include "crossing.cuh"
#include "emit.cuh"
#include "scope.cuh"
#include "scratch.cuh"

namespace gvr::cuda {

// Bins of scores, the best first; `share` of them divide the range, others take what is below it. A
// range that floats cannot divide puts everything into bin 0, and further rounds do the work.
struct LinearBins {
  float slope, offset;  // of bin_code

  __device__ __forceinline__ LinearBins(float from, float to, float share) {
    const float scale = __fdividef(share, to - from);
    offset = fmaf(from, scale, share);
    // Infinities times a scale of 0 would be NaN, and so would their difference to an offset.
    const bool divides = to > from && scale > 0.0f && scale < 3.0e38f && fabsf(offset) < 3.0e38f;
    slope = divides ? -scale : 0.0f;
    if (!divides) offset = 0.0f;
  }
  __device__ __forceinline__ int code(float x) const {
    return bin_code<Config::kBins - 1>(x, slope, offset);
  }
};

template <ScoreType kType>
__device__ __forceinline__ uint64_t staged_rank(Staging staging, uint32_t i) {
  return rank_key(Element<kType>::key(staging.raw(i)), staging.index(i));
}

// Where an entry lies in the crossing's terms: 0 inside, positive above, negative below.
__device__ __forceinline__ int rank_side(const Crossing& crossing, uint64_t rank) {
  return rank > crossing.high ? 1 : (rank >= crossing.low ? 0 : -1);
}

template <ScoreType kType>
__device__ __forceinline__ int side(const Crossing& crossing, const LinearBins& bins,
                                    Staging staging, uint32_t i) {
  if (crossing.linear) {
    const int crossed = kBinOrigin + crossing.bin;
    return crossed - bins.code(Element<kType>::to_float(staging.raw(i)));
  }
  return rank_side(crossing, staged_rank<kType>(staging, i));
}

// A CTA that lost survivors puts kLost into its best bin, and no score into any: more than a CTA
// can stage. All CTAs of the row then find kLostTotal or more in all.
inline constexpr uint32_t kLost = 0x8000;
inline constexpr uint32_t kLostTotal = 0x80000000;

// scratch.bins of every CTA -> the verdict in scratch.crossing (bin, above, inside, total), and
// where this CTA's entries go: scratch.emitted, behind the better entries of the CTAs before it,
// and scratch.ranked, behind their entries of the crossing bin. Block-wide; `bins` of this block
// must be complete (barrier) before. `opening`: the cluster's start is still unconfirmed.
template <class S>
__device__ __forceinline__ void find_crossing(Scratch& scratch, MergedBins& merged, uint32_t wanted,
                                              bool opening) {
  const int bin = static_cast<int>(threadIdx.x);
  uint32_t here = 0, earlier = 0, any = 0;
  if constexpr (S::kIsCluster) {
    if (opening) S::wait();
    static_assert(Config::kBins == 8 * 32);  // a vector of eight 16-bit counts per lane
    const auto* bins = reinterpret_cast<const uint4(*)[2]>(scratch.bins);
    const uint4 a = bins[lane_id()][0];
    const uint4 b = bins[lane_id()][1];
    const uint4 packed =
        make_uint4(a.x | (a.y << 16), a.z | (a.w << 16), b.x | (b.y << 16), b.z | (b.w << 16));
    for (int to = warp_id(); to < S::size(); to += Config::kWarps) {
      reinterpret_cast<uint4*>(S::remote(&merged[S::rank()][0], to))[lane_id()] = packed;
    }
    S::sync();
    constexpr int kBatch = 4;  // loads in flight
#pragma unroll 1
    for (int first = 0; first < S::size(); first += kBatch) {
#pragma unroll
      for (int c = first; c < first + kBatch; ++c) {
        const uint32_t count = c < S::size() ? merged[c][bin] : 0u;
        here += count;
        any |= count;
        earlier += c < S::rank() ? count : 0u;
      }
    }
  } else {
    any = here = scratch.bins[bin];
  }
  if ((any & kLost) != 0) here = kLostTotal;
  const uint32_t inclusive = warp_inclusive_sum(here);
  const uint32_t earlier_sum = S::kIsCluster ? __reduce_add_sync(~0u, earlier) : 0u;
  if (lane_id() == 31) {
    scratch.warp_sums[warp_id()] = inclusive;
    scratch.warp_earlier[warp_id()] = earlier_sum;
  }
  __syncthreads();
  const bool better = lane_id() < warp_id();
  const uint32_t before =
      __reduce_add_sync(~0u, better ? scratch.warp_sums[lane_id()] : 0u) + inclusive - here;
  uint32_t above_earlier = 0;
  if constexpr (S::kIsCluster) {
    above_earlier = better ? scratch.warp_earlier[lane_id()] : 0u;
    above_earlier += before + here < wanted ? earlier : 0u;
    above_earlier = __reduce_add_sync(~0u, above_earlier);
  }
  if (before < wanted && wanted <= before + here) {
    scratch.crossing.bin = bin;
    scratch.crossing.above = before;
    scratch.crossing.inside = here;
    scratch.emitted = above_earlier;
    scratch.ranked = earlier;
  }
  if (threadIdx.x == Config::kThreads - 1) scratch.crossing.total = before + here;
  __syncthreads();
}

struct RankRange {
  uint64_t low, high;
};

// Least and largest active rank key of the scope. Block-wide. The CTAs' ranges travel as plain
// stores: 64-bit minima are no atomics of remote shared memory.
template <ScoreType kType, class S>
__device__ __forceinline__ RankRange find_range(Scratch& scratch, Staging staging, uint32_t count,
                                                const Crossing& crossing, const LinearBins& bins) {
  uint64_t low = ~uint64_t{0}, high = 0;
  for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
    if (side<kType>(crossing, bins, staging, i) != 0) continue;
    const uint64_t rank = staged_rank<kType>(staging, i);
    low = min(low, rank);
    high = max(high, rank);
  }
  __syncwarp();
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    low = min(low, __shfl_xor_sync(~0u, low, d));
    high = max(high, __shfl_xor_sync(~0u, high, d));
  }
  if (lane_id() == 0) {
    scratch.warp_low[warp_id()] = low;
    scratch.warp_high[warp_id()] = high;
  }
  __syncthreads();
  for (int w = 0; w < Config::kWarps; ++w) {
    low = min(low, scratch.warp_low[w]);
    high = max(high, scratch.warp_high[w]);
  }
  if constexpr (S::kIsCluster) {
    if (threadIdx.x == 0) {
      S::remote(scratch.cta_low, 0)[S::rank()] = low;
      S::remote(scratch.cta_high, 0)[S::rank()] = high;
    }
    S::sync();
    for (int c = 0; c < S::size(); ++c) {
      low = min(low, S::remote(scratch.cta_low, 0)[c]);
      high = max(high, S::remote(scratch.cta_high, 0)[c]);
    }
  }
  return {low, high};
}

// Divide the range of the active rank keys until at most `capacity` entries are inside.
// On entry scratch.crossing and scratch.emitted describe the range reached so far (every entry when
// `everything`), on return the last. All CTAs of the scope call this together. Returns the number
// of rounds.
template <ScoreType kType, class S>
__device__ __noinline__ int narrow(Staging staging, uint32_t count, uint32_t wanted,
                                   uint32_t capacity, LinearBins bins, bool everything) {
  Scratch& scratch = shared_scratch();
  MergedBins& merged = shared_merged(staging.capacity);
  int rounds = 0;
  Crossing crossing = scratch.crossing;
  uint32_t emitted = scratch.emitted;
  if (everything) {
    emitted = 0;
    crossing.low = 0;
    crossing.high = ~uint64_t{0};
    crossing.above = 0;
    crossing.inside = 0xFFFFFFFFu;
    crossing.linear = false;
  }
  while (crossing.inside > capacity) {
    ++rounds;
    S::sync();  // everybody has read the bins and the verdict of the round before
    scratch.bins[threadIdx.x] = 0;
    const RankRange range = find_range<kType, S>(scratch, staging, count, crossing, bins);
    const uint64_t high = range.high;
    // kBins parts of a power-of-two range.
    const int bits = 64 - __clzll(static_cast<long long>(high - range.low));
    const int shift = bits > Config::kBinBits ? bits - Config::kBinBits : 0;
    for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
      if (side<kType>(crossing, bins, staging, i) != 0) continue;
      const uint64_t rank = staged_rank<kType>(staging, i);
      atomicAdd(&scratch.bins[static_cast<int>((high - rank) >> shift)], 1u);
    }
    __syncthreads();
    find_crossing<S>(scratch, merged, wanted - crossing.above, /*opening=*/false);
    crossing.high = high - (static_cast<uint64_t>(scratch.crossing.bin) << shift);
    // The last part may reach beyond the range, where entries already counted as below lie, and
    // below 0.
    const uint64_t span = (uint64_t{1} << shift) - 1;
    crossing.low = crossing.high - range.low > span ? crossing.high - span : range.low;
    crossing.above += scratch.crossing.above;
    crossing.inside = scratch.crossing.inside;
    crossing.linear = false;
    emitted += scratch.emitted;
  }
  S::sync();
  if (threadIdx.x == 0) {
    scratch.crossing = crossing;
    scratch.emitted = emitted;
  }
  __syncthreads();
  return rounds;
}

// take(i, better) for each of the first `count` ranked entries, by one thread: how many of them are
// better than entry i. Block-wide.
template <class Take>
__device__ __forceinline__ void for_each_ranked(const Scratch& scratch, uint32_t count, Take take) {
#pragma unroll 1
  for (uint32_t base = 0; base < count; base += Config::kThreads / kRankLanes) {
    const uint32_t i = base + threadIdx.x / kRankLanes;
    if (i - lane_id() / kRankLanes >= count) break;  // the whole warp
    const uint32_t better = count_better(scratch.ranks, count, scratch.ranks[min(i, count - 1)]);
    if (threadIdx.x % kRankLanes == 0 && i < count) take(i, better);
  }
}

// The rank key of the k-th best of this CTA's `count` staged entries, k <= count. Block-wide.
// Leaves the bins at zero.
template <ScoreType kType>
__device__ __noinline__ uint64_t select_staged(Staging staging, uint32_t count, uint32_t k,
                                               uint32_t capacity) {
  Scratch& scratch = shared_scratch();
  const LinearBins bins(0.0f, 0.0f, 1.0f);
  narrow<kType, Scope<false>>(staging, count, k, capacity, bins, /*everything=*/true);
  const Crossing crossing = scratch.crossing;
  scratch.bins[threadIdx.x] = 0;
  for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
    if (side<kType>(crossing, bins, staging, i) == 0) {
      scratch.ranks[atomicAdd(&scratch.ranked, 1u)] = staged_rank<kType>(staging, i);
    }
  }
  __syncthreads();
  for_each_ranked(scratch, crossing.inside, [&](uint32_t i, uint32_t better) {
    if (crossing.above + better == k - 1) scratch.kth = scratch.ranks[i];
  });
  __syncthreads();
  return scratch.kth;
}

enum class Merge {
  kEnough,    // scratch.crossing says in which bin the K-th survivor lies
  kFew,       // fewer than K survivors
  kOverflow,  // some CTA had more survivors than room
};

// Histogram of the staged entries of all CTAs.
template <ScoreType kType, class S>
__device__ __forceinline__ Merge merge_survivors(Scratch& scratch, Staging staging, LinearBins bins,
                                                 uint32_t k, bool opening) {
  const bool overflowed = scratch.count > staging.capacity;
  const uint32_t count = overflowed ? 0u : scratch.count;
#pragma unroll 1  // code that runs once or twice per call: its instructions must be fetched, too
  for (uint32_t v = threadIdx.x; 4 * v < count; v += Config::kThreads) {
    const uint4 raws = staging.raws(v);
    const uint32_t raw[4] = {raws.x, raws.y, raws.z, raws.w};
    const int left = static_cast<int>(count - 4 * v);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int code = bins.code(Element<kType>::to_float(raw[j]));
      if (j < left) atomicAdd(&scratch.bins[code - kBinOrigin], 1u);
    }
  }
  if (threadIdx.x == 0) {
    scratch.crossing.linear = true;
    if (overflowed) scratch.bins[0] = kLost;
  }
  __syncthreads();
  find_crossing<S>(scratch, shared_merged(staging.capacity), k, opening);
  const uint32_t total = scratch.crossing.total;
  if (total >= kLostTotal) return Merge::kOverflow;
  return total >= k ? Merge::kEnough : Merge::kFew;
}

// Forget what is staged, on all CTAs, before the row is read again.
template <class S>
__device__ __noinline__ void restart() {
  Scratch& scratch = shared_scratch();
  S::sync();
  scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) scratch.count = 0;
  S::sync();
}

// Every staged entry to its place: winners, for which side_of(raw, index) is positive, to this
// CTA's output positions, entries of the crossing range, for which it is 0, to the leader's ranks.
// A warp looks at 128 entries at a time and asks for its positions once. Block-wide.
template <ScoreType kType, class S, class SideOf>
__device__ __forceinline__ void place_staged(const RowOutput<kType>& output, Staging staging,
                                             uint32_t count, const SideOf& side_of) {
  constexpr int kEach = 4;  // entries of a thread, neighbours in the staging area
  // What a warp reads beyond the last entry is memory of this CTA, too, and counts for nothing.
  static_assert(ahead_bytes(Config::kThreads) >= 32 * sizeof(uint4));
  Scratch& scratch = shared_scratch();
  const uint32_t lanes_before = (1u << lane_id()) - 1u;
#pragma unroll 1
  for (uint32_t v = threadIdx.x; (v & ~31u) * kEach < count; v += Config::kThreads) {
    const uint4 raws = staging.raws(v), indices = staging.indices(v);
    const uint32_t raw[kEach] = {raws.x, raws.y, raws.z, raws.w};
    const uint32_t index[kEach] = {indices.x, indices.y, indices.z, indices.w};
    const int left = static_cast<int>(count - kEach * v);
    uint32_t winners[kEach];  // lanes that hold one
    uint32_t before[kEach];   // winners of this warp that are placed before this thread's
    uint32_t crossing = 0;    // entries of this thread
    uint32_t sum = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int side = side_of(raw[j], static_cast<int32_t>(index[j]));
      winners[j] = __ballot_sync(~0u, j < left && side > 0);
      before[j] = sum + __popc(winners[j] & lanes_before);
      sum += __popc(winners[j]);
      crossing |= j < left && side == 0 ? 1u << j : 0u;
    }
    uint32_t position = 0;
    if (lane_id() == 31) {
      position = atomicAdd(&scratch.emitted, before[kEach - 1] + (winners[kEach - 1] >> 31));
    }
    position = __shfl_sync(~0u, position, 31);
    const auto each_winner = [&](auto put) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (winners[j] & (lanes_before + 1u))
          put(before[j], raw[j], static_cast<int32_t>(index[j]));
      }
    };
    int32_t* to = output.indices + position;
    each_winner([&](uint32_t at, uint32_t, int32_t index) { to[at] = index; });
    if (output.values != nullptr) {
      each_winner(
          [&](uint32_t at, uint32_t raw, int32_t) { output.put_value(position + at, raw); });
    }
    if (output.entry != nullptr) {
      if (output.params.hint_step == 0) {  // the state keeps every winner
        to = output.entry + kStateHeader + position;
        each_winner([&](uint32_t at, uint32_t, int32_t index) { to[at] = index; });
      } else {
        each_winner(
            [&](uint32_t at, uint32_t, int32_t index) { output.put_hint(position + at, index); });
      }
    }
#pragma unroll 1  // few entries cross
    for (; crossing != 0; crossing &= crossing - 1) {
      const uint32_t i = kEach * v + __ffs(static_cast<int>(crossing)) - 1;
      const uint32_t at = atomicAdd(&scratch.ranked, 1u);
      S::remote(scratch.ranks, 0)[at] = staged_rank<kType>(staging, i);
      S::remote(scratch.rank_raw, 0)[at] = staging.raw(i);
    }
  }
}

// The rare end: the crossing range was found by rank keys.
template <ScoreType kType, class S>
__device__ __noinline__ void place_by_rank(const TopKParams& p, int64_t row_index, Staging staging,
                                           uint32_t count) {
  const Crossing crossing = shared_scratch().crossing;
  const RowOutput<kType> output(p, row_index, shared_scratch().task.entry);
  place_staged<kType, S>(output, staging, count, [&](uint32_t raw, int32_t index) {
    return rank_side(crossing, rank_key(Element<kType>::key(raw), index));
  });
}

// Write the K best staged entries of all CTAs of the row; scratch.crossing is merge_survivors'
// verdict. Returns the number of histogram rounds. Only the leader's return means completion.
template <ScoreType kType, class S>
__device__ __forceinline__ int refine_and_emit(const TopKParams& p, Scratch& scratch,
                                               Staging staging, uint32_t capacity,
                                               LinearBins bins) {
  const int64_t row_index = scratch.task.row_index;
  const RowOutput<kType> output(p, row_index, scratch.task.entry);
  if (threadIdx.x == 0) scratch.survivors = scratch.crossing.total;
  const auto k = static_cast<uint32_t>(p.k);
  const uint32_t count = scratch.count;
  int rounds = 1;
  if (scratch.crossing.inside > capacity) {
    rounds += narrow<kType, S>(staging, count, k, capacity, bins, /*everything=*/false);
    place_by_rank<kType, S>(p, row_index, staging, count);
  } else {
    const int crossed = kBinOrigin + scratch.crossing.bin;
    place_staged<kType, S>(output, staging, count, [&](uint32_t raw, int32_t) {
      return crossed - bins.code(Element<kType>::to_float(raw));
    });
  }
  if constexpr (S::kIsCluster) {
    S::arrive();
    if (S::rank() != 0) return rounds;
    S::wait();
  } else {
    __syncthreads();
  }
  for_each_ranked(scratch, scratch.crossing.inside, [&](uint32_t i, uint32_t better) {
    const uint32_t position = scratch.crossing.above + better;
    const uint64_t rank = scratch.ranks[i];
    if (position < k) output.put(position, scratch.rank_raw[i], rank_key_index(rank));
    if (position == k - 1 && output.entry != nullptr) {
      write_state_header(p, row_index, output.entry, p.k, rank_key_score(rank), -1);
    }
  });
  return rounds;
}

}  // namespace gvr::cuda
