// SPDX-License-Identifier: Apache-2.0
#include "../launch_simple.cuh"

namespace gvr::cuda {

GVR_INSTANTIATE_SIMPLE(ScoreType::kFloat32)

}  // namespace gvr::cuda
