// SPDX-License-Identifier: Apache-2.0
// The CUDA backend of the operators. The only CUDA file that knows torch.
#include "../ops/topk.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "launch.h"

namespace gvr::cuda {
namespace {

// The caller has made the scores' device current.
void launch(const TopKParams& params) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  const Shape shape{params.rows,
                    params.n,
                    params.k,
                    params.dtype,
                    params.hint != nullptr || params.state != nullptr,
                    params.algorithm};
  const Plan plan = make_plan(shape, device_info(stream.device_index()), thread_tuning());
  TORCH_CHECK_VALUE(params.rows * plan.ctas_per_row <= std::numeric_limits<int32_t>::max(),
                    "scores: got ", params.rows, " rows of ", params.n,
                    " scores, need at most 2^31 - 1 blocks in one call (", plan.ctas_per_row,
                    " per row here)");
  C10_CUDA_CHECK(launch_topk(params, plan, stream.stream()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

TORCH_LIBRARY_IMPL(gvr, CUDA, m) { register_backend(m, at::kCUDA, &launch); }

}  // namespace gvr::cuda
