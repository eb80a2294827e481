// SPDX-License-Identifier: Apache-2.0
// The part of CUDA C++ that the kernels use, on the emulator. Included before anything else (the
// compiler's -include), so that kernel headers compile as plain C++.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __shared__ thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulator {

inline constexpr size_t kSharedBytes = 227 * 1024;

struct Dim3 {
  unsigned x = 0, y = 0;
};

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T, class Combine>
T reduce(T value, Combine combine) {
  const uint64_t* all = exchange(Operation::kReduce, pack(value));
  T result = unpack<T>(all[0]);
  for (int lane = 1; lane < 32; ++lane) result = combine(result, unpack<T>(all[lane]));
  return result;
}

template <class T>
T shuffle(T value, int from) {
  return unpack<T>(exchange(Operation::kShuffle, pack(value))[from & 31]);
}

}  // namespace emulator

extern thread_local emulator::Dim3 threadIdx, blockIdx, blockDim;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Mixed operands as CUDA's: int and unsigned meet as unsigned.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : 1 + std::countr_zero(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31u) >> 32);
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __powf(float a, float b) { return std::pow(a, b); }
inline float __logf(float a) { return std::log(a); }
inline float __log2f(float a) { return std::log2(a); }
// Arithmetic gives one NaN, a positive one; the host's may be negative.
inline float emulated_fma(float a, float b, float c) {
  const float sum = std::fma(a, b, c);
  return sum != sum ? std::bit_cast<float>(0x7FFFFFFFu) : sum;
}
#define fmaf emulated_fma
#define __fmaf_rn emulated_fma
// NaN becomes 0, as the hardware has it.
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

template <class T>
T __ldg(const T* at) {
  return *at;
}

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref(*at).fetch_add(value, std::memory_order_relaxed);
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  T old = std::atomic_ref(*at).load(std::memory_order_relaxed);
  while (old < value &&
         !std::atomic_ref(*at).compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  T old = std::atomic_ref(*at).load(std::memory_order_relaxed);
  while (value < old &&
         !std::atomic_ref(*at).compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
  return old;
}

template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref(*at).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}
// Counts up to `last`, then begins again. What orders memory is the fence beside it, which the
// sanitizer does not know: here the counter does.
inline unsigned atomicInc(unsigned* at, unsigned last) {
  unsigned old = std::atomic_ref(*at).load(std::memory_order_relaxed);
  while (!std::atomic_ref(*at).compare_exchange_weak(old, old >= last ? 0 : old + 1,
                                                     std::memory_order_acq_rel)) {
  }
  return old;
}
inline void __threadfence() {}

// Whole warps only, as the kernels call them: exchange() waits for all 32 lanes.
inline void __syncwarp() { emulator::exchange(emulator::Operation::kSync, 0); }
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::shuffle(value, from);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::shuffle(value, static_cast<int>(threadIdx.x & 31u) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = static_cast<int>(threadIdx.x & 31u);
  return emulator::shuffle(value, lane < delta ? lane : lane - delta);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t* all = emulator::exchange(emulator::Operation::kBallot, predicate != 0);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane]) << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == ~0u;
}
inline unsigned __match_any_sync(unsigned, unsigned value) {
  const uint64_t* all = emulator::exchange(emulator::Operation::kMatch, value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= (all[lane] == value ? 1u : 0u) << lane;
  return bits;
}
template <class T>
T __reduce_add_sync(unsigned, T value) {
  return emulator::reduce(value, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_min_sync(unsigned, T value) {
  return emulator::reduce(value, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(unsigned, T value) {
  return emulator::reduce(value, [](T a, T b) { return a < b ? b : a; });
}

inline void __syncthreads() { emulator::block_barrier(); }
inline int __syncthreads_or(int predicate) { return emulator::block_sum(predicate != 0) != 0; }
inline int __syncthreads_count(int predicate) { return emulator::block_sum(predicate != 0); }
inline void __cluster_barrier_arrive_relaxed() { emulator::cluster_arrive(/*relaxed=*/true); }

// The one instruction that the kernels write themselves reads the cluster's index.
#define asm(...) cluster = emulator::cluster_index()
