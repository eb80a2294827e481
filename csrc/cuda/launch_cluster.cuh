// SPDX-License-Identifier: Apache-2.0
// Launch of a kernel whose rows are shared by the CTAs of a cluster.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "config.cuh"
#include "launch.h"
#include "phases/divide.cuh"

namespace gvr::cuda {

using RowKernel = void (*)(TopKParams, Plan);

// Function attributes belong to (kernel, device) and never shrink: set once to the most that any
// plan needs.
template <RowKernel kKernel>
cudaError_t prepare_kernel(bool cluster) {
  constexpr int kMaxDevices = 64;
  static std::atomic<bool> prepared[kMaxDevices] = {};
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (device < kMaxDevices && prepared[device]) return cudaSuccess;
  error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               device_info(device).shared_bytes_per_block);
  if (error != cudaSuccess) return error;
  if (cluster) {
    error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  if (device < kMaxDevices) prepared[device] = true;
  return cudaSuccess;
}

// Per cent of an SM's memory that should be shared memory: what a kernel that loads through the
// cache leaves over is room for its loads in flight. 0: the driver's choice, which has room for as
// many blocks as the registers allow. Large clusters need that: they are not placed evenly.
inline unsigned shared_carveout(const Plan& plan, const cudaLaunchConfig_t& config) {
  constexpr size_t kReserved = 1024;  // by the system, per block
  int device = 0;
  if (plan.family == Algorithm::kResident || cudaGetDevice(&device) != cudaSuccess) return 0;
  const DeviceInfo& info = device_info(device);
  const auto sm_count = static_cast<size_t>(info.sm_count);
  const size_t grid = config.gridDim.x;
  const bool even = plan.ctas_per_row <= 2 && grid <= 2 * sm_count;
  if (!even && 2 * grid > sm_count) return 0;
  const size_t blocks = grid > sm_count ? 2 : 1;
  const auto most = static_cast<size_t>(info.shared_bytes_per_block);
  const size_t bytes = blocks * (config.dynamicSmemBytes + kReserved);
  return bytes < most ? static_cast<unsigned>((100 * bytes + most - 1) / most) : 0;
}

template <RowKernel kSingle, RowKernel kCluster>
cudaError_t launch_rows(const TopKParams& params, const Plan& plan, int threads,
                        size_t shared_bytes, cudaStream_t stream) {
  const bool cluster = plan.ctas_per_row > 1;
  cudaError_t error = cluster ? prepare_kernel<kCluster>(true) : prepare_kernel<kSingle>(false);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(params.rows * plan.ctas_per_row));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = std::max(shared_bytes, sizeof(DivideScratch));  // any row may end there
  config.stream = stream;
  cudaLaunchAttribute attributes[3] = {};
  int count = 0;
  if (cluster) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(plan.ctas_per_row);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (plan.overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  const unsigned carveout = shared_carveout(plan, config);
  if (carveout != 0) {
    attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[count].val.sharedMemCarveout = carveout;
    ++count;
  }
  config.attrs = attributes;
  config.numAttrs = static_cast<unsigned>(count);
  return cudaLaunchKernelEx(&config, cluster ? kCluster : kSingle, params, plan);
}

}  // namespace gvr::cuda
