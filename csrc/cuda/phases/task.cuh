// SPDX-License-Identifier: Apache-2.0
// What one CTA works on.
#pragma once

#include <cstdint>

#include "../../common/rows.h"
#include "scope.cuh"
#include "slice.cuh"

namespace gvr::cuda {

inline __device__ __noinline__ RowWindow window_from_data(const TopKParams& p, int64_t row) {
  return row_window(p, row);
}

// row_window of the usual calls in little code: all rows whole, or one length each.
__device__ __forceinline__ RowWindow find_window(const TopKParams& p, int64_t row) {
  if (p.starts == nullptr && p.row_to_request == nullptr) {
    if (p.lengths == nullptr) return {0, p.n};
    if (p.next_n == 1 && p.compress_ratio == 1) {
      const int64_t length = load_count(p.lengths, p.lengths_int64, row);
      return {0, static_cast<int32_t>(min(max(length, int64_t{0}), int64_t{p.n}))};
    }
  }
  return window_from_data(p, row);
}

// The row of this CTA, and its slice in steps of 64 scores, so that vector loads stay aligned.
template <ScoreType kType, class S>
__device__ __forceinline__ RowTask make_task(const TopKParams& p) {
  RowTask task;
  task.row_index = S::row();
  task.row = static_cast<const typename Element<kType>::Storage*>(p.scores) +
             task.row_index * p.score_stride;
  task.window = find_window(p, task.row_index);
  if constexpr (!S::kIsCluster) {
    task.begin = task.window.begin;
    task.end = task.window.end;
    return task;
  }
  const auto n = static_cast<uint32_t>(task.window.size());
  const auto parts = static_cast<uint32_t>(S::size());
  const int shift = 31 - __clz(parts);  // clusters are powers of two
  const uint32_t step = (((n + parts - 1) >> shift) + 63u) & ~63u;
  const auto begin = static_cast<uint32_t>(min(uint64_t{n}, uint64_t{step} * S::rank()));
  task.begin = task.window.begin + static_cast<int>(begin);
  task.end = task.begin + static_cast<int>(min(step, n - begin));
  return task;
}

}  // namespace gvr::cuda
