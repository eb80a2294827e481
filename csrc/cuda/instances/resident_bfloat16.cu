// SPDX-License-Identifier: Apache-2.0
#include "../launch_resident.cuh"

namespace gvr::cuda {

GVR_INSTANTIATE_RESIDENT(ScoreType::kBFloat16)

}  // namespace gvr::cuda
