// SPDX-License-Identifier: Apache-2.0
#include "../kernels/stream.cuh"
#include "../launch_cluster.cuh"

namespace gvr::cuda {

template <>
cudaError_t launch_stream<ScoreType::kFloat16>(const TopKParams& params, const Plan& plan,
                                               cudaStream_t stream) {
  return launch_rows<stream_kernel<ScoreType::kFloat16, false>,
                     stream_kernel<ScoreType::kFloat16, true>>(
      params, plan, Config::kThreads,
      shared_bytes(plan.staging, Config::kThreads, plan.ctas_per_row > 1), stream);
}

}  // namespace gvr::cuda
