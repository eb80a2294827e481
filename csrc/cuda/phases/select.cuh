// SPDX-License-Identifier: Apache-2.0
// What the gvr and stream kernels share around their middle: set-up of a row, and its tear-down.
#pragma once

#include <cstdint>

#include "collect.cuh"
#include "guess.cuh"
#include "refine.cuh"

namespace gvr::cuda {

inline __device__ __noinline__ RowWindow window_from_data(const TopKParams& p, int64_t row) {
  return row_window(p, row);
}

// The usual call has one window for all rows, which takes no data and little code.
__device__ __forceinline__ RowWindow find_window(const TopKParams& p, int64_t row) {
  const bool whole = p.lengths == nullptr && p.starts == nullptr && p.row_to_request == nullptr;
  return whole ? RowWindow{0, p.n} : window_from_data(p, row);
}

// The row of this CTA, and its slice in whole 64-byte steps so that vector loads stay aligned.
template <ScoreType kType, class S>
__device__ __forceinline__ RowTask make_task(const TopKParams& p) {
  const auto parts = static_cast<uint32_t>(S::size());
  const int shift = 31 - __clz(parts);  // clusters are powers of two
  RowTask task;
  task.row_index = S::row();
  task.row = static_cast<const typename Element<kType>::Storage*>(p.scores) +
             task.row_index * p.score_stride;
  task.window = find_window(p, task.row_index);
  const auto n = static_cast<uint32_t>(task.window.size());
  const uint32_t step = (((n + parts - 1) >> shift) + 63u) & ~63u;
  const auto begin = static_cast<uint32_t>(min(uint64_t{n}, uint64_t{step} * S::rank()));
  task.begin = task.window.begin + static_cast<int>(begin);
  task.end = task.begin + static_cast<int>(min(step, n - begin));
  return task;
}

// Block-wide, one barrier. False where the row needs no selection; it is then answered already.
template <ScoreType kType, class S>
__device__ __forceinline__ bool begin_row(const TopKParams& p, Scratch& scratch) {
  if (threadIdx.x < Config::kBins) scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x < Config::kRungs) scratch.rung_counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.count = 0;
    scratch.ranked = 0;
    scratch.overflows = 0;
    scratch.verified[0] = scratch.verified[1] = scratch.verified[2] = 0;
    scratch.task = make_task<kType, S>(p);
  }
  int32_t* entry = begin_entry(p, S::row(), Config::kThreads);
  if (scratch.task.window.size() > p.k) {
    if (threadIdx.x == 0) scratch.task.entry = entry;  // read behind the barriers of the selection
    return true;
  }
  emit_short_row<kType>(p, scratch.task.row_index, scratch.task.row, scratch.task.window, S::rank(),
                        S::size(), entry);
  return false;
}

// Rows shared by so many CTAs that a survivor per thread is the most to expect take the quick
// guess.
template <class S>
__device__ __forceinline__ GuessMode guess_mode(const TopKParams& p) {
  const auto threads = Config::kThreads * S::size();
  return S::kIsCluster && threads >= p.k ? GuessMode::kQuick : GuessMode::kCounted;
}

// One guess for all CTAs of the row: the leader's. Hinted positions may come from a state entry
// that another row (a draft of the same request) is rewriting, so two CTAs need not have read the
// same; their thresholds and bins must agree all the same. Block-wide on all CTAs.
template <class S>
__device__ __forceinline__ void share_guess(Scratch& scratch) {
  S::sync();
  if constexpr (S::kIsCluster) {
    if (threadIdx.x == 0 && S::rank() != 0) scratch.guess = *S::remote(&scratch.guess, 0);
    __syncthreads();
  }
}

// Fewer than K survivors: read the row again under a lower threshold, from the second time on under
// none. Block-wide on all CTAs; returns the number of overflows.
template <ScoreType kType, class S>
__device__ __noinline__ uint32_t collect_again(int k, Staging staging, int chunk, uint32_t capacity,
                                               int attempt) {
  Scratch& scratch = shared_scratch();
  restart<S>();
  if (threadIdx.x == 0) {
    const uint32_t lower =
        attempt == 1 ? choose_threshold(scratch, 4.0f * scratch.guess.needed) : 0u;
    const uint32_t below_key = lower < scratch.guess.below_key ? lower : 0u;
    scratch.guess.below_key = below_key;
    if (below_key != 0u) scratch.guess.bins_low = key_to_float(below_key);
  }
  share_guess<S>(scratch);
  return collect_slice<kType>(scratch, staging, scratch.task.row, scratch.task.begin,
                              scratch.task.end, chunk, scratch.guess.below_key,
                              static_cast<uint32_t>(k), capacity);
}

// After the first collection: merge, and while the row has shown fewer than K survivors, collect
// again. Then select and write.
template <ScoreType kType, class S>
__device__ __forceinline__ void select_and_emit(const TopKParams& p, const Plan& plan,
                                                Scratch& scratch, Staging staging, Path path,
                                                int passes, uint32_t overflows) {
  const auto capacity = static_cast<uint32_t>(plan.rank_capacity);
  int undershoots = 0;
  while (!merge_survivors<kType, S>(scratch, staging,
                                    LinearBins(scratch.guess.bins_low, scratch.guess.bins_high),
                                    static_cast<uint32_t>(p.k), undershoots == 0)) {
    ++undershoots;
    overflows += collect_again<kType, S>(p.k, staging, plan.chunk, capacity, undershoots);
  }
  if (p.stats != nullptr && overflows != 0 && threadIdx.x == 0) {
    atomicAdd(S::remote(&scratch.overflows, 0), overflows);
  }
  const int rounds = refine_and_emit<kType, S>(
      p, scratch, staging, capacity, LinearBins(scratch.guess.bins_low, scratch.guess.bins_high));
  if (S::rank() == 0) finish_row(p, scratch.task.row_index, Config::kThreads);
  if (p.stats != nullptr && S::rank() == 0 && threadIdx.x == 0) {
    put_stats(p, scratch.task.row_index, path, passes + undershoots, scratch.survivors,
              scratch.overflows, undershoots, rounds);
  }
}

}  // namespace gvr::cuda
