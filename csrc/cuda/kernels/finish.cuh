// SPDX-License-Identifier: Apache-2.0
// After the selection, only on request: rank order for sorted=True, and telemetry.
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
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (first + i >= p.k) continue;
    const bool winner = ranks[i] != 0;
    const int32_t index = winner ? rank_key_index(ranks[i]) : -1;
    indices[first + i] = index;
    if (p.values != nullptr) {
      auto* values = static_cast<typename E::Storage*>(p.values) + row_index * p.values_stride;
      values[first + i] = static_cast<typename E::Storage>(winner ? E::load(row, index)
                                                                  : uint32_t{E::Traits::kMinusInf});
    }
  }
}

// One block per row: how good the hint was. The selection left the state alone (emit.cuh), so the
// old hint is still there to be compared; it is replaced here.
template <ScoreType kType>
__global__ void __launch_bounds__(Config::kSortThreads)
    telemetry_kernel(const __grid_constant__ TopKParams p) {
  using E = Element<kType>;
  using MinReduce = cub::BlockReduce<uint64_t, Config::kSortThreads>;
  using SumReduce = cub::BlockReduce<int, Config::kSortThreads>;
  __shared__ union {
    typename MinReduce::TempStorage least;
    typename SumReduce::TempStorage sum;
  } storage;
  __shared__ uint64_t shared_least;
  const int64_t row_index = blockIdx.x;
  const auto* row = static_cast<const typename E::Storage*>(p.scores) + row_index * p.score_stride;
  const RowWindow window = row_window(p, row_index);
  const int32_t* indices = p.indices + row_index * p.indices_stride;

  uint64_t least = ~uint64_t{0};
  int winners = 0;
  for (int i = threadIdx.x; i < p.k; i += blockDim.x) {
    const int32_t index = indices[i];
    if (index < 0) continue;
    ++winners;
    least = min(least, rank_key(E::key(E::load(row, index)), index));
  }
  least = MinReduce(storage.least).Reduce(least, ::cuda::minimum<uint64_t>{});
  if (threadIdx.x == 0) shared_least = least;
  __syncthreads();
  least = shared_least;
  winners = SumReduce(storage.sum).Sum(winners);
  __syncthreads();

  const HintRow hint = row_hint(p, row_index);
  int valid = 0, hits = 0;
  for (int i = threadIdx.x; i < hint.size; i += blockDim.x) {
    const int32_t position = hinted_position(hint.indices[i], p.hint_offset, window);
    if (position < 0) continue;
    ++valid;
    hits += rank_key(E::key(E::load(row, position)), position) >= least ? 1 : 0;
  }
  valid = SumReduce(storage.sum).Sum(valid);
  __syncthreads();
  hits = SumReduce(storage.sum).Sum(hits);
  __syncthreads();

  int32_t* entry = row_state(p, row_index).entry;
  if (threadIdx.x == 0) {
    p.stats[row_index * kStatColumns + kStatHintValid] = valid;
    p.stats[row_index * kStatColumns + kStatHintHits] = hits;
    // As everywhere, a short row has no k-th score.
    const uint32_t kth_key = window.size() <= p.k ? kKeyMinusInf : rank_key_score(least);
    write_state_header(p, row_index, entry, winners, kth_key, hint.size > 0 ? hits : -1);
  }
  if (entry == nullptr || window.size() <= 0) return;
  for (int i = threadIdx.x; i < min(p.k, p.state_hints); i += blockDim.x) {
    if (indices[i] >= 0) entry[kStateHeader + i] = indices[i];
  }
}

}  // namespace gvr::cuda
