// SPDX-License-Identifier: Apache-2.0
// Single scores of a row by index, any dtype, any alignment.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/order.h"

namespace gvr::cpu {

inline int32_t score_bytes(ScoreType dtype) { return dtype == ScoreType::kFloat32 ? 4 : 2; }

template <ScoreType kType>
inline uint32_t load_raw(const void* row, int64_t i) {
  typename ScoreTraits<kType>::Storage raw;
  std::memcpy(&raw, static_cast<const char*>(row) + i * int64_t{sizeof(raw)}, sizeof(raw));
  return raw;
}

template <ScoreType kType>
inline uint32_t load_key(const void* row, int64_t i) {
  return ordered_key(ScoreTraits<kType>::widen(load_raw<kType>(row, i)));
}

template <ScoreType kType>
inline void store_raw(void* values, int64_t i, uint32_t bits) {
  const auto raw = static_cast<typename ScoreTraits<kType>::Storage>(bits);
  std::memcpy(static_cast<char*>(values) + i * int64_t{sizeof(raw)}, &raw, sizeof(raw));
}

// Calls visit.template operator()<kType>() with the dtype as a constant.
template <typename Visitor>
inline auto visit_dtype(ScoreType dtype, Visitor&& visit) {
  switch (dtype) {
    case ScoreType::kFloat32: return visit.template operator()<ScoreType::kFloat32>();
    case ScoreType::kBFloat16: return visit.template operator()<ScoreType::kBFloat16>();
    case ScoreType::kFloat16: break;
  }
  return visit.template operator()<ScoreType::kFloat16>();
}

}  // namespace gvr::cpu
