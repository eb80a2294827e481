// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "../launch_winners.cuh"

namespace gvr::cuda {

cudaError_t launch_digits(const DigitParams& params, cudaStream_t stream) {
  digits_kernel<kListThreads>
      <<<list_grid(params.rows, std::max(params.edges, 1), 1), kListThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace gvr::cuda
