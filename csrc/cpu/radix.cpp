// SPDX-License-Identifier: Apache-2.0
#include "radix.h"

#include <algorithm>
#include <array>

#include "scores.h"

namespace gvr::cpu {
namespace {

constexpr int32_t kDigitBits[] = {11, 11, 10};
constexpr int32_t kBins = 1 << 11;

using Histogram = std::array<std::array<int32_t, kBins>, 2>;

// Counts the digit at `shift` of the keys that agree with `prefix` above it.
template <ScoreType kType>
void count_digits(const RowView& row, uint32_t prefix, int32_t shift, int32_t bits,
                  Histogram& bins) {
  constexpr int32_t kBatch = 512;
  std::array<uint32_t, kBatch> keys;
  const uint32_t mask = (1u << bits) - 1;
  const bool first = shift + bits == 32;
  for (int64_t begin = row.window.begin; begin < row.window.end; begin += kBatch) {
    const int64_t count = std::min<int64_t>(kBatch, row.window.end - begin);
    for (int64_t i = 0; i < count; ++i) keys[i] = load_key<kType>(row.scores, begin + i);
    if (first) {
      for (int64_t i = 0; i < count; ++i) ++bins[i & 1][keys[i] >> shift];
    } else {
      for (int64_t i = 0; i < count; ++i) {
        bins[i & 1][keys[i] >> shift & mask] += keys[i] >> (shift + bits) == prefix;
      }
    }
  }
}

}  // namespace

uint32_t radix_floor(ScoreType dtype, const RowView& row, int32_t k, int32_t staging,
                     int32_t& passes) {
  Histogram bins;
  uint32_t prefix = 0;
  int32_t shift = 32;
  int64_t better = 0;  // scores above every key of the prefix
  for (const int32_t bits : kDigitBits) {
    shift -= bits;
    for (auto& copy : bins) copy.fill(0);
    visit_dtype(dtype,
                [&]<ScoreType kType>() { count_digits<kType>(row, prefix, shift, bits, bins); });
    ++passes;
    int32_t bin = (1 << bits) - 1;
    int64_t population = 0;
    for (;; --bin) {
      population = int64_t{bins[0][bin]} + bins[1][bin];
      if (bin == 0 || better + population >= k) break;
      better += population;
    }
    prefix = prefix << bits | static_cast<uint32_t>(bin);
    if (better + population <= staging) break;
  }
  return floor_under(prefix << shift);
}

}  // namespace gvr::cpu
