// SPDX-License-Identifier: Apache-2.0
// Launch of the resident kernels: one instance for every block size.
#pragma once

#include <algorithm>

#include "kernels/resident.cuh"
#include "launch_cluster.cuh"

namespace gvr::cuda {

template <ScoreType kType, int kThreads, bool kMore>
cudaError_t launch_resident_block(const TopKParams& params, const Plan& plan, cudaStream_t stream) {
  Plan own = plan;
  own.own_lists = plan.own_lists && params.values != nullptr;  // nobody else reads scores again
  const size_t bytes =
      plan.ctas_per_row > 1
          ? ResidentLayout<ResidentConfig<kType, true, kThreads, kMore>>::bytes(own)
          : ResidentLayout<ResidentConfig<kType, false, kThreads, kMore>>::bytes(own);
  return launch_rows<resident_kernel<kType, false, kThreads, kMore>,
                     resident_kernel<kType, true, kThreads, kMore>>(params, own, kThreads, bytes,
                                                                    stream);
}

template <ScoreType kType, int kThreads>
cudaError_t launch_resident_outputs(const TopKParams& params, const Plan& plan,
                                    cudaStream_t stream) {
  const bool more = params.values != nullptr || params.state != nullptr ||
                    params.stats != nullptr || params.kv.out != nullptr;
  return more ? launch_resident_block<kType, kThreads, true>(params, plan, stream)
              : launch_resident_block<kType, kThreads, false>(params, plan, stream);
}

#define GVR_INSTANTIATE_RESIDENT(kType) \
  template <> \
  cudaError_t launch_resident<kType>(const TopKParams& params, const Plan& plan, \
                                     cudaStream_t stream) { \
    switch (plan.threads) { \
      case kTinyBlock: return launch_resident_outputs<kType, kTinyBlock>(params, plan, stream); \
      case kSmallBlock: return launch_resident_outputs<kType, kSmallBlock>(params, plan, stream); \
      default: return launch_resident_outputs<kType, kLargeBlock>(params, plan, stream); \
    } \
  }

}  // namespace gvr::cuda
