// SPDX-License-Identifier: Apache-2.0
// C entry point of the floor kernel. No torch header: it builds in seconds and is called by ctypes.
#include "floor.cuh"

namespace gvr::bench {
namespace {

struct FloorLaunch {
  FloorParams params;
  unsigned grid;
  bool dependent;
  cudaStream_t stream;
};

template <typename T, int kThreads, int kUnroll, bool kDependent>
cudaError_t launch(const FloorLaunch& call) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(call.grid);
  config.blockDim = dim3(kThreads);
  config.stream = call.stream;
  config.attrs = &overlap;
  config.numAttrs = kDependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, &floor_kernel<T, kThreads, kUnroll, kDependent>, call.params);
}

template <typename T, int kThreads, int kUnroll>
cudaError_t launch_overlap(const FloorLaunch& call) {
  return call.dependent ? launch<T, kThreads, kUnroll, true>(call)
                        : launch<T, kThreads, kUnroll, false>(call);
}

template <typename T>
cudaError_t launch_shape(const FloorLaunch& call, int threads, int unroll) {
  if (threads == 256 && unroll == 4) return launch_overlap<T, 256, 4>(call);
  if (threads == 512 && unroll == 2) return launch_overlap<T, 512, 2>(call);
  if (threads == 512 && unroll == 4) return launch_overlap<T, 512, 4>(call);
  if (threads == 512 && unroll == 8) return launch_overlap<T, 512, 8>(call);
  if (threads == 1024 && unroll == 4) return launch_overlap<T, 1024, 4>(call);
  if (threads == 1024 && unroll == 8) return launch_overlap<T, 1024, 8>(call);
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace gvr::bench

// dtype: 0 binary32, 1 bfloat16, 2 binary16. scores: dense rows whose size and start are multiples
// of 16 bytes. Gives a cudaError_t.
extern "C" int gvr_bench_floor(const void* scores, int dtype, int64_t rows, int64_t n, int32_t k,
                               int32_t* indices, int32_t parts, int threads, int unroll,
                               int dependent, void* stream) {
  using namespace gvr::bench;
  const int64_t row_bytes = n * (dtype == 0 ? 4 : 2);
  const bool aligned = reinterpret_cast<uintptr_t>(scores) % 16 == 0 && row_bytes % 16 == 0;
  if (!aligned || rows < 1 || n < 1 || parts < 1 || parts > kMaxParts || rows > INT32_MAX / parts) {
    return cudaErrorInvalidValue;
  }
  const FloorLaunch call{{static_cast<const uint4*>(scores), row_bytes / 16, indices, k, parts},
                         static_cast<unsigned>(rows * parts),
                         dependent != 0,
                         static_cast<cudaStream_t>(stream)};
  switch (dtype) {
    case 0: return launch_shape<float>(call, threads, unroll);
    case 1: return launch_shape<__nv_bfloat16>(call, threads, unroll);
    case 2: return launch_shape<__half>(call, threads, unroll);
    default: return cudaErrorInvalidValue;
  }
}
