// SPDX-License-Identifier: Apache-2.0
// After the selection, only on request: rank order for sorted=True; then telemetry and differences
// to the stored answer.
#pragma once

#include <cub/block/block_merge_sort.cuh>
#include <cub/block/block_reduce.cuh>

#include "../phases/emit.cuh"

namespace gvr::cuda {

struct BetterRank {
  __device__ __forceinline__ bool operator()(uint64_t a, uint64_t b) const { return a > b; }
};

// One block per row: score descending, index ascending. Padding has the least rank key, stays last.
template <ScoreType kType, int kPerThread>
__global__ void __launch_bounds__(Config::kSortThreads)
    sort_kernel(const __grid_constant__ TopKParams p) {
  using E = Element<kType>;
  using Sort = cub::BlockMergeSort<uint64_t, Config::kSortThreads, kPerThread>;
  __shared__ typename Sort::TempStorage storage;
  const int64_t row_index = blockIdx.x;
  const auto* row = static_cast<const typename E::Storage*>(p.scores) + row_index * p.score_stride;
  int32_t* indices = p.indices + row_index * p.indices_stride;
  uint64_t ranks[kPerThread];
  const int first = threadIdx.x * kPerThread;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int32_t index = first + i < p.k ? indices[first + i] : -1;
    ranks[i] = index < 0 ? 0 : rank_key(E::key(E::load(row, index)), index);
  }
  Sort(storage).Sort(ranks, BetterRank());
  int32_t* kv_indices = p.kv.out == nullptr ? nullptr : p.kv.out + row_index * p.kv.out_stride;
  const RowPlaces places = kv_indices == nullptr ? RowPlaces{} : row_places(p, row_index);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (first + i >= p.k) continue;
    const bool winner = ranks[i] != 0;
    const int32_t index = winner ? rank_key_index(ranks[i]) : -1;
    indices[first + i] = index;
    if (kv_indices != nullptr) kv_indices[first + i] = place_of(places, index);
    if (p.values != nullptr) {
      auto* values = static_cast<typename E::Storage*>(p.values) + row_index * p.values_stride;
      values[first + i] = static_cast<typename E::Storage>(winner ? E::load(row, index)
                                                                  : uint32_t{E::Traits::kMinusInf});
    }
  }
}

// Shared memory of compare_kernel: one use after the other.
template <int kThreads>
struct CompareScratch {
  using MinReduce = cub::BlockReduce<uint64_t, kThreads>;
  using SumReduce = cub::BlockReduce<int, kThreads>;
  union {
    typename MinReduce::TempStorage least;
    typename SumReduce::TempStorage sum;
  };
  uint64_t kth;  // rank key of the row's K-th score
  int winners;
};
using Comparing = CompareScratch<Config::kSortThreads>;

// The row's K-th score and its number of winners, in scratch. Block-wide.
template <ScoreType kType>
__device__ void find_kth(const TopKParams& p, int64_t row_index, Comparing& scratch) {
  using E = Element<kType>;
  const auto* row = static_cast<const typename E::Storage*>(p.scores) + row_index * p.score_stride;
  const int32_t* indices = p.indices + row_index * p.indices_stride;
  uint64_t least = ~uint64_t{0};
  int winners = 0;
  for (int i = threadIdx.x; i < p.k; i += blockDim.x) {
    const int32_t index = indices[i];
    if (index < 0) continue;
    ++winners;
    least = min(least, rank_key(E::key(E::load(row, index)), index));
  }
  __syncthreads();
  least = Comparing::MinReduce(scratch.least).Reduce(least, ::cuda::minimum<uint64_t>{});
  __syncthreads();
  winners = Comparing::SumReduce(scratch.sum).Sum(winners);
  if (threadIdx.x == 0) {
    scratch.kth = least;
    scratch.winners = winners;
  }
  __syncthreads();
}

// How good the hint was; thread 0 returns the hits. Block-wide.
template <ScoreType kType>
__device__ int count_hits(const TopKParams& p, int64_t row_index, RowWindow window, HintRow hint,
                          Comparing& scratch) {
  using E = Element<kType>;
  const auto* row = static_cast<const typename E::Storage*>(p.scores) + row_index * p.score_stride;
  const uint64_t kth = scratch.kth;
  int valid = 0, hits = 0;
  for (int i = threadIdx.x; i < hint.size; i += blockDim.x) {
    const int32_t position = hinted_position(hint.indices[i], p.hint_offset, window);
    if (position < 0) continue;
    ++valid;
    hits += rank_key(E::key(E::load(row, position)), position) >= kth ? 1 : 0;
  }
  __syncthreads();
  valid = Comparing::SumReduce(scratch.sum).Sum(valid);
  __syncthreads();
  hits = Comparing::SumReduce(scratch.sum).Sum(hits);
  if (threadIdx.x == 0) {
    p.stats[row_index * kStatColumns + kStatHintValid] = valid;
    p.stats[row_index * kStatColumns + kStatHintHits] = hits;
  }
  return hits;
}

// One block per group of rows, for telemetry, and for differences to sorted answers: how the
// answers compare with the hint. The selection left the state alone (begin_entry), so the old hint
// is still there for every row of the group; the new ones replace it at the end.
template <ScoreType kType>
__global__ void __launch_bounds__(Config::kSortThreads)
    compare_kernel(const __grid_constant__ TopKParams p) {
  __shared__ Comparing scratch;
  const int64_t group = blockIdx.x;
  const int64_t slot = claim_slot(p, group, Config::kSortThreads);
  HintRow hint = slot < 0 ? HintRow{nullptr, 0} : slot_hint(p, slot);
  for (int draft = 0; draft < p.next_n; ++draft) {
    const int64_t row = group * p.next_n + draft;
    const RowWindow window = row_window(p, row);
    if (p.hint != nullptr) hint = row_hint(p, row);
    find_kth<kType>(p, row, scratch);
    int hits = -1;
    if (p.stats != nullptr) hits = count_hits<kType>(p, row, window, hint, scratch);
    if (p.difference.entered != nullptr) {
      const Positions selected{p.indices + row * p.indices_stride, scratch.winners};
      write_difference(p, row, selected, hint, Config::kSortThreads);
    }
    if (slot >= 0 && threadIdx.x == 0) {
      // As everywhere, a short row has no k-th score.
      const uint32_t kth_key = window.size() <= p.k ? kKeyMinusInf : rank_key_score(scratch.kth);
      write_state_header(p, row, state_entry(p, slot, draft), scratch.winners, kth_key,
                         hint.size > 0 ? hits : -1);
    }
  }
  __syncthreads();
  if (slot < 0) return;
  for (int draft = 0; draft < p.next_n; ++draft) {
    const int32_t* indices = p.indices + (group * p.next_n + draft) * p.indices_stride;
    int32_t* entry = state_entry(p, slot, draft);
    for (int i = threadIdx.x; i < p.k && indices[i] >= 0; i += blockDim.x) {
      store_hint(p, entry, static_cast<uint32_t>(i), indices[i]);
    }
  }
}

}  // namespace gvr::cuda
