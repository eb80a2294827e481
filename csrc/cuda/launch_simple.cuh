// SPDX-License-Identifier: Apache-2.0
// Launches of the kernels that give one block to a row.
#pragma once

#include <cuda_runtime.h>

#include "kernels/finish.cuh"
#include "kernels/radix.cuh"
#include "launch.h"

namespace gvr::cuda {

// Dynamic shared memory of kernels whose own is static.
inline size_t difference_bytes(const TopKParams& params) {
  return params.difference.entered != nullptr ? sizeof(DifferenceScratch) : 0;
}

template <ScoreType kType>
cudaError_t launch_radix(const TopKParams& params, cudaStream_t stream) {
  radix_kernel<kType><<<static_cast<unsigned>(params.rows), Config::kRadixThreads,
                        difference_bytes(params), stream>>>(params);
  return cudaGetLastError();
}

template <ScoreType kType>
cudaError_t launch_sort(const TopKParams& params, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(params.rows);
  constexpr int kThreads = Config::kSortThreads;
  if (params.k <= kThreads) {
    sort_kernel<kType, 1><<<rows, kThreads, 0, stream>>>(params);
  } else if (params.k <= 4 * kThreads) {
    sort_kernel<kType, 4><<<rows, kThreads, 0, stream>>>(params);
  } else {
    static_assert(8 * kThreads >= kMaxFusedSort, "the widest sort must hold kMaxFusedSort");
    sort_kernel<kType, 8><<<rows, kThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

template <ScoreType kType>
cudaError_t launch_compare(const TopKParams& params, cudaStream_t stream) {
  compare_kernel<kType><<<static_cast<unsigned>(params.groups), Config::kSortThreads,
                          difference_bytes(params), stream>>>(params);
  return cudaGetLastError();
}

#define GVR_INSTANTIATE_SIMPLE(kType) \
  template cudaError_t launch_radix<kType>(const TopKParams&, cudaStream_t); \
  template cudaError_t launch_sort<kType>(const TopKParams&, cudaStream_t); \
  template cudaError_t launch_compare<kType>(const TopKParams&, cudaStream_t);

}  // namespace gvr::cuda
