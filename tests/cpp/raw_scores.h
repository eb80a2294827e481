// SPDX-License-Identifier: Apache-2.0
// Scores as the storage bits of any dtype.
#pragma once

#include <cstdint>

#include "../../csrc/common/order.h"

namespace gvr::test {

inline uint32_t widen(ScoreType dtype, uint32_t raw) {
  switch (dtype) {
    case ScoreType::kBFloat16: return ScoreTraits<ScoreType::kBFloat16>::widen(raw);
    case ScoreType::kFloat16: return ScoreTraits<ScoreType::kFloat16>::widen(raw);
    default: return raw;
  }
}

// Truncation: any mapping serves, rows only need to be full of ties and of special values.
inline uint32_t narrow(ScoreType dtype, float value) {
  const uint32_t bits = float_bits(value);
  if (dtype == ScoreType::kFloat32) return bits;
  if (dtype == ScoreType::kBFloat16) return bits >> 16;
  const uint32_t sign = bits >> 16 & 0x8000u;
  const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xFFu) - 112;
  if (exponent >= 0x1F) return sign | 0x7C00u | ((bits & 0x7FFFFFFFu) > 0x7F800000u);
  return exponent <= 0 ? sign
                       : sign | static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3FFu);
}

}  // namespace gvr::test
