// SPDX-License-Identifier: Apache-2.0
// The total order of scores, written once for host and device.
//
// Scores compare as torch.topk compares them: NaN (of any sign and payload) is the largest value,
// -0.0 equals +0.0, infinities are ordinary. Among equal scores the lowest index comes first.
// Both rules fit in one unsigned 64-bit number, the rank key: a larger rank key is a better score.
// Two positions of a row never share a rank key, so "the K largest rank keys" has one answer.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GVR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GVR_HOST_DEVICE inline
#endif

namespace gvr {

enum class ScoreType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Ordered keys that no finite score reaches from outside.
inline constexpr uint32_t kKeyNan = 0xFFFFFFFFu;       // every NaN
inline constexpr uint32_t kKeyPlusInf = 0xFF800000u;   // +inf, the largest number
inline constexpr uint32_t kKeyMinusInf = 0x007FFFFFu;  // -inf, the smallest key of any score
inline constexpr uint32_t kKeyZero = 0x80000000u;      // +0.0 and -0.0

GVR_HOST_DEVICE uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

GVR_HOST_DEVICE float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

// IEEE binary32 bits -> unsigned key, monotone in the total order above.
GVR_HOST_DEVICE uint32_t ordered_key(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return kKeyNan;
  if (magnitude == 0u) return kKeyZero;
  return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

// The float whose key is `key`. kKeyNan gives the canonical quiet NaN, kKeyZero gives +0.0.
GVR_HOST_DEVICE float key_to_float(uint32_t key) {
  if (key > kKeyPlusInf) return bits_float(0x7FC00000u);
  return bits_float((key & 0x80000000u) ? (key & 0x7FFFFFFFu) : ~key);
}

// Larger is better: score first, then the lower index.
GVR_HOST_DEVICE uint64_t rank_key(uint32_t key, int32_t index) {
  return (static_cast<uint64_t>(key) << 32) | static_cast<uint32_t>(~static_cast<uint32_t>(index));
}

GVR_HOST_DEVICE uint32_t rank_key_score(uint64_t rank) { return static_cast<uint32_t>(rank >> 32); }

GVR_HOST_DEVICE int32_t rank_key_index(uint64_t rank) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank));
}

// Raw storage bits of one score -> binary32 bits. Exact and injective for every 16-bit pattern, so
// one fp32 order serves all dtypes; the raw bits themselves are what `values` returns.
template <ScoreType kType>
struct ScoreTraits;

template <>
struct ScoreTraits<ScoreType::kFloat32> {
  using Storage = uint32_t;
  static constexpr uint32_t kMinusInf = 0xFF800000u;
  GVR_HOST_DEVICE static uint32_t widen(uint32_t raw) { return raw; }
};

template <>
struct ScoreTraits<ScoreType::kBFloat16> {
  using Storage = uint16_t;
  static constexpr uint32_t kMinusInf = 0xFF80u;
  GVR_HOST_DEVICE static uint32_t widen(uint32_t raw) { return raw << 16; }
};

template <>
struct ScoreTraits<ScoreType::kFloat16> {
  using Storage = uint16_t;
  static constexpr uint32_t kMinusInf = 0xFC00u;
  GVR_HOST_DEVICE static uint32_t widen(uint32_t raw) {
    const uint32_t sign = (raw & 0x8000u) << 16;
    const uint32_t exponent = (raw >> 10) & 0x1Fu;
    const uint32_t mantissa = raw & 0x3FFu;
    if (exponent == 0x1Fu) return sign | 0x7F800000u | (mantissa << 13);
    if (exponent != 0u) return sign | ((exponent + 112u) << 23) | (mantissa << 13);
    // Subnormal: mantissa * 2^-24 is exact in binary32.
    return sign | float_bits(static_cast<float>(mantissa) * 5.9604644775390625e-8f);
  }
};

}  // namespace gvr
