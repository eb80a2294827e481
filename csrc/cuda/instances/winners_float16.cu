// SPDX-License-Identifier: Apache-2.0
#include "../launch_winners.cuh"

namespace gvr::cuda {

GVR_INSTANTIATE_WINNERS(ScoreType::kFloat16)

}  // namespace gvr::cuda
