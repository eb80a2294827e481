// SPDX-License-Identifier: Apache-2.0
// Launches of the kernels for lists that ranks exchange: a thread per position.
#pragma once

#include <cuda_runtime.h>

#include "kernels/winners.cuh"

namespace gvr::cuda {

inline dim3 list_grid(int64_t rows, int32_t k, int32_t lists) {
  return {static_cast<unsigned>(rows) * list_blocks(k), static_cast<unsigned>(lists)};
}

template <ScoreType kType>
cudaError_t launch_pack(const PackParams& params, cudaStream_t stream) {
  pack_kernel<kType><<<list_grid(params.rows, params.k, 1), kListThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

template <ScoreType kType>
cudaError_t launch_keep(const KeepParams& params, cudaStream_t stream) {
  keep_kernel<kType><<<list_grid(params.rows, params.k, 1), kListThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

// Lists are searched together for their loads to overlap; the only other list of two, alone.
inline constexpr int kListsTogether = 4;

template <ScoreType kType, bool kOwn>
cudaError_t launch_merge_of(const MergeParams& params, cudaStream_t stream) {
  const dim3 grid = list_grid(params.rows, params.k, kOwn ? 1 : params.world);
  if (params.world <= 2) {
    merge_kernel<kType, 1, kOwn><<<grid, kListThreads, 0, stream>>>(params);
  } else {
    merge_kernel<kType, kListsTogether, kOwn><<<grid, kListThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

template <ScoreType kType>
cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream) {
  return params.own_values != nullptr ? launch_merge_of<kType, true>(params, stream)
                                      : launch_merge_of<kType, false>(params, stream);
}

#define GVR_INSTANTIATE_WINNERS(kType) \
  template cudaError_t launch_pack<kType>(const PackParams&, cudaStream_t); \
  template cudaError_t launch_merge<kType>(const MergeParams&, cudaStream_t); \
  template cudaError_t launch_keep<kType>(const KeepParams&, cudaStream_t);

}  // namespace gvr::cuda
