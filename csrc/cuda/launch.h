// SPDX-License-Identifier: Apache-2.0
// Host side of the kernels, without torch: a plan and a stream in, launches out.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/params.h"
#include "../common/plan.h"

namespace gvr::cuda {

// Properties of the current device; read once per device and cached.
const DeviceInfo& device_info(int device);

// Enqueues everything that the call needs on `stream` of the current device: the selection, then
// rank order, telemetry and differences where asked for. Allocates nothing and never waits.
cudaError_t launch_topk(const TopKParams& params, const Plan& plan, cudaStream_t stream);

// One dtype each, in instances/, so that builds run in parallel.
template <ScoreType kType>
cudaError_t launch_stream(const TopKParams& params, const Plan& plan, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_gvr(const TopKParams& params, const Plan& plan, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_resident(const TopKParams& params, const Plan& plan, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_radix(const TopKParams& params, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_sort(const TopKParams& params, cudaStream_t stream);
template <ScoreType kType>
cudaError_t launch_compare(const TopKParams& params, cudaStream_t stream);

}  // namespace gvr::cuda
