// SPDX-License-Identifier: Apache-2.0
#include "vector_ops.h"

#include <algorithm>

#include "scores.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gvr::cpu {
namespace {

template <ScoreType kType>
struct ScalarOps {
  static int32_t collect(const void* row, int32_t begin, int32_t end, uint32_t floor,
                         int32_t* indices) {
    int32_t count = 0;
    for (int32_t i = begin; i < end; ++i) {
      indices[count] = i;
      count += load_key<kType>(row, i) > floor;
    }
    return count;
  }

  static int32_t count(const void* row, int32_t begin, int32_t end, uint32_t floor) {
    int32_t count = 0;
    for (int32_t i = begin; i < end; ++i) count += load_key<kType>(row, i) > floor;
    return count;
  }

  static KeyRange gather_keys(const void* row, const int32_t* indices, int32_t count,
                              uint32_t* keys) {
    KeyRange range;
    for (int32_t i = 0; i < count; ++i) {
      keys[i] = load_key<kType>(row, indices[i]);
      range.include({keys[i], keys[i]});
    }
    return range;
  }

  static int32_t count_keys(const uint32_t* keys, int32_t count, uint32_t floor) {
    int32_t above = 0;
    for (int32_t i = 0; i < count; ++i) above += keys[i] > floor;
    return above;
  }

  static int32_t extract(const uint32_t* keys, int32_t count, KeyRange range, uint32_t* inside) {
    int32_t found = 0;
    for (int32_t i = 0; i < count; ++i) {
      inside[found] = keys[i];
      found += keys[i] - range.low <= range.high - range.low;
    }
    return found;
  }

  static int32_t keep(uint32_t* keys, int32_t* indices, int32_t count, Cut cut) {
    int32_t out = 0;
    for (int32_t i = 0; i < count; ++i) {
      const uint32_t key = keys[i];
      const int32_t index = indices[i];
      keys[out] = key;
      indices[out] = index;
      out += (key > cut.key) | ((key == cut.key) & (index <= cut.last_index));
    }
    return out;
  }

  static constexpr VectorOps kOps = {collect, count, gather_keys, count_keys, extract, keep};
};

Isa machine_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("popcnt")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") &&
      __builtin_cpu_supports("popcnt")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kScalar;
}

const VectorOps& scalar_ops(ScoreType dtype) {
  switch (dtype) {
    case ScoreType::kFloat32: return ScalarOps<ScoreType::kFloat32>::kOps;
    case ScoreType::kBFloat16: return ScalarOps<ScoreType::kBFloat16>::kOps;
    case ScoreType::kFloat16: break;
  }
  return ScalarOps<ScoreType::kFloat16>::kOps;
}

}  // namespace

const VectorOps& vector_ops(ScoreType dtype, Isa isa) {
  static const Isa machine = machine_isa();
  switch (std::min(isa, machine)) {
#if defined(__x86_64__)
    case Isa::kAvx512: return vector_ops_avx512(dtype);
    case Isa::kAvx2: return vector_ops_avx2(dtype);
#endif
    default: return scalar_ops(dtype);
  }
}

#if defined(__x86_64__)
// 0x1F80: every exception masked, round to nearest, subnormals kept.
FloatModeGuard::FloatModeGuard() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
FloatModeGuard::~FloatModeGuard() { _mm_setcsr(saved_); }
#else
// The scalar loops compare integers.
FloatModeGuard::FloatModeGuard() : saved_(0) {}
FloatModeGuard::~FloatModeGuard() = default;
#endif

}  // namespace gvr::cpu
