// SPDX-License-Identifier: Apache-2.0
// Read-once GVR: a guessed threshold that only rises, one pass over the row, exact selection.
#pragma once

#include "../phases/select.cuh"

namespace gvr::cuda {

// One row, by all CTAs that share it and Config::kThreads threads of each. `passes` counts the
// first reading of the row and those that the caller made in vain.
template <ScoreType kType, class S>
__device__ __forceinline__ void stream_row(const TopKParams& p, const Plan& plan, Path path,
                                           int passes) {
  Scratch& scratch = shared_scratch();
  const Staging staging{static_cast<uint32_t>(plan.staging)};
  if (!begin_row<kType, S>(p, scratch)) return;
  // The slice's first tile is on its way while the threshold is being guessed.
  load_ahead<kType>(scratch.task.row, scratch.task.begin,
                    scratch.task.begin + min(plan.chunk, scratch.task.end - scratch.task.begin),
                    staging.capacity);
  HintRow hint{nullptr, 0};
  if (plan.use_hint) hint = row_hint(p, scratch.task.row_index);
  uint32_t below_key = guess_threshold<kType>(p, scratch, hint, plan.use_hint, guess_mode<S>(p));
  if (S::kIsCluster && plan.use_hint) {
    share_guess<S>(scratch);
    below_key = scratch.guess.below_key;
  }
  if (plan.force_undershoot) below_key = kKeyPlusInf;
  S::announce();  // completed before the first store into another CTA
  if (admits_too_much(scratch.task, S::size(), below_key, staging.capacity)) {
    S::wait();
    give_up<kType, S>(p, path, passes - 1, 1, 0);
    return;
  }
  const uint32_t overflows = collect_slice<kType>(
      scratch, staging, scratch.task.row, scratch.task.begin, scratch.task.end, plan.chunk,
      below_key, static_cast<uint32_t>(p.k), static_cast<uint32_t>(plan.rank_capacity),
      /*ahead=*/true);
  select_and_emit<kType, S>(p, plan, scratch, staging, path, passes, overflows);
}

// Grid: rows * ctas_per_row blocks; the blocks of a row form a cluster when there are several.
template <ScoreType kType, bool kCluster>
__global__ void __launch_bounds__(Config::kThreads, Config::kCtasPerSm)
    stream_kernel(const __grid_constant__ TopKParams p, const __grid_constant__ Plan plan) {
  wait_for_predecessor();
  stream_row<kType, Scope<kCluster>>(p, plan, Path::kStream, 1);
}

}  // namespace gvr::cuda
