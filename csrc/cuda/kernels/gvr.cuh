// SPDX-License-Identifier: Apache-2.0
// Guess-Verify-Refine after arXiv 2604.22312, made exact for every input: statistics of the hinted
// scores give a threshold, whole-row counts verify and correct it, cached counts place the
// survivors, an exact selection in shared memory finishes. Where the counts do not settle within
// the allowed passes, the row is collected as by the stream kernel, from the best bound found.
#pragma once

#include "../phases/select.cuh"
#include "../phases/verify.cuh"

namespace gvr::cuda {

// Average over the warps of the hinted scores' quantile that lands in [K, 3K] for the usual
// overlaps (0.6 and more); the mean of the hint would admit too few when the hint is good.
inline constexpr float kHintQuantile = 0.81f;

// Block-wide, two barriers; scratch.guess as from guess_threshold. False when no hinted position is
// usable.
template <ScoreType kType>
__device__ __forceinline__ bool guess_from_hint(const TopKParams& p, Scratch& scratch,
                                                HintRow hint) {
  const float value = hinted_score<kType>(p, scratch.task.row, scratch.task.window, hint);
  const uint32_t valid = __popc(__ballot_sync(~0u, value > -kRungLimit));
  const float sorted = warp_sort_descending(value);
  // Unusable positions sort to the end: the quantile is taken of the usable ones.
  const float rank = kHintQuantile * static_cast<float>(valid) - 0.5f;
  const float mine = lane_quantile(sorted, fminf(rank, static_cast<float>(valid) - 1.0f));
  if (lane_id() == 0) {
    scratch.rungs[warp_id()][0] = valid == 0 ? 0.0f : mine;
    scratch.rungs[warp_id()][1] = static_cast<float>(valid);
    scratch.greatest[warp_id()] = sorted;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f, weight = 0.0f, most = -kRungLimit;
    for (int w = 0; w < Config::kWarps; ++w) {
      sum += scratch.rungs[w][0] * scratch.rungs[w][1];
      weight += scratch.rungs[w][1];
      most = fmaxf(most, scratch.greatest[w]);
    }
    const float quantile = sum / fmaxf(weight, 1.0f);
    scratch.guess = {ordered_key(float_bits(quantile)), quantile, most, 0.0f};
    scratch.ranked = weight > 0.0f ? 1u : 0u;
  }
  __syncthreads();
  return scratch.ranked != 0;
}

template <ScoreType kType, bool kCluster>
__global__ void __launch_bounds__(Config::kThreads, Config::kCtasPerSm)
    gvr_kernel(const __grid_constant__ TopKParams p, const __grid_constant__ Plan plan) {
  using S = Scope<kCluster>;
  Scratch& scratch = shared_scratch();
  const Staging staging{static_cast<uint32_t>(plan.staging)};
  wait_for_predecessor();
  if (!begin_row<kType, S>(p, scratch)) return;

  HintRow hint{nullptr, 0};
  if (plan.use_hint) hint = row_hint(p, scratch.task.row_index);
  // Another row may be writing the state entry that the hint comes from: its size need not be the
  // same to all threads, but this verdict is.
  if (!plan.use_hint || !guess_from_hint<kType>(p, scratch, hint)) {
    guess_threshold<kType>(p, scratch, HintRow{nullptr, 0}, false, GuessMode::kCounted);
  }
  share_guess<S>(scratch);

  const auto k = static_cast<uint32_t>(p.k);
  const Verdict verdict = verify_threshold<kType, S>(
      scratch, plan.force_undershoot ? kKeyPlusInf : scratch.guess.below_key,
      scratch.guess.bins_high, k, staging.capacity, plan.max_verify);
  uint32_t overflows = 0;
  uint32_t below_key = verdict.below_key;
  if (verdict.accepted) {
    collect_counted<kType>(scratch, staging, verdict);
  } else {
    below_key = verdict.enough_key;
    overflows = collect_slice<kType>(scratch, staging, scratch.task.row, scratch.task.begin,
                                     scratch.task.end, plan.chunk, below_key, k,
                                     static_cast<uint32_t>(plan.rank_capacity));
  }
  if (threadIdx.x == 0) {
    scratch.guess.below_key = below_key;
    if (below_key != 0u) scratch.guess.bins_low = key_to_float(below_key);
  }
  __syncthreads();
  S::announce();
  select_and_emit<kType, S>(p, plan, scratch, staging, Path::kGvr, verdict.passes + 1, overflows);
}

}  // namespace gvr::cuda
