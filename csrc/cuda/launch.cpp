// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include <algorithm>
#include <array>
#include <mutex>

namespace gvr::cuda {
namespace {

template <ScoreType kType>
cudaError_t launch_typed(const TopKParams& params, const Plan& plan, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  TopKParams selection = params;
  if (params.sorted) selection.kv.out = nullptr;  // the sort places the keys in their final order
  const bool differs = params.difference.entered != nullptr;
  const bool compares = params.stats != nullptr || (differs && params.sorted);
  if (compares) selection.difference.entered = nullptr;  // likewise
  switch (plan.family) {
    case Algorithm::kGvr: error = launch_gvr<kType>(selection, plan, stream); break;
    case Algorithm::kResident: error = launch_resident<kType>(selection, plan, stream); break;
    case Algorithm::kRadix: error = launch_radix<kType>(selection, stream); break;
    default: error = launch_stream<kType>(selection, plan, stream); break;
  }
  if (error == cudaSuccess && params.sorted) error = launch_sort<kType>(params, stream);
  if (error == cudaSuccess && compares) error = launch_compare<kType>(params, stream);
  return error;
}

DeviceInfo read_device(int device) {
  int value = 0, major = 0, minor = 0;
  DeviceInfo info{};
  cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
  info.sm_count = value;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  info.capability = 10 * major + minor;
  cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  info.shared_bytes_per_block = value;
  // Every cluster device runs 8 blocks per cluster; 16, where the chip is known to place them.
  const bool data_center =
      info.capability == 90 || info.capability == 100 || info.capability == 103;
  info.max_cluster = info.capability < 90 ? 1 : data_center ? 16 : 8;
  return info;
}

}  // namespace

const DeviceInfo& device_info(int device) {
  constexpr int kMaxDevices = 64;
  static std::array<DeviceInfo, kMaxDevices> infos;
  static std::array<std::once_flag, kMaxDevices> once;
  const int slot = std::clamp(device, 0, kMaxDevices - 1);
  std::call_once(once[slot], [&] { infos[slot] = read_device(slot); });
  return infos[slot];
}

cudaError_t launch_topk(const TopKParams& params, const Plan& plan, cudaStream_t stream) {
  switch (params.dtype) {
    case ScoreType::kFloat32: return launch_typed<ScoreType::kFloat32>(params, plan, stream);
    case ScoreType::kBFloat16: return launch_typed<ScoreType::kBFloat16>(params, plan, stream);
    case ScoreType::kFloat16: return launch_typed<ScoreType::kFloat16>(params, plan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gvr::cuda
