// SPDX-License-Identifier: Apache-2.0
// What the gvr and stream kernels share around their middle: set-up of a row, and its tear-down.
#pragma once

#include <cstdint>

#include "collect.cuh"
#include "divide.cuh"
#include "guess.cuh"
#include "refine.cuh"
#include "task.cuh"

namespace gvr::cuda {

// Block-wide, one barrier. False where the row needs no selection; it is then answered already.
template <ScoreType kType, class S>
__device__ __forceinline__ bool begin_row(const TopKParams& p, Scratch& scratch) {
  scratch.bins[threadIdx.x] = 0;
  if (threadIdx.x < Config::kRungs) scratch.rung_counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    scratch.count = 0;
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
// none. Block-wide on all CTAs; returns the number of overflows, or kNotCollected where the
// threshold is known to admit more than there is room for.
inline constexpr uint32_t kNotCollected = ~0u;
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
  if (admits_too_much(scratch.task, S::size(), scratch.guess.below_key, staging.capacity)) {
    return kNotCollected;
  }
  return collect_slice<kType>(scratch, staging, scratch.task.row, scratch.task.begin,
                              scratch.task.end, chunk, scratch.guess.below_key,
                              static_cast<uint32_t>(k), capacity);
}

// The row is divided instead: survivors were lost, or would be. All CTAs of the row.
template <ScoreType kType, class S>
__device__ __forceinline__ void give_up(const TopKParams& p, Path path, int passes,
                                        uint32_t overflows, int undershoots) {
  int32_t* entry = shared_scratch().task.entry;
  __syncthreads();  // read by all before the memory serves another purpose
  divide_row<kType, S, Config::kThreads>(p, entry, 0u, {path, passes, overflows, undershoots});
}

__device__ __forceinline__ LinearBins guessed_bins(const Plan& plan, const Scratch& scratch) {
  return {scratch.guess.bins_low, scratch.guess.bins_high, plan.bin_share};
}

// After the first collection: merge, and while the row has shown fewer than K survivors, collect
// again. Then select and write.
template <ScoreType kType, class S>
__device__ __forceinline__ void select_and_emit(const TopKParams& p, const Plan& plan,
                                                Scratch& scratch, Staging staging, Path path,
                                                int passes, uint32_t overflows) {
  const auto capacity = static_cast<uint32_t>(plan.rank_capacity);
  int undershoots = 0;
  for (;;) {
    const Merge merge = merge_survivors<kType, S>(scratch, staging, guessed_bins(plan, scratch),
                                                  static_cast<uint32_t>(p.k), undershoots == 0);
    if (merge == Merge::kEnough) break;
    if (merge == Merge::kFew) {
      ++undershoots;
      const uint32_t more =
          collect_again<kType, S>(p.k, staging, plan.chunk, capacity, undershoots);
      if (more != kNotCollected) {
        overflows += more;
        continue;
      }
    }
    give_up<kType, S>(p, path, passes + undershoots, max(overflows, 1u), undershoots);
    return;
  }
  if (p.stats != nullptr && overflows != 0 && threadIdx.x == 0) {
    atomicAdd(S::remote(&scratch.overflows, 0), overflows);
  }
  const int rounds =
      refine_and_emit<kType, S>(p, scratch, staging, capacity, guessed_bins(plan, scratch));
  if (S::rank() == 0) finish_row<kType>(p, scratch.task.row_index, Config::kThreads);
  if (p.stats != nullptr && S::rank() == 0 && threadIdx.x == 0) {
    put_stats(p, scratch.task.row_index, path, passes + undershoots, scratch.survivors,
              scratch.overflows, undershoots, rounds);
  }
}

}  // namespace gvr::cuda
