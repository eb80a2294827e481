// SPDX-License-Identifier: Apache-2.0
// Launch of the resident kernels: one instance for every block size.
#pragma once

#include <algorithm>

#include "kernels/resident.cuh"
#include "launch_cluster.cuh"

namespace gvr::cuda {

template <ScoreType kType, int kThreads>
cudaError_t launch_resident_block(const TopKParams& params, const Plan& plan, cudaStream_t stream) {
  const bool cluster = plan.ctas_per_row > 1;
  constexpr int kScoresPerRound = kThreads * Element<kType>::kPerVector;
  const size_t rounds = (plan.slice + kScoresPerRound - 1) / kScoresPerRound;
  const size_t slice_bytes = size_t{16} * kThreads * rounds;
  const size_t bytes = resident_slice_offset<kThreads>(cluster) + slice_bytes;
  const bool more = params.values != nullptr || params.state != nullptr ||
                    params.stats != nullptr || params.kv.out != nullptr;
  return more ? launch_rows<resident_kernel<kType, false, kThreads, true>,
                            resident_kernel<kType, true, kThreads, true>>(params, plan, kThreads,
                                                                          bytes, stream)
              : launch_rows<resident_kernel<kType, false, kThreads, false>,
                            resident_kernel<kType, true, kThreads, false>>(params, plan, kThreads,
                                                                           bytes, stream);
}

#define GVR_INSTANTIATE_RESIDENT(kType) \
  template <> \
  cudaError_t launch_resident<kType>(const TopKParams& params, const Plan& plan, \
                                     cudaStream_t stream) { \
    switch (plan.threads) { \
      case kTinyBlock: return launch_resident_block<kType, kTinyBlock>(params, plan, stream); \
      case kSmallBlock: return launch_resident_block<kType, kSmallBlock>(params, plan, stream); \
      default: return launch_resident_block<kType, kLargeBlock>(params, plan, stream); \
    } \
  }

}  // namespace gvr::cuda
