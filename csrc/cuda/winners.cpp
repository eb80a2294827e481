// SPDX-License-Identifier: Apache-2.0
// The CUDA backend of the operators on lists of winners: the torch side of winners.h.
#include "../ops/winners.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "winners.h"

namespace gvr::cuda {
namespace {

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void check_grid(int64_t rows, int32_t width) {
  const int64_t most = std::numeric_limits<int32_t>::max() / list_blocks(width);
  TORCH_CHECK_VALUE(rows <= most, "rows: got ", rows, ", need at most ", most, " rows of ", width,
                    " entries in one call");
}

// `launch` for the dtype of the parameters, on the current stream of the current device.
template <class Params, class Launch>
void launch_typed(const Params& params, Launch&& launch) {
  check_grid(params.rows, params.k);
  const cudaStream_t stream = current_stream();
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

void digits(const DigitParams& params) {
  check_grid(params.rows, std::max(params.edges, 1));
  C10_CUDA_CHECK(launch_digits(params, current_stream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(gvr, CUDA, m) {
  register_winners(m, at::kCUDA,
                   {.pack = &pack, .merge = &merge, .keep = &keep, .digits = &digits});
}

}  // namespace gvr::cuda
