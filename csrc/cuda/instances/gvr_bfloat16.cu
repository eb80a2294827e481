// SPDX-License-Identifier: Apache-2.0
#include "../kernels/gvr.cuh"
#include "../launch_cluster.cuh"

namespace gvr::cuda {

template <>
cudaError_t launch_gvr<ScoreType::kBFloat16>(const TopKParams& params, const Plan& plan,
                                             cudaStream_t stream) {
  return launch_rows<gvr_kernel<ScoreType::kBFloat16, false>,
                     gvr_kernel<ScoreType::kBFloat16, true>>(
      params, plan, Config::kThreads,
      shared_bytes(plan.staging, Config::kThreads, plan.ctas_per_row > 1), stream);
}

}  // namespace gvr::cuda
