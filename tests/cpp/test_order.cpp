// SPDX-License-Identifier: Apache-2.0
// The total order of scores: keys, round trips, ranks, 16-bit types.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/common/order.h"
#include "catch.h"

namespace {

using namespace gvr;

constexpr float kInf = std::numeric_limits<float>::infinity();

uint32_t key(float x) { return ordered_key(float_bits(x)); }

bool is_nan_bits(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

// binary16 -> value by its definition, in double precision.
double half_value(uint32_t raw) {
  const double sign = (raw & 0x8000u) ? -1.0 : 1.0;
  const int exponent = static_cast<int>((raw >> 10) & 0x1Fu);
  const int mantissa = static_cast<int>(raw & 0x3FFu);
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  if (exponent < 31) return sign * std::ldexp(1024 + mantissa, exponent - 25);
  return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                       : std::numeric_limits<double>::quiet_NaN();
}

TEST_CASE("keys ascend with the scores and NaN is the largest", "[order]") {
  const float ascending[] = {-kInf,
                             std::numeric_limits<float>::lowest(),
                             -1.0f,
                             -std::numeric_limits<float>::min(),
                             -std::numeric_limits<float>::denorm_min(),
                             0.0f,
                             std::numeric_limits<float>::denorm_min(),
                             std::numeric_limits<float>::min(),
                             1.0f,
                             std::nextafter(1.0f, 2.0f),
                             std::numeric_limits<float>::max(),
                             kInf,
                             std::numeric_limits<float>::quiet_NaN()};
  for (size_t i = 1; i < std::size(ascending); ++i) {
    INFO(ascending[i - 1] << " < " << ascending[i]);
    CHECK(key(ascending[i - 1]) < key(ascending[i]));
  }
}

TEST_CASE("the named keys are those of the named scores", "[order]") {
  CHECK(key(kInf) == kKeyPlusInf);
  CHECK(key(-kInf) == kKeyMinusInf);
  CHECK(key(0.0f) == kKeyZero);
  CHECK(key(-0.0f) == kKeyZero);
}

TEST_CASE("every NaN has one key", "[order]") {
  for (uint32_t bits : {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu, 0xFF800001u, 0xFFC00000u,
                        0xFFFFFFFFu, 0x7FA12345u}) {
    CHECK(ordered_key(bits) == kKeyNan);
  }
}

TEST_CASE("keys of any two bit patterns compare as the floats do", "[order]") {
  std::mt19937 random(1);
  int wrong = 0;
  for (int i = 0; i < 2'000'000; ++i) {
    const uint32_t a = random();
    // Neighbours as often as strangers.
    const uint32_t b = i % 2 ? random() : a + random() % 3;
    const float x = bits_float(a), y = bits_float(b);
    const bool less = is_nan_bits(b) ? !is_nan_bits(a) : x < y;
    const bool equal = (is_nan_bits(a) && is_nan_bits(b)) || x == y;
    wrong += (ordered_key(a) < ordered_key(b)) != less;
    wrong += (ordered_key(a) == ordered_key(b)) != equal;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a key goes back to its score", "[order]") {
  std::mt19937 random(2);
  int wrong = 0;
  for (int i = 0; i < 2'000'000; ++i) {
    const uint32_t bits = random();
    const float back = key_to_float(ordered_key(bits));
    wrong += is_nan_bits(bits) ? !std::isnan(back) : back != bits_float(bits);
  }
  CHECK(wrong == 0);
  CHECK(float_bits(key_to_float(kKeyZero)) == 0u);
  CHECK(key_to_float(kKeyPlusInf) == kInf);
  CHECK(key_to_float(kKeyMinusInf) == -kInf);
  CHECK(std::isnan(key_to_float(kKeyNan)));
}

TEST_CASE("a rank key holds score and index, and the lower index is the better one", "[order]") {
  const int32_t last = std::numeric_limits<int32_t>::max();
  for (int32_t index : {0, 1, 4096, last - 1, last}) {
    for (uint32_t k : {0u, kKeyMinusInf, kKeyZero, kKeyPlusInf, kKeyNan}) {
      const uint64_t rank = rank_key(k, index);
      CHECK(rank_key_score(rank) == k);
      CHECK(rank_key_index(rank) == index);
      if (index > 0) CHECK(rank_key(k, index - 1) > rank);
      if (k > 0) CHECK(rank_key(k - 1, 0) < rank);
    }
  }
}

TEST_CASE("every fp16 pattern widens exactly", "[order]") {
  for (uint32_t raw = 0; raw < 0x10000u; ++raw) {
    const uint32_t wide = ScoreTraits<ScoreType::kFloat16>::widen(raw);
    const double want = half_value(raw);
    const bool same = std::isnan(want) ? is_nan_bits(wide)
                                       : bits_float(wide) == want && (wide >> 31) == (raw >> 15);
    if (!same) FAIL("fp16 pattern " << raw << ": " << bits_float(wide) << ", want " << want);
  }
}

TEST_CASE("every bf16 pattern widens exactly and injectively", "[order]") {
  for (uint32_t raw = 0; raw < 0x10000u; ++raw) {
    const uint32_t wide = ScoreTraits<ScoreType::kBFloat16>::widen(raw);
    if (wide >> 16 != raw || (wide & 0xFFFFu) != 0) FAIL("bf16 pattern " << raw);
  }
}

TEST_CASE("the padding value of every dtype is minus infinity", "[order]") {
  CHECK(ordered_key(ScoreTraits<ScoreType::kFloat32>::widen(
            ScoreTraits<ScoreType::kFloat32>::kMinusInf)) == kKeyMinusInf);
  CHECK(ordered_key(ScoreTraits<ScoreType::kBFloat16>::widen(
            ScoreTraits<ScoreType::kBFloat16>::kMinusInf)) == kKeyMinusInf);
  CHECK(ordered_key(ScoreTraits<ScoreType::kFloat16>::widen(
            ScoreTraits<ScoreType::kFloat16>::kMinusInf)) == kKeyMinusInf);
}

}  // namespace
