// SPDX-License-Identifier: Apache-2.0
// The CUDA backend of the operators on lists of winners: the torch side of winners.h.
#include "../ops/winners.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "winners.h"

namespace gvr::cuda {
namespace {

// `launch` for the dtype of the parameters, on the current stream of the current device.
template <class Params, class Launch>
void launch_typed(const Params& params, Launch&& launch) {
  const int64_t most = std::numeric_limits<int32_t>::max() / list_blocks(params.k);
  TORCH_CHECK_VALUE(params.rows <= most, "rows: got ", params.rows, ", need at most ", most,
                    " for k = ", params.k, " in one call");
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  switch (params.dtype) {
    case ScoreType::kFloat32:
      C10_CUDA_CHECK(launch.template operator()<ScoreType::kFloat32>(params, stream));
      return;
    case ScoreType::kBFloat16:
      C10_CUDA_CHECK(launch.template operator()<ScoreType::kBFloat16>(params, stream));
      return;
    case ScoreType::kFloat16:
      C10_CUDA_CHECK(launch.template operator()<ScoreType::kFloat16>(params, stream));
      return;
  }
}

void pack(const PackParams& params) {
  launch_typed(params, []<ScoreType kType>(const PackParams& p, cudaStream_t stream) {
    return launch_pack<kType>(p, stream);
  });
}

void merge(const MergeParams& params) {
  launch_typed(params, []<ScoreType kType>(const MergeParams& p, cudaStream_t stream) {
    return launch_merge<kType>(p, stream);
  });
}

void keep(const KeepParams& params) {
  launch_typed(params, []<ScoreType kType>(const KeepParams& p, cudaStream_t stream) {
    return launch_keep<kType>(p, stream);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(gvr, CUDA, m) {
  register_winners(m, at::kCUDA, {.pack = &pack, .merge = &merge, .keep = &keep});
}

}  // namespace gvr::cuda
