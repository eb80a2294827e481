// SPDX-License-Identifier: Apache-2.0
// The floor under every exact Top-K: each score is loaded once, a maximum is taken, and K integers
// are written per row. The parts of one row do not talk to each other, so that nothing but the
// launch, the loads and the stores is in the time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace gvr::bench {

inline constexpr int kMaxParts = 16;  // CTAs, hence SMs, that one row may use
inline constexpr int kWarp = 32;

struct FloorParams {
  const uint4* scores;  // rows of row_vectors 16-byte vectors, one after the other
  int64_t row_vectors;
  int32_t* indices;  // [rows, k]
  int32_t k;
  int32_t parts;  // CTAs per row
};

template <typename T>
struct VectorMax;

template <>
struct VectorMax<float> {
  using Lane = float;
  static __device__ Lane lowest() { return -__int_as_float(0x7f800000); }
  static __device__ Lane take(Lane best, uint4 v) {
    const float low = fmaxf(__uint_as_float(v.x), __uint_as_float(v.y));
    const float high = fmaxf(__uint_as_float(v.z), __uint_as_float(v.w));
    return fmaxf(best, fmaxf(low, high));
  }
  static __device__ float widen(Lane best) { return best; }
};

template <typename Pair>
struct PairMax {
  using Lane = Pair;
  static __device__ Pair pair(uint32_t word) { return *reinterpret_cast<const Pair*>(&word); }
  static __device__ Lane take(Lane best, uint4 v) {
    const Pair low = __hmax2(pair(v.x), pair(v.y));
    const Pair high = __hmax2(pair(v.z), pair(v.w));
    return __hmax2(best, __hmax2(low, high));
  }
};

template <>
struct VectorMax<__half> : PairMax<__half2> {
  static __device__ Lane lowest() { return pair(0xfc00fc00u); }
  static __device__ float widen(Lane best) { return fmaxf(__low2float(best), __high2float(best)); }
};

template <>
struct VectorMax<__nv_bfloat16> : PairMax<__nv_bfloat162> {
  static __device__ Lane lowest() { return pair(0xff80ff80u); }
  static __device__ float widen(Lane best) { return fmaxf(__low2float(best), __high2float(best)); }
};

// Unsigned integers in the order of the floats, so that one redux instruction reduces a warp.
__device__ inline uint32_t ordered_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

template <int kThreads>
__device__ uint32_t block_max(uint32_t value) {
  __shared__ uint32_t warps[kThreads / kWarp];
  value = __reduce_max_sync(0xffffffffu, value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  return __reduce_max_sync(0xffffffffu, lane < kThreads / kWarp ? warps[lane] : 0u);
}

// kDependent: launched with programmatic stream serialization, so that its start overlaps the end
// of the kernel before it; the scores are touched only after that kernel's writes are visible.
template <typename T, int kThreads, int kUnroll, bool kDependent>
__global__ __launch_bounds__(kThreads, 1) void floor_kernel(FloorParams p) {
  using Max = VectorMax<T>;
  const int64_t row = blockIdx.x / p.parts;
  const int part = blockIdx.x % p.parts;
  const int64_t begin = p.row_vectors * part / p.parts;
  const int64_t end = p.row_vectors * (part + 1) / p.parts;
  const uint4* scores = p.scores + row * p.row_vectors;
#if __CUDA_ARCH__ >= 900
  if constexpr (kDependent) {
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
  }
#endif
  typename Max::Lane best = Max::lowest();
#pragma unroll 1
  for (int64_t base = begin + threadIdx.x; base < end; base += kUnroll * kThreads) {
    uint4 loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      // Past the end the last vector is read again: it leaves the maximum as it is, and loads
      // without a branch stay in flight together.
      loaded[u] = __ldg(scores + min(base + u * kThreads, end - 1));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) best = Max::take(best, loaded[u]);
  }
  const uint32_t key = block_max<kThreads>(ordered_bits(Max::widen(best)));
  const int last = static_cast<int>(int64_t{p.k} * (part + 1) / p.parts);
  int32_t* out = p.indices + row * p.k;
  for (int i = static_cast<int>(int64_t{p.k} * part / p.parts) + threadIdx.x; i < last;
       i += kThreads) {
    out[i] = static_cast<int32_t>(key ^ static_cast<uint32_t>(i));
  }
}

}  // namespace gvr::bench
