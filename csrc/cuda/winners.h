// SPDX-License-Identifier: Apache-2.0
// Lists of winners that ranks exchange, on the GPU: one launch each on `stream` of the current
// device, without torch. Sizes are those that ops/check.cpp lets through.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/winners.h"

namespace gvr::cuda {

// A block has this many positions of a list: few, so that a single row spreads over many SMs.
inline constexpr int kListThreads = 128;

GVR_HOST_DEVICE uint32_t list_blocks(int32_t k) {
  return (static_cast<uint32_t>(k) + kListThreads - 1) / kListThreads;
}

// One dtype each, in instances/.
template <ScoreType kType>
cudaError_t launch_pack(const PackParams& params, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_keep(const KeepParams& params, cudaStream_t stream);

// Keys are the same for every dtype.
cudaError_t launch_digits(const DigitParams& params, cudaStream_t stream);

}  // namespace gvr::cuda
