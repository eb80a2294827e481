// SPDX-License-Identifier: Apache-2.0
// Launch of the resident kernels: one instance for every block size and length of slice.
#pragma once

#include <algorithm>

#include "kernels/resident.cuh"
#include "launch_cluster.cuh"

namespace gvr::cuda {

template <ScoreType kType, int kThreads, int kVectors>
cudaError_t launch_resident_shape(const TopKParams& params, const Plan& plan, cudaStream_t stream) {
  const bool cluster = plan.ctas_per_row > 1;
  // A row that falls back needs the stream phases' layout.
  const size_t bytes = std::max(resident_shared_bytes<kThreads>(cluster),
                                shared_bytes(plan.staging, Config::kThreads, cluster));
  return launch_rows<resident_kernel<kType, false, kThreads, kVectors>,
                     resident_kernel<kType, true, kThreads, kVectors>>(params, plan, kThreads, bytes,
                                                                       stream);
}

#define GVR_INSTANTIATE_RESIDENT(kType) \
  template <> \
  cudaError_t launch_resident<kType>(const TopKParams& params, const Plan& plan, \
                                     cudaStream_t stream) { \
    const int shape = plan.threads * 16 + plan.vectors; \
    switch (shape) { \
      case 1024 * 16 + 1: return launch_resident_shape<kType, 1024, 1>(params, plan, stream); \
      case 1024 * 16 + 2: return launch_resident_shape<kType, 1024, 2>(params, plan, stream); \
      case 1024 * 16 + 4: return launch_resident_shape<kType, 1024, 4>(params, plan, stream); \
      case 512 * 16 + 2: return launch_resident_shape<kType, 512, 2>(params, plan, stream); \
      case 512 * 16 + 4: return launch_resident_shape<kType, 512, 4>(params, plan, stream); \
      case 256 * 16 + 4: return launch_resident_shape<kType, 256, 4>(params, plan, stream); \
    } \
    return cudaErrorInvalidValue; \
  }

}  // namespace gvr::cuda
