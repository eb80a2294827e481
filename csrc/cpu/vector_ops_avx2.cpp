// SPDX-License-Identifier: Apache-2.0
#include "vector_ops.h"

#include "scores.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <array>

#define GVR_AVX2 __attribute__((target("avx2,f16c,popcnt")))
#define GVR_AVX2_INLINE GVR_AVX2 __attribute__((always_inline)) static inline

namespace gvr::cpu {
namespace {

constexpr int32_t kLanes = 8;
constexpr int32_t kGroup = 4 * kLanes;

// Byte j of entry m: the j-th set bit of m.
constexpr std::array<uint64_t, 256> make_set_bits() {
  std::array<uint64_t, 256> table{};
  for (uint32_t mask = 0; mask < 256; ++mask) {
    int32_t position = 0;
    for (uint64_t bit = 0; bit < 8; ++bit) {
      if (mask >> bit & 1u) table[mask] |= bit << (8 * position++);
    }
  }
  return table;
}

constexpr std::array<uint64_t, 256> kSetBits = make_set_bits();

GVR_AVX2_INLINE __m256i set_bits(uint32_t mask) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kSetBits[mask])));
}

template <ScoreType kType>
GVR_AVX2_INLINE __m256 widen(__m128i raw) {
  if constexpr (kType == ScoreType::kFloat16) return _mm256_cvtph_ps(raw);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

template <ScoreType kType>
GVR_AVX2_INLINE __m256 load(const void* row, int64_t i) {
  if constexpr (kType == ScoreType::kFloat32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(static_cast<const char*>(row) + 4 * i));
  } else {
    return widen<kType>(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(row) + 2 * i)));
  }
}

template <ScoreType kType>
GVR_AVX2_INLINE uint32_t above(const void* row, int64_t i, __m256 floor) {
  const __m256 hits = _mm256_cmp_ps(load<kType>(row, i), floor, _CMP_NLE_UQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(hits));
}

GVR_AVX2_INLINE int32_t append(int32_t* indices, int32_t count, uint32_t mask, int64_t first) {
  const __m256i index =
      _mm256_add_epi32(_mm256_set1_epi32(static_cast<int32_t>(first)), set_bits(mask));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + count), index);
  return count + _mm_popcnt_u32(mask);
}

template <ScoreType kType>
GVR_AVX2 int32_t collect(const void* row, int32_t begin, int32_t end, uint32_t floor,
                         int32_t* indices) {
  const __m256 limit = _mm256_set1_ps(floor_score(floor));
  int32_t count = 0;
  int64_t i = begin;
  for (; end - i >= kGroup; i += kGroup) {
    prefetch_ahead<kType, kGroup>(row, i);
    const uint32_t m0 = above<kType>(row, i, limit);
    const uint32_t m1 = above<kType>(row, i + kLanes, limit);
    const uint32_t m2 = above<kType>(row, i + 2 * kLanes, limit);
    const uint32_t m3 = above<kType>(row, i + 3 * kLanes, limit);
    if ((m0 | m1 | m2 | m3) == 0) continue;
    count = append(indices, count, m0, i);
    count = append(indices, count, m1, i + kLanes);
    count = append(indices, count, m2, i + 2 * kLanes);
    count = append(indices, count, m3, i + 3 * kLanes);
  }
  for (; i < end; ++i) {
    indices[count] = static_cast<int32_t>(i);
    count += load_key<kType>(row, i) > floor;
  }
  return count;
}

template <ScoreType kType>
GVR_AVX2 int32_t count(const void* row, int32_t begin, int32_t end, uint32_t floor) {
  const __m256 limit = _mm256_set1_ps(floor_score(floor));
  int32_t count = 0;
  int64_t i = begin;
  for (; end - i >= kGroup; i += kGroup) {
    prefetch_ahead<kType, kGroup>(row, i);
    const uint32_t m0 = above<kType>(row, i, limit);
    const uint32_t m1 = above<kType>(row, i + kLanes, limit);
    const uint32_t m2 = above<kType>(row, i + 2 * kLanes, limit);
    const uint32_t m3 = above<kType>(row, i + 3 * kLanes, limit);
    count += _mm_popcnt_u32(m0 | m1 << 8 | m2 << 16 | m3 << 24);
  }
  for (; i < end; ++i) count += load_key<kType>(row, i) > floor;
  return count;
}

GVR_AVX2_INLINE __m256i ordered_keys(__m256i bits) {
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);
  const __m256i magnitude = _mm256_andnot_si256(sign, bits);
  const __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F800000));
  const __m256i zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
  const __m256i flip = _mm256_or_si256(_mm256_srai_epi32(bits, 31), sign);
  const __m256i key = _mm256_or_si256(_mm256_xor_si256(bits, flip), nan);
  return _mm256_blendv_epi8(key, sign, zero);
}

template <ScoreType kType>
GVR_AVX2_INLINE __m256i gather_bits(const void* row, __m256i index) {
  if constexpr (kType == ScoreType::kFloat32) {
    return _mm256_i32gather_epi32(static_cast<const int*>(row), index, 4);
  } else {
    // The pair (index - 1, index), or (0, 1) for index 0: never past the row's end.
    const __m256i first =
        _mm256_max_epi32(_mm256_sub_epi32(index, _mm256_set1_epi32(1)), _mm256_setzero_si256());
    const __m256i pair = _mm256_i32gather_epi32(static_cast<const int*>(row), first, 2);
    const __m256i shift = _mm256_slli_epi32(_mm256_sub_epi32(index, first), 4);
    const __m256i score =
        _mm256_and_si256(_mm256_srlv_epi32(pair, shift), _mm256_set1_epi32(0xFFFF));
    const __m128i raw =
        _mm_packus_epi32(_mm256_castsi256_si128(score), _mm256_extracti128_si256(score, 1));
    return _mm256_castps_si256(widen<kType>(raw));
  }
}

template <ScoreType kType>
GVR_AVX2 KeyRange gather_keys(const void* row, const int32_t* indices, int32_t count,
                              uint32_t* keys) {
  __m256i low = _mm256_set1_epi32(-1);
  __m256i high = _mm256_setzero_si256();
  int32_t i = 0;
  for (; count - i >= kLanes; i += kLanes) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices + i));
    const __m256i key = ordered_keys(gather_bits<kType>(row, index));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + i), key);
    low = _mm256_min_epu32(low, key);
    high = _mm256_max_epu32(high, key);
  }
  KeyRange range;
  alignas(32) uint32_t lows[kLanes];
  alignas(32) uint32_t highs[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lows), low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(highs), high);
  for (int32_t lane = 0; lane < kLanes; ++lane) range.include({lows[lane], highs[lane]});
  for (; i < count; ++i) {
    keys[i] = load_key<kType>(row, indices[i]);
    range.include({keys[i], keys[i]});
  }
  return range;
}

GVR_AVX2 int32_t count_keys(const uint32_t* keys, int32_t count, uint32_t floor) {
  // AVX2 compares signed numbers: both sides move by 2^31.
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);
  const __m256i limit = _mm256_xor_si256(_mm256_set1_epi32(static_cast<int32_t>(floor)), sign);
  __m256i negative_counts = _mm256_setzero_si256();
  int64_t i = 0;
  for (; count - i >= kLanes; i += kLanes) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
    negative_counts =
        _mm256_add_epi32(negative_counts, _mm256_cmpgt_epi32(_mm256_xor_si256(key, sign), limit));
  }
  alignas(32) int32_t lanes[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), negative_counts);
  int32_t above = 0;
  for (const int32_t lane : lanes) above -= lane;
  for (; i < count; ++i) above += keys[i] > floor;
  return above;
}

GVR_AVX2 int32_t extract(const uint32_t* keys, int32_t count, KeyRange range, uint32_t* inside) {
  const __m256i low = _mm256_set1_epi32(static_cast<int32_t>(range.low));
  const __m256i width = _mm256_set1_epi32(static_cast<int32_t>(range.high - range.low));
  int32_t found = 0;
  int64_t i = 0;
  for (; count - i >= kLanes; i += kLanes) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
    const __m256i distance = _mm256_sub_epi32(key, low);
    const __m256i lanes = _mm256_cmpeq_epi32(_mm256_min_epu32(distance, width), distance);
    const auto mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(inside + found),
                        _mm256_permutevar8x32_epi32(key, set_bits(mask)));
    found += _mm_popcnt_u32(mask);
  }
  for (; i < count; ++i) {
    inside[found] = keys[i];
    found += keys[i] - range.low <= range.high - range.low;
  }
  return found;
}

GVR_AVX2 int32_t keep(uint32_t* keys, int32_t* indices, int32_t count, Cut cut) {
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);
  const __m256i cut_key = _mm256_set1_epi32(static_cast<int32_t>(cut.key));
  const __m256i signed_cut = _mm256_xor_si256(cut_key, sign);
  const __m256i last_index = _mm256_set1_epi32(cut.last_index);
  int32_t out = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices + i));
    const __m256i greater = _mm256_cmpgt_epi32(_mm256_xor_si256(key, sign), signed_cut);
    const __m256i tie = _mm256_andnot_si256(_mm256_cmpgt_epi32(index, last_index),
                                            _mm256_cmpeq_epi32(key, cut_key));
    const __m256i stays = _mm256_or_si256(greater, tie);
    uint32_t mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(stays)));
    if (count - i < kLanes) mask &= (1u << (count - i)) - 1u;
    const __m256i order = set_bits(mask);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + out),
                        _mm256_permutevar8x32_epi32(key, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + out),
                        _mm256_permutevar8x32_epi32(index, order));
    out += _mm_popcnt_u32(mask);
  }
  return out;
}

template <ScoreType kType>
constexpr VectorOps kOps = {collect<kType>, count<kType>, gather_keys<kType>,
                            count_keys,     extract,      keep};

}  // namespace

const VectorOps& vector_ops_avx2(ScoreType dtype) {
  switch (dtype) {
    case ScoreType::kFloat32: return kOps<ScoreType::kFloat32>;
    case ScoreType::kBFloat16: return kOps<ScoreType::kBFloat16>;
    case ScoreType::kFloat16: break;
  }
  return kOps<ScoreType::kFloat16>;
}

}  // namespace gvr::cpu
#endif
