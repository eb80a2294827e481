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
// whole row's bins and how many of each belong to the CTAs before it. Output positions follow from
// the two without any further traffic.
#pragma once

#include <cstdint>

#include "emit.cuh"
#include "scope.cuh"
#include "scratch.cuh"

namespace gvr::cuda {

// Monotone map from score to bin; clamped, so every score has one. A range that floats cannot
// divide puts everything but NaN into bin 0, and further rounds do the work.
struct LinearBins {
  float low, scale;

  __device__ __forceinline__ LinearBins(float from, float to) : low(from) {
    scale = __fdividef(static_cast<float>(Config::kBins), to - from);
    const bool divides = to > from && scale > 0.0f && scale < 3.0e38f && fabsf(from) < 3.0e38f;
    if (!divides) low = scale = 0.0f;
  }
  __device__ __forceinline__ int operator()(float x) const {
    if (x != x) return Config::kBins - 1;
    const float position = (x - low) * scale;
    return static_cast<int>(fminf(fmaxf(position, 0.0f), static_cast<float>(Config::kBins - 1)));
  }
};

template <ScoreType kType>
__device__ __forceinline__ uint64_t staged_rank(Staging staging, uint32_t i) {
  return rank_key(Element<kType>::key(staging.raw(i)), staging.index(i));
}

// Where an entry lies in the crossing's terms: -1 below, 0 inside, 1 above.
template <ScoreType kType>
__device__ __forceinline__ int side(const Crossing& crossing, const LinearBins& bins,
                                    Staging staging, uint32_t i) {
  if (crossing.linear) {
    const int bin = bins(Element<kType>::to_float(staging.raw(i)));
    return bin > crossing.bin ? 1 : (bin == crossing.bin ? 0 : -1);
  }
  const uint64_t rank = staged_rank<kType>(staging, i);
  return rank > crossing.high ? 1 : (rank >= crossing.low ? 0 : -1);
}

// A CTA that lost survivors puts kLost into its best bin, and no score into any: more than a CTA
// can stage. All CTAs of the row then find kLostTotal.
inline constexpr uint32_t kLost = 0x8000;
inline constexpr uint32_t kLostTotal = ~0u;

// scratch.bins of every CTA -> the verdict in scratch.crossing (bin, above, inside, total), and in
// scratch.bins the output position of this CTA's first entry of each bin. Block-wide; `bins` of
// this block must be complete (barrier) before. `opening`: the cluster's start is still
// unconfirmed.
template <class S>
__device__ __forceinline__ void find_crossing(Scratch& scratch, MergedBins& merged, uint32_t wanted,
                                              bool opening) {
  uint32_t here = 0, earlier = 0, any = 0;
  const int bin = Config::kBins - 1 - static_cast<int>(threadIdx.x);  // best bin first
  if constexpr (S::kIsCluster) {
    if (opening) S::wait();
    constexpr int kVectors = Config::kBins / 8;  // of eight 16-bit counts
    const int part = threadIdx.x % kVectors;
    const uint4 a = reinterpret_cast<const uint4*>(scratch.bins)[2 * part];
    const uint4 b = reinterpret_cast<const uint4*>(scratch.bins)[2 * part + 1];
    const uint4 packed =
        make_uint4(a.x | (a.y << 16), a.z | (a.w << 16), b.x | (b.y << 16), b.z | (b.w << 16));
    for (int to = threadIdx.x / kVectors; to < S::size(); to += Config::kThreads / kVectors) {
      reinterpret_cast<uint4*>(S::remote(&merged[S::rank()][0], to))[part] = packed;
    }
    S::sync();
    if (bin >= 0) {
#pragma unroll 4
      for (int c = 0; c < S::size(); ++c) {
        const uint32_t count = merged[c][bin];
        here += count;
        any |= count;
        earlier += c < S::rank() ? count : 0u;
      }
    }
  } else {
    any = here = bin >= 0 ? scratch.bins[bin] : 0u;
  }
  const uint32_t inclusive = warp_inclusive_sum(here);
  constexpr int kBinWarps = Config::kBins / 32;
  if (lane_id() == 31 && warp_id() < kBinWarps) scratch.warp_sums[warp_id()] = inclusive;
  __syncthreads();
  if (bin >= 0) {
    uint32_t before = inclusive - here, total = 0;
#pragma unroll
    for (int w = 0; w < kBinWarps; ++w) {
      const uint32_t sum = scratch.warp_sums[w];
      before += w < warp_id() ? sum : 0u;
      total += sum;
    }
    scratch.bins[bin] = before + earlier;
    if (before < wanted && wanted <= before + here) {
      scratch.crossing.bin = bin;
      scratch.crossing.above = before;
      scratch.crossing.inside = here;
    }
    if (threadIdx.x == 0) scratch.crossing.total = (any & kLost) != 0 ? kLostTotal : total;
  }
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
// On entry scratch.crossing describes the range reached so far (every entry when `everything`).
// All CTAs of the scope call this together. Returns the number of rounds.
template <ScoreType kType, class S>
__device__ __noinline__ int narrow(Staging staging, uint32_t count, uint32_t wanted,
                                   uint32_t capacity, LinearBins bins, bool everything) {
  Scratch& scratch = shared_scratch();
  MergedBins& merged = shared_merged(staging.capacity);
  int rounds = 0;
  Crossing crossing = scratch.crossing;
  if (everything) {
    crossing.low = 0;
    crossing.high = ~uint64_t{0};
    crossing.above = 0;
    crossing.inside = 0xFFFFFFFFu;
    crossing.linear = false;
  }
  while (crossing.inside > capacity) {
    ++rounds;
    S::sync();  // everybody has read the bins and the verdict of the round before
    if (threadIdx.x < Config::kBins) scratch.bins[threadIdx.x] = 0;
    const RankRange range = find_range<kType, S>(scratch, staging, count, crossing, bins);
    const uint64_t low = range.low;
    // kBins parts of a power-of-two range.
    const int bits = 64 - __clzll(static_cast<long long>(range.high - low));
    const int shift = bits > Config::kBinBits ? bits - Config::kBinBits : 0;
    for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
      if (side<kType>(crossing, bins, staging, i) != 0) continue;
      const uint64_t rank = staged_rank<kType>(staging, i);
      atomicAdd(&scratch.bins[static_cast<int>((rank - low) >> shift)], 1u);
    }
    __syncthreads();
    find_crossing<S>(scratch, merged, wanted - crossing.above, /*opening=*/false);
    crossing.low = low + (static_cast<uint64_t>(scratch.crossing.bin) << shift);
    // The last part may reach beyond the range, where entries already counted as above lie, and
    // beyond 64 bits, where NaN lives.
    const uint64_t span = (uint64_t{1} << shift) - 1;
    crossing.high = range.high - crossing.low > span ? crossing.low + span : range.high;
    crossing.above += scratch.crossing.above;
    crossing.inside = scratch.crossing.inside;
    crossing.linear = false;
  }
  S::sync();
  if (threadIdx.x == 0) scratch.crossing = crossing;
  __syncthreads();
  return rounds;
}

// How many of the first `count` ranked entries are better than this thread's.
__device__ __forceinline__ uint32_t rank_among(const Scratch& scratch, uint32_t count,
                                               uint64_t mine) {
  uint32_t better = 0;
#pragma unroll 4
  for (uint32_t j = 0; j < count; ++j) better += scratch.ranks[j] > mine ? 1u : 0u;
  return better;
}

// The rank key of the k-th best of this CTA's `count` staged entries, k <= count. Block-wide.
// Leaves the bins and the counters that it used at zero.
template <ScoreType kType>
__device__ __noinline__ uint64_t select_staged(Staging staging, uint32_t count, uint32_t k,
                                               uint32_t capacity) {
  Scratch& scratch = shared_scratch();
  const LinearBins bins(0.0f, 0.0f);
  narrow<kType, Scope<false>>(staging, count, k, capacity, bins, /*everything=*/true);
  const Crossing crossing = scratch.crossing;
  if (threadIdx.x == 0) scratch.ranked = 0;
  if (threadIdx.x < Config::kBins) scratch.bins[threadIdx.x] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
    if (side<kType>(crossing, bins, staging, i) == 0) {
      scratch.ranks[atomicAdd(&scratch.ranked, 1u)] = staged_rank<kType>(staging, i);
    }
  }
  __syncthreads();
  if (threadIdx.x < crossing.inside) {
    const uint64_t mine = scratch.ranks[threadIdx.x];
    const uint32_t better = rank_among(scratch, crossing.inside, mine);
    if (crossing.above + better == k - 1) scratch.kth = mine;
  }
  if (threadIdx.x == 0) scratch.ranked = 0;
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
  for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
    atomicAdd(&scratch.bins[bins(Element<kType>::to_float(staging.raw(i)))], 1u);
  }
  if (threadIdx.x == 0) {
    scratch.crossing.linear = true;
    if (overflowed) scratch.bins[Config::kBins - 1] = kLost;
  }
  __syncthreads();
  find_crossing<S>(scratch, shared_merged(staging.capacity), k, opening);
  const uint32_t total = scratch.crossing.total;
  if (total == kLostTotal) return Merge::kOverflow;
  return total >= k ? Merge::kEnough : Merge::kFew;
}

// Forget what is staged, on all CTAs, before the row is read again.
template <class S>
__device__ __noinline__ void restart() {
  Scratch& scratch = shared_scratch();
  S::sync();
  if (threadIdx.x < Config::kBins) scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x == 0) scratch.count = 0;
  S::sync();
}

// The rare end: the crossing range was found by rank keys, so bins say nothing about positions.
// Positions come from counters of the leader instead, which every warp asks once.
template <ScoreType kType, class S>
__device__ __noinline__ void place_by_rank(const TopKParams& p, int64_t row_index, Staging staging,
                                           uint32_t count, LinearBins bins) {
  Scratch& scratch = shared_scratch();
  const Crossing crossing = scratch.crossing;
  const RowOutput<kType> output(p, row_index, scratch.task.entry);
  S::sync();
  if (threadIdx.x == 0) scratch.count = 0;
  S::sync();
  const auto side_of = [&](uint32_t i) {
    return i < count ? side<kType>(crossing, bins, staging, i) : -1;
  };
  const uint32_t first = threadIdx.x;
  uint32_t above = 0, inside = 0;
  for (uint32_t i = first; i - lane_id() < count; i += Config::kThreads) {
    const int where = side_of(i);
    above += __popc(__ballot_sync(~0u, where > 0));
    inside += __popc(__ballot_sync(~0u, where == 0));
  }
  if (lane_id() == 0) {
    if (above != 0) above = atomicAdd(S::remote(&scratch.count, 0), above);
    if (inside != 0) inside = atomicAdd(S::remote(&scratch.ranked, 0), inside);
  }
  above = __shfl_sync(~0u, above, 0);
  inside = __shfl_sync(~0u, inside, 0);
  uint64_t* ranks = S::remote(scratch.ranks, 0);
  uint32_t* rank_raw = S::remote(scratch.rank_raw, 0);
  const uint32_t lanes_before = (1u << lane_id()) - 1u;
  for (uint32_t i = first; i - lane_id() < count; i += Config::kThreads) {
    const int where = side_of(i);
    const uint32_t winners = __ballot_sync(~0u, where > 0);
    const uint32_t ranked = __ballot_sync(~0u, where == 0);
    if (where > 0) {
      output.put(above + __popc(winners & lanes_before), staging.raw(i), staging.index(i));
    } else if (where == 0) {
      const uint32_t at = inside + __popc(ranked & lanes_before);
      ranks[at] = staged_rank<kType>(staging, i);
      rank_raw[at] = staging.raw(i);
    }
    above += __popc(winners);
    inside += __popc(ranked);
  }
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
    place_by_rank<kType, S>(p, row_index, staging, count, bins);
  } else {
    const int crossing_bin = scratch.crossing.bin;
    const uint32_t above = scratch.crossing.above;
    uint64_t* ranks = S::remote(scratch.ranks, 0) - above;
    uint32_t* rank_raw = S::remote(scratch.rank_raw, 0) - above;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += Config::kThreads) {
      const uint32_t raw = staging.raw(i);
      const int bin = bins(Element<kType>::to_float(raw));
      if (bin < crossing_bin) continue;
      const uint32_t position = atomicAdd(&scratch.bins[bin], 1u);
      if (bin > crossing_bin) {
        output.put(position, raw, staging.index(i));
      } else {
        ranks[position] = staged_rank<kType>(staging, i);
        rank_raw[position] = raw;
      }
    }
  }
  if constexpr (S::kIsCluster) {
    S::arrive();
    if (S::rank() != 0) return rounds;
    S::wait();
  } else {
    __syncthreads();
  }
  const uint32_t inside = scratch.crossing.inside;
  if (threadIdx.x < inside) {
    const uint64_t mine = scratch.ranks[threadIdx.x];
    const uint32_t position = scratch.crossing.above + rank_among(scratch, inside, mine);
    if (position < k) {
      output.put(position, scratch.rank_raw[threadIdx.x], rank_key_index(mine));
    }
    if (position == k - 1 && output.entry != nullptr) {
      write_state_header(p, row_index, output.entry, p.k, rank_key_score(mine), -1);
    }
  }
  return rounds;
}

}  // namespace gvr::cuda
