// SPDX-License-Identifier: Apache-2.0
#include "vector_ops.h"

#if defined(__x86_64__)
// GCC 12's own AVX-512 header trips its uninitialised-variable warnings (GCC PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define GVR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt")))
#define GVR_AVX512_INLINE GVR_AVX512 __attribute__((always_inline)) static inline

namespace gvr::cpu {
namespace {

constexpr int32_t kLanes = 16;
constexpr int32_t kGroup = 4 * kLanes;

GVR_AVX512_INLINE __m512i lane_numbers() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

GVR_AVX512_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}

// Sixteen (or, masked, fewer) scores as binary32.
template <ScoreType kType>
GVR_AVX512_INLINE __m512 widen(__m256i raw) {
  if constexpr (kType == ScoreType::kFloat16) return _mm512_cvtph_ps(raw);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

template <ScoreType kType>
GVR_AVX512_INLINE __m512 load(const void* row, int64_t i) {
  if constexpr (kType == ScoreType::kFloat32) {
    return _mm512_loadu_ps(static_cast<const char*>(row) + 4 * i);
  } else {
    return widen<kType>(_mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(static_cast<const char*>(row) + 2 * i)));
  }
}

template <ScoreType kType>
GVR_AVX512_INLINE __m512 load_first(const void* row, int64_t i, __mmask16 lanes) {
  if constexpr (kType == ScoreType::kFloat32) {
    return _mm512_maskz_loadu_ps(lanes, static_cast<const char*>(row) + 4 * i);
  } else {
    return widen<kType>(_mm256_maskz_loadu_epi16(lanes, static_cast<const char*>(row) + 2 * i));
  }
}

GVR_AVX512_INLINE __mmask16 above(__m512 scores, __m512 floor) {
  return _mm512_cmp_ps_mask(scores, floor, _CMP_NLE_UQ);
}

GVR_AVX512_INLINE int32_t append(int32_t* indices, int32_t count, __mmask16 lanes, __m512i index) {
  // Compress in registers: compressing stores are slow on some machines.
  _mm512_storeu_si512(indices + count, _mm512_maskz_compress_epi32(lanes, index));
  return count + _mm_popcnt_u32(lanes);
}

template <ScoreType kType>
GVR_AVX512 int32_t collect(const void* row, int32_t begin, int32_t end, uint32_t floor,
                           int32_t* indices) {
  const __m512 limit = _mm512_set1_ps(floor_score(floor));
  const __m512i lanes = lane_numbers();
  int32_t count = 0;
  int64_t i = begin;
  for (; end - i >= kGroup; i += kGroup) {
    prefetch_ahead<kType, kGroup>(row, i);
    const __mmask16 m0 = above(load<kType>(row, i), limit);
    const __mmask16 m1 = above(load<kType>(row, i + kLanes), limit);
    const __mmask16 m2 = above(load<kType>(row, i + 2 * kLanes), limit);
    const __mmask16 m3 = above(load<kType>(row, i + 3 * kLanes), limit);
    if ((m0 | m1 | m2 | m3) == 0) continue;
    const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(i)), lanes);
    count = append(indices, count, m0, index);
    count = append(indices, count, m1, _mm512_add_epi32(index, _mm512_set1_epi32(kLanes)));
    count = append(indices, count, m2, _mm512_add_epi32(index, _mm512_set1_epi32(2 * kLanes)));
    count = append(indices, count, m3, _mm512_add_epi32(index, _mm512_set1_epi32(3 * kLanes)));
  }
  for (; i < end; i += kLanes) {
    const __mmask16 valid = end - i >= kLanes ? __mmask16{0xFFFF} : first_lanes(end - i);
    const __mmask16 m = above(load_first<kType>(row, i, valid), limit) & valid;
    count = append(indices, count, m,
                   _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(i)), lanes));
  }
  return count;
}

// One more in the given lanes. Masks stay masks: GCC 12 may spill the 16 bits of a mask that is
// widened to 64 and reload all 64, the rest of them being whatever the stack held.
GVR_AVX512_INLINE __m512i increment(__m512i counts, __mmask16 lanes) {
  return _mm512_mask_add_epi32(counts, lanes, counts, _mm512_set1_epi32(1));
}

template <ScoreType kType>
GVR_AVX512 int32_t count(const void* row, int32_t begin, int32_t end, uint32_t floor) {
  const __m512 limit = _mm512_set1_ps(floor_score(floor));
  __m512i even = _mm512_setzero_si512();
  __m512i odd = _mm512_setzero_si512();
  int64_t i = begin;
  for (; end - i >= 2 * kLanes; i += 2 * kLanes) {
    prefetch_ahead<kType, 2 * kLanes>(row, i);
    even = increment(even, above(load<kType>(row, i), limit));
    odd = increment(odd, above(load<kType>(row, i + kLanes), limit));
  }
  for (; i < end; i += kLanes) {
    const __mmask16 valid = end - i >= kLanes ? __mmask16{0xFFFF} : first_lanes(end - i);
    even = increment(even, above(load_first<kType>(row, i, valid), limit) & valid);
  }
  return _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
}

GVR_AVX512_INLINE __m512i ordered_keys(__m512i bits) {
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF));
  const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
  const __mmask16 nan = _mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(0x7F800000));
  const __mmask16 zero = _mm512_testn_epi32_mask(magnitude, magnitude);
  __m512i key = _mm512_xor_si512(bits, flip);
  key = _mm512_mask_mov_epi32(key, nan, _mm512_set1_epi32(-1));
  return _mm512_mask_mov_epi32(key, zero, _mm512_set1_epi32(INT32_MIN));
}

template <ScoreType kType>
GVR_AVX512_INLINE __m512i gather_bits(const void* row, __m512i index, __mmask16 lanes) {
  const __m512i none = _mm512_setzero_si512();
  if constexpr (kType == ScoreType::kFloat32) {
    return _mm512_mask_i32gather_epi32(none, lanes, index, row, 4);
  } else {
    // The pair (index - 1, index), or (0, 1) for index 0: never past the row's end.
    const __m512i first = _mm512_max_epi32(_mm512_sub_epi32(index, _mm512_set1_epi32(1)), none);
    const __m512i pair = _mm512_mask_i32gather_epi32(none, lanes, first, row, 2);
    const __m512i shift = _mm512_slli_epi32(_mm512_sub_epi32(index, first), 4);
    const __m256i raw = _mm512_cvtepi32_epi16(_mm512_srlv_epi32(pair, shift));
    return _mm512_castps_si512(widen<kType>(raw));
  }
}

template <ScoreType kType>
GVR_AVX512 KeyRange gather_keys(const void* row, const int32_t* indices, int32_t count,
                                uint32_t* keys) {
  __m512i low = _mm512_set1_epi32(-1);
  __m512i high = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 lanes = count - i >= kLanes ? __mmask16{0xFFFF} : first_lanes(count - i);
    const __m512i index = _mm512_maskz_loadu_epi32(lanes, indices + i);
    const __m512i key = ordered_keys(gather_bits<kType>(row, index, lanes));
    _mm512_mask_storeu_epi32(keys + i, lanes, key);
    low = _mm512_mask_min_epu32(low, lanes, low, key);
    high = _mm512_mask_max_epu32(high, lanes, high, key);
  }
  return {_mm512_reduce_min_epu32(low), _mm512_reduce_max_epu32(high)};
}

GVR_AVX512 int32_t count_keys(const uint32_t* keys, int32_t count, uint32_t floor) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(floor));
  __m512i even = _mm512_setzero_si512();
  __m512i odd = _mm512_setzero_si512();
  int64_t i = 0;
  for (; count - i >= 2 * kLanes; i += 2 * kLanes) {
    even = increment(even, _mm512_cmpgt_epu32_mask(_mm512_loadu_si512(keys + i), limit));
    odd = increment(odd, _mm512_cmpgt_epu32_mask(_mm512_loadu_si512(keys + i + kLanes), limit));
  }
  for (; i < count; i += kLanes) {
    const __mmask16 valid = count - i >= kLanes ? __mmask16{0xFFFF} : first_lanes(count - i);
    const __m512i key = _mm512_maskz_loadu_epi32(valid, keys + i);
    even = increment(even, _mm512_mask_cmpgt_epu32_mask(valid, key, limit));
  }
  return _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
}

GVR_AVX512 int32_t extract(const uint32_t* keys, int32_t count, KeyRange range, uint32_t* inside) {
  const __m512i low = _mm512_set1_epi32(static_cast<int32_t>(range.low));
  const __m512i width = _mm512_set1_epi32(static_cast<int32_t>(range.high - range.low));
  int32_t found = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 valid = count - i >= kLanes ? __mmask16{0xFFFF} : first_lanes(count - i);
    const __m512i key = _mm512_maskz_loadu_epi32(valid, keys + i);
    const __mmask16 lanes = _mm512_mask_cmple_epu32_mask(valid, _mm512_sub_epi32(key, low), width);
    _mm512_storeu_si512(inside + found, _mm512_maskz_compress_epi32(lanes, key));
    found += _mm_popcnt_u32(lanes);
  }
  return found;
}

GVR_AVX512 int32_t keep(uint32_t* keys, int32_t* indices, int32_t count, Cut cut) {
  const __m512i cut_key = _mm512_set1_epi32(static_cast<int32_t>(cut.key));
  const __m512i last_index = _mm512_set1_epi32(cut.last_index);
  int32_t out = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 valid = count - i >= kLanes ? __mmask16{0xFFFF} : first_lanes(count - i);
    const __m512i key = _mm512_maskz_loadu_epi32(valid, keys + i);
    const __m512i index = _mm512_maskz_loadu_epi32(valid, indices + i);
    const __mmask16 equal = _mm512_mask_cmpeq_epi32_mask(valid, key, cut_key);
    const __mmask16 lanes = _mm512_mask_cmpgt_epu32_mask(valid, key, cut_key) |
                            _mm512_mask_cmple_epi32_mask(equal, index, last_index);
    _mm512_storeu_si512(keys + out, _mm512_maskz_compress_epi32(lanes, key));
    out = append(indices, out, lanes, index);
  }
  return out;
}

template <ScoreType kType>
constexpr VectorOps kOps = {collect<kType>, count<kType>, gather_keys<kType>,
                            count_keys,     extract,      keep};

}  // namespace

const VectorOps& vector_ops_avx512(ScoreType dtype) {
  switch (dtype) {
    case ScoreType::kFloat32: return kOps<ScoreType::kFloat32>;
    case ScoreType::kBFloat16: return kOps<ScoreType::kBFloat16>;
    case ScoreType::kFloat16: break;
  }
  return kOps<ScoreType::kFloat16>;
}

}  // namespace gvr::cpu
#pragma GCC diagnostic pop
#endif
