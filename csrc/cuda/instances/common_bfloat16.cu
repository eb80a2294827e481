// SPDX-License-Identifier: Apache-2.0
#include "../launch_simple.cuh"

namespace gvr::cuda {

GVR_INSTANTIATE_SIMPLE(ScoreType::kBFloat16)

}  // namespace gvr::cuda
