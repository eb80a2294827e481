// SPDX-License-Identifier: Apache-2.0
// Lists of winners that ranks exchange. The merge has no step that all wait for: the place of an
// entry in the answer is its position in its own list, plus how many entries of every other list
// come before it. All places differ, so each thread writes its own entry, or leaves.
#pragma once

#include "../../common/winners.h"
#include "../phases/slice.cuh"
#include "../winners.h"

namespace gvr::cuda {

// Up to 102 registers per thread: with the compiler's own choice it spills.
inline constexpr int kMergeBlocksPerSm = 5;

struct ListPosition {
  int64_t row;
  uint32_t at;  // may be beyond the list
};

__device__ __forceinline__ ListPosition thread_position(int32_t k) {
  const uint32_t blocks = list_blocks(k);
  return {blockIdx.x / blocks, blockIdx.x % blocks * kListThreads + threadIdx.x};
}

template <ScoreType kType>
__global__ void __launch_bounds__(kListThreads) pack_kernel(const __grid_constant__ PackParams p) {
  const auto [row, slot] = thread_position(p.k);
  if (slot >= static_cast<uint32_t>(p.k)) return;
  const Slots slots = own_slots(p, row);
  int32_t index = 0, bits = 0;
  if (slot >= slots.first && slot < slots.end) {
    const int64_t from = row * p.k + slot - slots.first;
    index = global_index(p.placement, shard_offset(p.placement), p.indices[from]);
    if (p.counts != nullptr) ++index;
    bits = static_cast<int32_t>(Element<kType>::load(p.values, from));
  }
  if (p.keys != nullptr) {
    p.keys[row * p.k + slot] = ascending_key<kType>(static_cast<uint32_t>(bits), index);
    return;
  }
  int32_t* message = p.message + row * 2 * p.k;
  message[slot] = index;
  message[int64_t{p.k} + slot] = bits;
}

// An output entry of `bits`, or padding where index is -1.
template <ScoreType kType>
__device__ __forceinline__ void write_winner(void* values, int32_t* indices, int64_t at,
                                             uint32_t bits, int32_t index) {
  using E = Element<kType>;
  indices[at] = index;
  if (index < 0) bits = E::Traits::kMinusInf;
  static_cast<typename E::Storage*>(values)[at] = static_cast<typename E::Storage>(bits);
}

template <ScoreType kType>
__global__ void __launch_bounds__(kListThreads) keep_kernel(const __grid_constant__ KeepParams p) {
  const auto [row, slot] = thread_position(p.k);
  const auto k = static_cast<uint32_t>(p.k);
  if (slot >= k) return;
  const int64_t at = row * p.k + slot;
  const bool kept = slot < bounded_count(p.counts[row], k);
  write_winner<kType>(p.kept_values, p.kept_indices, at, Element<kType>::load(p.values, at),
                      kept ? p.indices[at] : -1);
}

// A thread per edge; the first of a row keeps its bound.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) digits_kernel(const __grid_constant__ DigitParams p) {
  const auto [row, edge] = thread_position(max(p.edges, 1));
  const int64_t bound = settled_bound(p, row);
  if (edge == 0) p.bound[row] = bound;
  if (edge >= static_cast<uint32_t>(p.edges)) return;
  p.counts[row * p.edges + edge] = keys_before(p, row, bound, edge);
}

struct WinnerEntry {
  int32_t index;
  uint32_t bits;
};

// How entries of any list of a call are read. A larger key is a better entry.
template <ScoreType kType>
struct EntryReader {
  int64_t k;
  int32_t bias;

  __device__ __forceinline__ explicit EntryReader(const MergeParams& p)
      : k(p.k), bias(p.counts == nullptr ? 0 : 1) {}

  __device__ __forceinline__ WinnerEntry load(const int32_t* list, uint32_t i) const {
    return {list[i], static_cast<uint32_t>(list[k + i])};
  }
  __device__ __forceinline__ int32_t index(WinnerEntry entry) const { return entry.index - bias; }

  // Without a branch, so that no load waits for another one's value.
  __device__ __forceinline__ uint64_t key(WinnerEntry entry) const {
    const auto padding = static_cast<int64_t>(index(entry)) >> 63;
    const uint64_t key = rank_key(Element<kType>::key(entry.bits), index(entry));
    return (key & ~padding) | (kPaddingKey & padding);
  }
};

// How many entries of a list have a key above `bound`: at least low, at most high.
struct CountSearch {
  const int32_t* list;
  uint32_t low, high;
  uint64_t bound;

  // The lane's probe where a warp divides the search by 32. Entries up to it are `step` each.
  __device__ __forceinline__ uint32_t step() const { return max(1u, (high - low + 31) / 32); }
  __device__ __forceinline__ uint32_t probe() const {
    return low + step() * (threadIdx.x % 32 + 1) - 1;
  }
  __device__ __forceinline__ uint32_t middle() const { return low + (high - low) / 2; }
};

// The whole warp divides every search by 32 at once; the searches are the same in all lanes.
template <ScoreType kType, int kSearches>
__device__ __forceinline__ void narrow(const EntryReader<kType>& reader,
                                       CountSearch (&searches)[kSearches]) {
  WinnerEntry probes[kSearches] = {};
#pragma unroll
  for (int s = 0; s < kSearches; ++s) {
    const CountSearch& search = searches[s];
    if (search.probe() < search.high) probes[s] = reader.load(search.list, search.probe());
  }
#pragma unroll
  for (int s = 0; s < kSearches; ++s) {
    CountSearch& search = searches[s];
    const bool above = search.probe() < search.high && reader.key(probes[s]) > search.bound;
    const uint32_t step = search.step();
    search.low += __popc(__ballot_sync(~0u, above)) * step;
    search.high = min(search.high, search.low + step - 1);
  }
}

// Every lane finishes searches of its own.
template <ScoreType kType, int kSearches>
__device__ __forceinline__ void bisect(const EntryReader<kType>& reader,
                                       CountSearch (&searches)[kSearches]) {
  uint32_t widest = 0;
#pragma unroll
  for (int s = 0; s < kSearches; ++s) widest = max(widest, searches[s].high - searches[s].low);
  for (; widest != 0; widest >>= 1) {
    WinnerEntry probes[kSearches] = {};
#pragma unroll
    for (int s = 0; s < kSearches; ++s) {
      const CountSearch& search = searches[s];
      if (search.low < search.high) probes[s] = reader.load(search.list, search.middle());
    }
#pragma unroll
    for (int s = 0; s < kSearches; ++s) {
      CountSearch& search = searches[s];
      const uint32_t middle = search.middle();
      const bool above = reader.key(probes[s]) > search.bound;
      if (search.low == search.high) continue;
      search.low = above ? middle + 1 : search.low;
      search.high = above ? search.high : middle;
    }
  }
}

// A warp's 32 neighbours in list `own`. The key is the lane's; all else is the same in all lanes.
struct Neighbours {
  uint64_t key;
  uint64_t best, worst;
  uint32_t first;  // position of lane 0
};

// The next lists of the walk, up to kTogether of the `others` that are left, to be searched for
// `key`. Only padding has the key of another entry: that of an earlier rank comes first.
template <int kTogether, int kSearches>
__device__ __forceinline__ void begin_searches(ListWalk& walk, int others, int own, uint64_t key,
                                               CountSearch (&searches)[kSearches]) {
#pragma unroll
  for (int s = 0; s < kTogether; ++s) {
    searches[s] = {nullptr, 0, 0, 0};
    if (s >= others) continue;
    const WinnerList list = walk.next_but(own);
    const bool earlier = walk.rank() <= own;
    searches[s] = {list.indices, 0, list.size, key - (earlier ? 1 : 0)};
  }
}

// A place that the best of the neighbours can not have been better than, up to k.
template <ScoreType kType, int kTogether>
__device__ __forceinline__ uint32_t least_place(const MergeParams& p, int64_t row, int own,
                                                const Neighbours& of) {
  const auto k = static_cast<uint32_t>(p.k);
  const EntryReader<kType> reader(p);
  ListWalk walk(p, row);
  uint32_t least = of.first;
  for (int others = p.world - 1; others > 0 && least < k; others -= kTogether) {
    CountSearch searches[kTogether];
    begin_searches<kTogether>(walk, others, own, of.best, searches);
    narrow(reader, searches);
#pragma unroll
    for (int s = 0; s < kTogether; ++s) least = min(least + searches[s].low, k);
  }
  return least;
}

// The place of the lane's entry, up to k. Neighbours lie close together in every other list: the
// warp brackets them by its best and its worst, and their sectors are in the cache after that.
template <ScoreType kType, int kTogether>
__device__ __forceinline__ uint32_t find_place(const MergeParams& p, int64_t row, int own,
                                               const Neighbours& of) {
  const auto k = static_cast<uint32_t>(p.k);
  const EntryReader<kType> reader(p);
  ListWalk walk(p, row);
  uint32_t place = of.first + threadIdx.x % 32;
  for (int others = p.world - 1; others > 0; others -= kTogether) {
    CountSearch bounds[2 * kTogether], searches[kTogether];
    begin_searches<kTogether>(walk, others, own, of.best, bounds);
#pragma unroll
    for (int s = 0; s < kTogether; ++s) {
      bounds[kTogether + s] = bounds[s];
      bounds[kTogether + s].bound += of.worst - of.best;
    }
    narrow(reader, bounds);
    narrow(reader, bounds);
#pragma unroll
    for (int s = 0; s < kTogether; ++s) {
      searches[s] = bounds[s];
      searches[s].high = max(bounds[s].low, bounds[kTogether + s].high);
      searches[s].bound += of.key - of.best;
    }
    bisect(reader, searches);
#pragma unroll
    for (int s = 0; s < kTogether; ++s) place = min(place + searches[s].low, k);
    if (__all_sync(~0u, place >= k)) break;
  }
  return place;
}

// Grid: (rows * list_blocks(k), lists to merge). kOwn: the part of one list that wins.
template <ScoreType kType, int kTogether, bool kOwn>
__global__ void __launch_bounds__(kListThreads, kMergeBlocksPerSm)
    merge_kernel(const __grid_constant__ MergeParams p) {
  const auto [row, at] = thread_position(p.k);
  const int own = kOwn ? p.own : static_cast<int>(blockIdx.y);
  ListWalk walk(p, row);
  WinnerList list = walk.next();
  while (walk.rank() <= own) list = walk.next();
  const uint32_t first = at - threadIdx.x % 32;
  if (first >= list.size) return;
  // Lanes beyond the end repeat the last entry, so that lane 31 has the worst.
  const EntryReader<kType> reader(p);
  const WinnerEntry entry = reader.load(list.indices, min(at, list.size - 1));
  const int32_t index = reader.index(entry);
  const uint64_t key = reader.key(entry);
  const Neighbours of{key, __shfl_sync(~0u, key, 0), __shfl_sync(~0u, key, 31), first};
  const auto k = static_cast<uint32_t>(p.k);
  uint32_t place = least_place<kType, kTogether>(p, row, own, of);
  if (place < k) place = find_place<kType, kTogether>(p, row, own, of);
  if (at >= list.size) return;
  const int64_t row_begin = row * p.k;
  if constexpr (kOwn) {
    const bool wins = place < k && index >= 0;
    write_winner<kType>(p.values, p.indices, row_begin + at,
                        Element<kType>::load(p.own_values, row_begin + at),
                        wins ? p.own_indices[row_begin + at] : -1);
  } else if (place < k) {
    write_winner<kType>(p.values, p.indices, row_begin + place, entry.bits, index);
  }
}

}  // namespace gvr::cuda
